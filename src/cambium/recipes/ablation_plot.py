"""The ablation's picture: what each variant lost of the old and gained of the new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import vl_convert

TITLES = {
    "rise_percent": "rise of old losses, %",
    "gain_percent": "fall of a new domain's loss, %",
    "forgetting": "forgetting, points",
    "average_accuracy": "accuracy at the end, %",
}


def picture(summary: Sequence[Mapping[str, Any]], stream: str) -> str:
    """Returns an SVG with a bar for each variant, and a line for the range over its seeds."""
    rows = [
        {
            "variant": row["variant"],
            "measure": TITLES[row["measure"]],
            "mean": row["mean"],
            "low": row["low"],
            "high": row["high"],
        }
        for row in summary
        if row["stream"] == stream and row["measure"] in TITLES
    ]
    order = list(dict.fromkeys(row["variant"] for row in rows))
    y = {"field": "variant", "type": "nominal", "sort": order, "title": None}
    value = {"field": "mean", "type": "quantitative", "title": None}
    low = {"field": "low", "type": "quantitative"}
    bar = {"mark": {"type": "bar", "color": "#2f7d5b"}, "encoding": {"y": y, "x": value}}
    line = {
        "mark": {"type": "rule", "color": "#333"},
        "encoding": {"y": y, "x": low, "x2": {"field": "high"}},
    }
    spec = {
        "data": {"values": rows},
        "facet": {"column": {"field": "measure", "title": None}},
        "spec": {"width": 240, "layer": [bar, line]},
        "resolve": {"scale": {"x": "independent"}},
        "config": {"font": "system-ui, sans-serif", "view": {"stroke": None}},
        "padding": 16,
    }
    return vl_convert.vegalite_to_svg(spec, vl_version="5.20")
