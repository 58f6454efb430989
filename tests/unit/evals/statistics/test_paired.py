from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cambium.evals.errors import GateBroken
from cambium.evals.statistics import clustered_interval, paired_interval
from cambium.evals.statistics.paired import bootstrap_interval, paired_mde


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


def brute_sandwich(values: np.ndarray, owners: list[str]) -> float:
    """The standard error as a double sum over all pairs of items that share a cluster."""
    residual, total = values - values.mean(), 0.0
    for i, j in itertools.product(range(len(values)), repeat=2):
        total += residual[i] * residual[j] * (owners[i] == owners[j])
    groups = len(set(owners))
    return math.sqrt(max(total, 0.0) * groups / (groups - 1)) / len(values)


items = st.lists(
    st.tuples(st.floats(-10, 10, width=32), st.sampled_from("abcd")), min_size=2, max_size=20
)


@given(items=items.filter(lambda pairs: len({owner for _, owner in pairs}) > 1))
def test_the_clustered_error_is_the_sandwich(items: list[tuple[float, str]]) -> None:
    values, owners = np.array([v for v, _ in items]), [owner for _, owner in items]
    found = clustered_interval(values.tolist(), owners, confidence=0.9)
    reach = stats.t.ppf(0.9, len(set(owners)) - 1) * brute_sandwich(values, owners)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.mean == pytest.approx(reach, rel=1e-6, abs=1e-5)
    assert found.mean - found.low == pytest.approx(reach, rel=1e-6, abs=1e-5)
    assert found.num_items == len(values)


@given(values=st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=30))
def test_clusters_of_one_give_the_paired_interval(values: list[float]) -> None:
    found = clustered_interval(values, [str(i) for i in range(len(values))], confidence=0.95)
    oracle = paired_interval(values, confidence=0.95)
    assert found.low == pytest.approx(oracle.low, rel=1e-6, abs=1e-9)
    assert found.high == pytest.approx(oracle.high, rel=1e-6, abs=1e-9)
    assert found.mde == pytest.approx(oracle.mde, rel=1e-6, abs=1e-9)


def test_the_clustered_bound_covers_where_the_paired_one_does_not() -> None:
    generator = np.random.default_rng(0)
    owners = np.repeat([f"prompt {i}" for i in range(12)], 5)
    draws = np.repeat(generator.normal(0, 1, (1500, 12)), 5, axis=1)
    draws += generator.normal(0, 0.5, draws.shape)
    clustered = np.mean([
        clustered_interval(d, owners.tolist(), confidence=0.95).low < 0 for d in draws
    ])  # fmt: skip
    paired = np.mean([paired_interval(d, confidence=0.95).low < 0 for d in draws])
    assert clustered == pytest.approx(0.95, abs=0.02)
    assert paired < 0.85


@pytest.mark.parametrize(
    ("values", "owners"),
    [([], []), ([1.0, 2.0], ["a", "a"]), ([1.0, math.nan], ["a", "b"])],
)
def test_too_few_clusters_are_broken(values: list[float], owners: list[str]) -> None:
    with pytest.raises(GateBroken):
        clustered_interval(values, owners, confidence=0.95)


def test_the_bootstrap_is_of_every_draw_of_whole_clusters() -> None:
    values, owners = [3.0, 1.0, -2.0, 0.5, 4.0, -1.0], list("aabccd")
    sums: Counter[str] = Counter()
    for value, owner in zip(values, owners, strict=True):
        sums[owner] += value  # pyright: ignore[reportArgumentType]
    sizes = Counter(owners)
    means = np.array([
        sum(sums[c] for c in draw) / sum(sizes[c] for c in draw)
        for draw in itertools.product("abcd", repeat=4)
    ])  # fmt: skip
    low, high = bootstrap_interval(values, owners, confidence=0.9, num_resamples=20_000)
    assert (means < low - 1e-9).mean() < 0.1 + 0.01 and (means <= low + 1e-9).mean() > 0.1 - 0.01
    assert (means > high + 1e-9).mean() < 0.1 + 0.01 and (means >= high - 1e-9).mean() > 0.1 - 0.01


def test_the_bootstrap_agrees_with_the_sandwich_on_many_clusters() -> None:
    generator = np.random.default_rng(1)
    sizes = generator.integers(1, 6, 400)
    owners = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
    values = np.repeat(generator.normal(0.2, 1, 400), sizes) + generator.normal(0, 1, sizes.sum())
    found = clustered_interval(values.tolist(), owners, confidence=0.95)
    low, high = bootstrap_interval(values.tolist(), owners, confidence=0.95)
    width = found.high - found.low
    assert low == pytest.approx(found.low, abs=0.08 * width)
    assert high == pytest.approx(found.high, abs=0.08 * width)
    again = bootstrap_interval(values.tolist(), owners, confidence=0.95)
    other = bootstrap_interval(values.tolist(), owners, confidence=0.95, seed=1)
    assert (low, high) == again != other


@pytest.mark.parametrize(
    ("values", "owners"),
    [([1.0, 2.0], ["a", "a"]), ([1.0, math.nan, 0.0], ["a", "b", "c"])],
)
def test_the_bootstrap_of_one_cluster_is_broken(values: list[float], owners: list[str]) -> None:
    with pytest.raises(GateBroken):
        bootstrap_interval(values, owners, confidence=0.95)


@pytest.mark.parametrize(
    ("discordant", "num_items", "points"),
    [(0.02, 250, 2.5), (0.02, 2000, 0.9), (0.1, 250, 5.6), (0.1, 1000, 2.8)],
)
def test_the_rates_that_would_be_seen(discordant: float, num_items: int, points: float) -> None:
    assert 100 * paired_mde(discordant, num_items) == pytest.approx(points, abs=0.05)
