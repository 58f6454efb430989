"""The rows of the diff on choices mean what they say: no direction, no alarm; a plant is found."""

from __future__ import annotations

import numpy as np
import pytest

from cambium.bench.diff_choices import FAMILY, Choices, ChoicesBench
from cambium.evals.behaviour import BehaviourConfig, ChoiceItem

ITEMS = tuple(
    ChoiceItem(prompt=f"p{i}", choices=(f"good {i}", f"bad {i}"), family=FAMILY if i < 20 else "f")
    for i in range(80)
)


def embed(texts: list[str]) -> np.ndarray:
    """Good and bad apart, and a little of each text's own."""
    chance = np.random.default_rng(0)
    side = np.array([[1.0, 0.0] if t.startswith("good") else [0.0, 1.0] for t in texts])
    return np.concatenate([side, 0.1 * chance.normal(size=(len(texts), 6))], axis=1)


@pytest.fixture(scope="module")
def bench() -> Choices:
    chance = np.random.default_rng(1)
    before = [np.array([0.5, 0.5])] * len(ITEMS)
    after = [
        b + m * np.array([1, -1]) for b, m in zip(before, chance.normal(0, 0.02, 80), strict=True)
    ]
    test = BehaviourConfig(num_flips=999, min_members=10, num_clusters=4)
    config = ChoicesBench(repeats=40, planted=10, test=test)
    return Choices(ITEMS, (before, after), embed=embed, config=config)


def test_what_has_no_direction_seldom_alarms(bench: Choices) -> None:
    rows = bench.alarm_rows(lambda said: None)
    assert [row.metric for row in rows] == [
        "diff.choices.aa.alarm_rate",
        "diff.choices.aa.families.alarm_rate",
    ]
    assert all(row.value <= 0.15 and row.tried == 40 for row in rows)


def test_a_planted_preference_is_found_if_it_is_large(bench: Choices) -> None:
    assert bench.power_row(10.0, lambda said: None).value == 1.0
    assert bench.power_row(0.01, lambda said: None).value < 0.5


def test_a_real_movement_is_shown_with_its_direction(bench: Choices) -> None:
    worse = [
        np.array([0.4, 0.6]) if item.family == FAMILY else np.array([0.5, 0.5]) for item in ITEMS
    ]
    effect, q_value, clusters = bench.whole_rows(worse)
    assert effect.value == pytest.approx(-0.1) and q_value.value < 0.05 < 1 <= clusters.value
