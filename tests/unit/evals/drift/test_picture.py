"""The picture: it parses, every merge is named, the suspect and the bound are drawn."""

from __future__ import annotations

from xml.etree import ElementTree

from tests.unit.evals.drift.series import walk

from cambium.evals.drift import CumulativeBound
from cambium.evals.drift.picture import picture

STEPS = [0.01, -0.02, 0.015, 0.0, -0.01, 0.9, 0.02, -0.015]
RED, SHADE = "#a01c1c", "#f3d9d9"


def test_the_picture_names_every_merge() -> None:
    svg = picture(walk(STEPS, error=0.01), {"bias.origin": CumulativeBound(step=0.1, total=0.5)})
    root = ElementTree.fromstring(svg)
    words = {"".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")}
    assert {f"{i} law" for i in range(1, 9)} <= words
    assert any(word.startswith("bias: origin") for word in words)
    assert {"from the bare base", "from the parent"} <= words


def test_the_suspect_and_the_bound_are_drawn_only_where_there_are_any() -> None:
    planted = walk(STEPS, error=0.01)
    equal = walk([0.01, -0.02, 0.015, 0.0, -0.01, 0.005, 0.02, -0.015], error=0.01)
    bound = {"bias.origin": CumulativeBound(step=0.1, total=0.5)}
    assert SHADE in picture(planted, {})
    assert SHADE not in picture(equal, {})
    assert RED not in picture(equal, {})
    assert RED in picture(equal, bound)
