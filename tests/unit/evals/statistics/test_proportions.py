from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cambium.evals.errors import GateBroken
from cambium.evals.statistics import mcnemar, rate_bound


def answers(gained: int, lost: int, same: int) -> tuple[list[bool], list[bool]]:
    before = [False] * gained + [True] * lost + [True, False] * same
    after = [True] * gained + [False] * lost + [True, False] * same
    return before, after


def test_mcnemar_by_hand() -> None:
    found = mcnemar(*answers(2, 10, same=7))
    assert (found.gained, found.lost) == (2, 10)
    assert found.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)


@given(gained=st.integers(0, 20), lost=st.integers(0, 20), same=st.integers(0, 5))
def test_mcnemar_is_the_sign_test_of_what_differs(gained: int, lost: int, same: int) -> None:
    found = mcnemar(*answers(gained, lost, same))
    fewer = min(gained, lost)
    oracle = min(1.0, 2 * float(stats.binom.cdf(fewer, gained + lost, 0.5)))
    assert (found.gained, found.lost) == (gained, lost)
    assert found.p_value == pytest.approx(oracle)


def test_nothing_discordant_says_nothing() -> None:
    assert mcnemar([True, False], [True, False]).p_value == 1
    assert mcnemar([], []).p_value == 1


def test_answers_to_other_items_are_no_pairs() -> None:
    with pytest.raises(GateBroken, match="2 and 1"):
        mcnemar([True, False], [True])


@given(num_trials=st.integers(1, 500), share=st.floats(0, 1), confidence=st.floats(0.6, 0.99))
def test_the_bound_is_clopper_and_pearsons(
    num_trials: int, share: float, confidence: float
) -> None:
    events = int(share * num_trials)
    found = rate_bound(events, num_trials, confidence=confidence)
    test = stats.binomtest(events, num_trials, alternative="less")
    oracle = test.proportion_ci(confidence, method="exact").high
    assert found == pytest.approx(oracle, rel=1e-6)
    if events < num_trials:
        assert stats.binom.cdf(events, num_trials, found) == pytest.approx(1 - confidence)


def test_no_event_is_three_over_n() -> None:
    assert rate_bound(0, 1000) == pytest.approx(3 / 1000, rel=0.01)
    assert rate_bound(0, 50) == pytest.approx(1 - 0.05 ** (1 / 50))
    assert rate_bound(0, 299) < 0.01 < rate_bound(0, 298)


@pytest.mark.parametrize(("events", "num_trials"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_broken(events: int, num_trials: int) -> None:
    with pytest.raises(GateBroken):
        rate_bound(events, num_trials)
