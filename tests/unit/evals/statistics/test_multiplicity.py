from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cambium.evals.statistics import benjamini_hochberg, e_bh

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=30)
e_values = st.lists(st.sampled_from([0.0, 1.0, 5.0, 20.0, 40.0, 60.0, 100.0, 1e9]), max_size=8)


@given(p=p_values)
def test_q_values_are_scipys(p: list[float]) -> None:
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))


@given(p=p_values, seed=st.integers(0, 99))
def test_q_values_keep_to_their_tests(p: list[float], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(p))
    assert benjamini_hochberg(np.array(p)[order]) == pytest.approx(benjamini_hochberg(p)[order])


def test_no_tests_have_no_q_values() -> None:
    assert benjamini_hochberg([]).shape == (0,)
    assert e_bh([], alpha=0.05).shape == (0,)


def test_false_discoveries_stay_below_their_share() -> None:
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        z = generator.normal(0, 1, 20)
        z[:8] += 3
        rejected = benjamini_hochberg(stats.norm.sf(z)) <= 0.2
        shares.append(rejected[8:].sum() / max(rejected.sum(), 1))
    # Of 20 tests 12 are null: the share is 0.2 * 12 / 20 exactly.
    assert np.mean(shares) == pytest.approx(0.12, abs=0.01)


def largest_self_consistent(e: list[float], alpha: float) -> set[int]:
    """By enumeration: the largest set whose every member is at least n / (alpha * its size)."""
    n, best = len(e), set[int]()
    for chosen in range(2**n):
        members = {i for i in range(n) if chosen >> i & 1}
        if members and all(e[i] * alpha * len(members) >= n for i in members):
            best = max(best, members, key=len)
    return best


@given(e=e_values, alpha=st.sampled_from([0.05, 0.25, 1.0]))
def test_e_bh_rejects_the_largest_self_consistent_set(e: list[float], alpha: float) -> None:
    found = set(np.nonzero(e_bh(e, alpha=alpha))[0].tolist())
    assert found == largest_self_consistent(e, alpha)


def test_e_bh_holds_whatever_the_dependence() -> None:
    generator = np.random.default_rng(0)
    alarms = []
    for _ in range(4000):
        # All ten are the same bet, the worst case: ten times 1 / alpha with probability alpha.
        win = generator.random() < 0.1
        alarms.append(e_bh([10.0 if win else 0.0] * 10, alpha=0.1).any())
    assert np.mean(alarms) == pytest.approx(0.1, abs=0.015)


def test_e_bh_is_not_helped_by_what_is_not_a_number() -> None:
    assert not e_bh([20.0, 1.0], alpha=0.05).any()
    assert not e_bh([20.0, math.nan], alpha=0.05).any()
