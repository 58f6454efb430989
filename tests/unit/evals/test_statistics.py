from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cambium.core.errors import GateBroken
from cambium.evals.statistics import paired_interval


@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=50),
    confidence=st.sampled_from([0.8, 0.95, 0.99]),
)
def test_it_is_students_interval(values: list[float], confidence: float) -> None:
    found = paired_interval(values, confidence=confidence)
    if np.std(values) < 1e-6:
        assert found.low == pytest.approx(found.mean, abs=1e-4)
        return
    oracle = stats.ttest_1samp(values, 0.0).confidence_interval(2 * confidence - 1)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.low == pytest.approx(oracle.low, rel=1e-6, abs=1e-9)
    assert found.high == pytest.approx(oracle.high, rel=1e-6, abs=1e-9)
    assert found.num_items == len(values)


def test_its_lower_end_is_the_one_sided_bound() -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(0.3, 1.0, (4000, 12))
    covered = np.mean([paired_interval(d, confidence=0.95).low < 0.3 for d in draws])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_the_detectable_effect_is_seen_in_four_of_five() -> None:
    generator = np.random.default_rng(0)
    mde = float(np.mean([
        paired_interval(d, confidence=0.95).mde for d in generator.normal(0, 1, (2000, 40))
    ]))  # fmt: skip
    seen = np.mean([
        paired_interval(d, confidence=0.95).low > 0 for d in generator.normal(mde, 1, (2000, 40))
    ])  # fmt: skip
    assert seen == pytest.approx(0.8, abs=0.03)


def test_no_difference_is_an_interval_of_no_width() -> None:
    found = paired_interval([0.0] * 5, confidence=0.95)
    assert (found.mean, found.low, found.high, found.mde) == (0, 0, 0, 0)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf, 2.0]])
def test_what_cannot_be_judged_is_broken(values: list[float]) -> None:
    with pytest.raises(GateBroken):
        paired_interval(values, confidence=0.95)
