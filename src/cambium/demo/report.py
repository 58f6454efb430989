"""The demo's page: what happened, in tables and pictures."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from cambium.demo import charts
from cambium.demo.story import MAIN, Story
from cambium.evals.gates import ALIGNMENT

GATES = ("domain_gain", "retention", *ALIGNMENT)


def render(report: dict[str, Any], story: Story | None) -> str:
    """Returns the report as one HTML page without scripts; texts of models are escaped."""
    environment = Environment(
        loader=PackageLoader("cambium.demo"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
    )
    pictures: dict[str, Markup] = {}
    if story is not None and story.losses:
        pictures["losses"] = Markup(charts.losses(story.losses))
    if story is not None and story.curves:
        pictures["curves"] = Markup(charts.curves(story.curves))
    if story is not None and story.views:
        for gate in GATES:
            pictures[gate] = Markup(charts.looks(story.views, gate))
    return environment.get_template("report.html").render(
        report=report,
        figures=report["figures"],
        pictures=pictures,
        gates=GATES,
        views=story.views if story else {},
        main=MAIN,
        answers=list(zip(story.first_answers, story.merged_answers, strict=False)) if story else [],
    )
