"""The cumulative comparison: small steps that each pass, and the bound on their sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from tests.unit.evals.drift.series import reading, revision, walk

from cambium.core.errors import DataError
from cambium.evals.drift import CumulativeBound, DriftSeries, cumulative_verdict, verdict_json
from cambium.evals.drift.cumulative import spent

BOUND = CumulativeBound(step=0.1, total=0.3)


def test_ten_small_steps_trip_before_the_tenth_though_each_passes() -> None:
    verdict = cumulative_verdict(walk([0.05] * 10, error=0.01), "bias.origin", BOUND)
    assert all(look.step_passes for look in verdict.looks)
    assert verdict.steps_passed
    # Look k trips once 0.05 k + t(alpha_k) * error reaches 0.3: by hand, that is k = 6.
    by_hand = next(
        k for k in range(1, 11)
        if 0.05 * k + stats.t.ppf(1 - 6 * 0.05 / (math.pi * k) ** 2, 30) * 0.01 >= 0.3
    )  # fmt: skip
    assert verdict.tripped_at == by_hand == 6
    assert verdict.proven_at == 7
    assert not verdict.ok


def test_steps_that_cancel_do_not_trip() -> None:
    verdict = cumulative_verdict(walk([0.05, -0.05] * 5, error=0.01), "bias.origin", BOUND)
    assert verdict.ok
    assert verdict.tripped_at is None


def test_no_change_at_all_never_trips() -> None:
    assert cumulative_verdict(walk([0.0] * 10, error=0.0), "bias.origin", BOUND).ok


def test_a_fall_is_harm_where_less_is_worse() -> None:
    series = walk([-0.05] * 10, error=0.01, direction="down")
    assert cumulative_verdict(series, "bias.origin", BOUND).tripped_at == 6
    risen = walk([0.05] * 10, error=0.01, direction="down")
    assert cumulative_verdict(risen, "bias.origin", BOUND).ok


def test_a_measure_that_was_not_taken_trips() -> None:
    verdict = cumulative_verdict(walk([0.0] * 3, error=0.0), "bias.unheard", BOUND)
    assert verdict.tripped_at == 1
    assert verdict.looks[0].total_upper is None
    assert verdict_json(verdict)["ok"] is False


def test_an_empty_series_is_not_ok() -> None:
    assert not cumulative_verdict(DriftSeries(), "bias.origin", BOUND).ok


def test_one_step_over_its_own_margin_is_said() -> None:
    series = walk([0.05, 0.2, 0.05, 0.05], error=0.01)
    assert not cumulative_verdict(series, "bias.origin", BOUND).steps_passed


def test_spending_never_exceeds_alpha() -> None:
    parts = [spent(k, 0.05) for k in range(1, 10_000)]
    assert sum(parts) < 0.05
    assert sum(parts) > 0.0499
    assert parts[0] > parts[1] > parts[2]


def test_false_alarms_over_many_looks_on_the_same_items_stay_below_alpha() -> None:
    # A line whose truth is exactly the bound may be called within it at any look in 5 % of runs.
    generator = np.random.default_rng(0)
    num_runs, num_looks, num_items = 400, 20, 40
    wrong = 0
    for _ in range(num_runs):
        shared = generator.normal(size=num_items)
        passed = False
        for k in range(1, num_looks + 1):
            values = 0.3 + 0.1 * (0.8 * shared + 0.6 * generator.normal(size=num_items))
            error = values.std(ddof=1) / math.sqrt(num_items)
            one = reading(values.mean(), error, degrees=num_items - 1)
            passed |= one.harm_interval(spent(k, 0.05))[1] < 0.3
        wrong += passed
    # At a fixed 5 % a look it would be near one in three.
    assert wrong / num_runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / num_runs)


def test_a_bound_must_be_positive() -> None:
    with pytest.raises(DataError, match="above zero"):
        cumulative_verdict(DriftSeries(), "bias.origin", CumulativeBound(step=0.0, total=1.0))


def test_revisions_only_append() -> None:
    series = walk([0.0] * 3, error=0.1)
    with pytest.raises(DataError, match="does not follow"):
        series.appended(revision(3, 0.0, 0.0, error=0.1))
    with pytest.raises(DataError, match="another base"):
        series.appended(revision(4, 0.0, 0.0, error=0.1, base="other"))


def test_a_series_reads_back_from_json() -> None:
    series = walk([0.1, 0.2], error=0.1)
    assert DriftSeries.from_json(series.to_json()) == series
    with pytest.raises(DataError, match="no drift"):
        DriftSeries.from_json([{"revision": 1}])
