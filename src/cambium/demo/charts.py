"""The report's pictures: Vega-Lite specifications rendered to SVG in process."""

from __future__ import annotations

from typing import Any

import vl_convert

_THEME = {
    "background": None,
    "font": "system-ui, sans-serif",
    "axis": {
        "labelColor": "#666",
        "titleColor": "#666",
        "gridColor": "#8884",
        "domainColor": "#8888",
    },
    "legend": {"labelColor": "#666", "titleColor": "#666"},
    "header": {"labelColor": "#666", "titleColor": "#666"},
    "view": {"stroke": None},
}
_MOMENTS = {
    "before": "before",
    "after_learning": "after learning",
    "after_merge": "after the merge",
}
_COLOURS = ["#8a8f98", "#d98c3f", "#2f7d5b"]


def losses(by_domain: dict[str, dict[str, float]]) -> str:
    """Returns an SVG of held-out loss by domain and moment."""
    rows = [
        {"domain": name.replace("_", " "), "moment": _MOMENTS[moment], "loss": value}
        for name, at in by_domain.items()
        for moment, value in at.items()
    ]
    order = list(_MOMENTS.values())
    return _svg(
        {
            "data": {"values": rows},
            "mark": {"type": "bar", "cornerRadiusEnd": 2},
            "width": 520,
            "height": 200,
            "encoding": {
                "x": {"field": "domain", "title": None, "axis": {"labelAngle": 0}},
                "xOffset": {"field": "moment", "sort": order},
                "y": {"field": "loss", "type": "quantitative", "title": "nats per token"},
                "color": {"field": "moment", "sort": order, "title": None,
                          "scale": {"domain": order, "range": _COLOURS}},
            },
        }
    )  # fmt: skip


def curves(by_adapter: dict[str, list[float]]) -> str:
    """Returns an SVG of the training loss of every learning step."""
    rows = [
        {"adapter": name, "step": i + 1, "loss": value}
        for name, values in by_adapter.items()
        for i, value in enumerate(values)
    ]
    return _svg(
        {
            "data": {"values": rows},
            "mark": {"type": "line", "point": {"size": 14}},
            "width": 520,
            "height": 180,
            "encoding": {
                "x": {"field": "step", "type": "quantitative", "title": "learning step"},
                "y": {"field": "loss", "type": "quantitative", "scale": {"zero": False},
                      "title": "nats per token"},
                "color": {"field": "adapter", "title": None,
                          "scale": {"range": ["#2f7d5b", "#b5443c", "#4f6fb3"]}},
            },
        }
    )  # fmt: skip


def looks(views: dict[str, dict[str, Any]], gate: str) -> str:
    """Returns an SVG of one gate's effect and interval at every look, against the bar."""
    rows = []
    bar = 0.0
    for name, view in views.items():
        for measured in view["gates"]:
            if measured["name"] != gate:
                continue
            bar = measured["threshold"]
            for i, look in enumerate(measured["history"]):
                if look["ci"]:
                    rows.append({"look": f"{name}, look {i + 1}", "effect": look["effect"],
                                 "low": look["ci"][0], "high": look["ci"][1],
                                 "verdict": look["verdict"]})  # fmt: skip
    colour = {"field": "verdict", "title": None,
              "scale": {"domain": ["pass", "fail"], "range": ["#2f7d5b", "#b5443c"]}}  # fmt: skip
    y = {"field": "look", "title": None, "sort": None, "axis": {"labelLimit": 200}}
    return _svg(
        {
            "width": 380,
            "height": {"step": 20},
            "layer": [
                {"data": {"values": rows}, "mark": {"type": "rule", "strokeWidth": 3},
                 "encoding": {"y": y, "x": {"field": "low", "type": "quantitative",
                                            "title": "effect (right is better)"},
                              "x2": {"field": "high"}, "color": colour}},
                {"data": {"values": rows}, "mark": {"type": "point", "filled": True, "size": 50},
                 "encoding": {"y": y, "color": colour,
                              "x": {"field": "effect", "type": "quantitative"}}},
                {"data": {"values": [{"bar": bar}]},
                 "mark": {"type": "rule", "strokeDash": [4, 3], "color": "#888"},
                 "encoding": {"x": {"field": "bar", "type": "quantitative"}}},
            ],
        }
    )  # fmt: skip


def _svg(spec: dict[str, Any]) -> str:
    # Room at the sides: browsers set the labels in a slightly wider font than was measured.
    padded = {**spec, "config": _THEME, "padding": 16}
    return vl_convert.vegalite_to_svg(padded, vl_version="5.20")
