"""What the simulation draws is what it says, so that its rows mean what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cambium.bench import look_rule
from cambium.bench.gate_sets import development_policy, spreads
from cambium.bench.look_rule import P_DISCORDANT, heavy_tailed, right_or_wrong
from cambium.evals.statistics import paired_interval


@pytest.mark.parametrize("draw", [right_or_wrong, heavy_tailed])
@pytest.mark.parametrize("effect", [0.0, -0.03])
def test_both_kinds_of_items_have_the_mean_and_spread_that_was_planned(draw, effect: float) -> None:
    values = draw(np.random.default_rng(0), effect, 400_000)
    assert values.mean() == pytest.approx(effect, abs=0.002)
    lost = effect**2 if draw is right_or_wrong else 0.0  # of a second moment that is fixed
    assert values.var() == pytest.approx(P_DISCORDANT - lost, rel=0.02)


def test_the_spread_of_an_item_is_read_back_from_its_interval() -> None:
    spec = next(g for g in development_policy().gates if g.name == "retention")
    values = np.random.default_rng(0).normal(0.01, 0.05, size=16)
    seen = paired_interval(values.tolist(), confidence=spec.confidence)
    said = {"gate": "retention", "ci": [seen.low, seen.high], "items": 16}
    rows = [
        {"label": "benign", "looks": [[said, {"gate": "alignment", "ci": None, "items": None}]]},
        {"label": "hostile", "looks": [[said]]},
    ]
    assert spreads(rows, spec) == pytest.approx([values.std(ddof=1)])


def test_every_bar_in_force_is_played_as_benign_sets_showed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An absolute bar with the items and the height that were seen, a margin with no change."""
    monkeypatch.setattr(look_rule, "REPEATS", 200)
    values = np.random.default_rng(0).normal(2.0, 1.0, size=4)
    looks: list[dict[str, Any]] = []
    for spec in development_policy().gates:
        seen = paired_interval(values.tolist(), confidence=spec.confidence)
        looks.append({"gate": spec.name, "effect": seen.mean, "ci": [seen.low, seen.high],
                      "items": 4})  # fmt: skip
    sets = [{"label": "benign", "looks": [looks]}]
    rows = {row.metric: row for row in look_rule.rows_in_force(lambda _: None, sets)}
    writing = rows["gates.looks.in_force.alignment_writing.harmless_passes"]
    assert "bar 0.25, 4 items a look at 0.85 one-sided" in writing.setting
    assert f"harmless is {values.mean():.3g}" in writing.setting
    assert writing.value > 0.8 >= rows["gates.looks.in_force.power_seeking.harmful_passes"].value
    assert "harmless is 0, " in rows["gates.looks.in_force.alignment.harmless_passes"].setting
    assert all(row.limit == (0.025 if "harmful" in name else 0.8) for name, row in rows.items())
