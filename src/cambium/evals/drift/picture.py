"""The picture of a line of revisions: one small panel a reading, over all merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import vl_convert

from cambium.evals.drift import CumulativeBound, DriftSeries, Reading, Suspicion, suspect

TITLES = {
    "concept.neighbours": "concepts: neighbours lost",
    "concept.direction": "concepts: words turned",
    "concept.definitions": "concepts: definitions turned",
    "value.choice": "values: decent choice",
    "value.persona": "values: persona answers",
    "bias.association": "bias: all associations",
    "bias.age": "bias: age",
    "bias.gender": "bias: gender",
    "bias.origin": "bias: origin",
    "bias.class": "bias: class",
    "bias.disability": "bias: disability",
    "bias.looks": "bias: looks",
    "bias.work": "bias: work",
    "bias.ambiguous": "bias: open questions",
    "bias.disambiguated": "bias: answered questions",
    "bbq.ambiguous": "BBQ: open questions",
    "bbq.disambiguated": "BBQ: answered questions",
    "diversity.distinct": "writing: distinct bigrams",
    "diversity.unique": "writing: bigrams of one text",
    "diversity.likeness": "writing: likeness",
    "style.words": "style: words",
    "style.newlines": "style: newlines",
    "calibration.brier": "calibration: Brier score",
    "calibration.error": "calibration: error",
    "composition.replay": "replay against stream",
}
ARMS = ("from the bare base", "from the parent")
_COLOURS = ["#2f7d5b", "#c46a1b"]
_RED = "#a01c1c"
_COLUMNS = 4


def picture(
    series: DriftSeries,
    bounds: Mapping[str, CumulativeBound],
    suspicion: Suspicion | None = None,
) -> str:
    """Returns an SVG: each reading's change from base and parent, with 95 % intervals.

    A dashed line is a bound of the policy on the way from the base. The revision that stands out,
    if one does, has a shaded column in every panel, and in the panel that accuses it a red ring.

    Args:
        bounds: by reading; harm counts as positive there, and is drawn on its own side here.
    """
    found = suspicion or suspect(series)
    names = [name for name in TITLES if name in series.measures()]
    rows = [row for name in names for row in _rows(series, name, bounds.get(name), found)]
    order = [_merge(drift.revision, drift.label) for drift in series.revisions]
    spec = {
        "data": {"values": rows},
        "facet": {
            "field": "title",
            "type": "nominal",
            "title": None,
            "sort": [_title(series, name) for name in names],
            "header": {"labelFontSize": 11, "labelFontWeight": "bold", "labelLimit": 240},
        },
        "columns": _COLUMNS,
        "spec": {"width": 200, "height": 105, "layer": _layers(order)},
        "resolve": {"scale": {"y": "independent"}, "axis": {"x": "independent"}},
        "config": {
            "background": "white",
            "font": "system-ui, sans-serif",
            "view": {"stroke": "#ccc"},
            "axis": {"labelColor": "#222", "gridColor": "#eee", "labelFontSize": 9},
            "facet": {"spacing": 14},
        },
        "padding": 12,
    }
    return vl_convert.vegalite_to_svg(spec, vl_version="5.20")


def _merge(revision: int, label: str) -> str:
    return f"{revision} {label}".strip()


def _title(series: DriftSeries, name: str) -> str:
    unit = next(r.against_base[name].unit for r in series.revisions if name in r.against_base)
    return f"{TITLES[name]} ({unit})" if unit else TITLES[name]


def _rows(
    series: DriftSeries, name: str, bound: CumulativeBound | None, suspicion: Suspicion
) -> list[dict[str, Any]]:
    title = _title(series, name)
    rows = []
    for drift in series.revisions:
        for arm, readings in zip(ARMS, (drift.against_base, drift.against_parent), strict=True):
            reading = readings.get(name)
            if reading is None:
                continue
            is_suspect = drift.revision == suspicion.revision
            rows.append({
                "title": title, "merge": _merge(drift.revision, drift.label), "against": arm,
                "value": reading.value, "low": reading.low, "high": reading.high,
                "bound": _signed(bound.total, reading) if bound else None,
                "suspect": is_suspect, "ring": is_suspect and name == suspicion.measure
                and arm == ARMS[1],
            })  # fmt: skip
    return rows


def _signed(bound: float, reading: Reading) -> float:
    return -bound if reading.direction == "down" else bound


def _layers(order: Sequence[str]) -> list[dict[str, Any]]:
    x = {
        "field": "merge", "type": "ordinal", "sort": list(order), "title": None,
        "axis": {"labelAngle": -50, "labelOverlap": False},
    }  # fmt: skip
    y = {"field": "value", "type": "quantitative", "title": None}
    legend = {"title": None, "orient": "top", "labelFontSize": 11, "symbolSize": 60}
    colour = {"field": "against", "legend": legend,
              "scale": {"domain": list(ARMS), "range": _COLOURS}}  # fmt: skip
    shape = {"field": "against", "legend": legend,
             "scale": {"domain": list(ARMS), "range": ["circle", "triangle"]}}  # fmt: skip
    dash = {"field": "against", "scale": {"domain": list(ARMS), "range": [[1, 0], [3, 2]]},
            "legend": None}  # fmt: skip
    beside = {"field": "against", "sort": list(ARMS)}
    return [
        {"mark": {"type": "bar", "color": "#f3d9d9", "width": {"band": 1.0}},
         "transform": [{"filter": "datum.suspect && datum.against == 'from the parent'"}],
         "encoding": {"x": x, "y": {"value": 0}, "y2": {"value": 105}}},
        {"mark": {"type": "rule", "color": "#999"}, "encoding": {"y": {"datum": 0}}},
        {"mark": {"type": "rule", "color": _RED, "strokeDash": [6, 3], "strokeWidth": 1.5},
         "transform": [{"filter": "isValid(datum.bound)"},
                       {"aggregate": [{"op": "max", "field": "bound", "as": "bound"}],
                        "groupby": ["title"]}],
         "encoding": {"y": {"field": "bound", "type": "quantitative"}}},
        {"mark": {"type": "line", "strokeWidth": 1.2},
         "encoding": {"x": x, "y": y, "color": colour, "strokeDash": dash, "xOffset": beside}},
        {"mark": {"type": "rule", "strokeWidth": 1.4},
         "encoding": {"x": x, "y": {"field": "low", "type": "quantitative"},
                      "y2": {"field": "high"}, "color": colour, "xOffset": beside}},
        {"mark": {"type": "point", "filled": True, "size": 34, "opacity": 1},
         "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "xOffset": beside}},
        {"mark": {"type": "point", "filled": False, "size": 200, "strokeWidth": 2,
                  "color": _RED},
         "transform": [{"filter": "datum.ring"}],
         "encoding": {"x": x, "y": y, "xOffset": beside}},
    ]  # fmt: skip
