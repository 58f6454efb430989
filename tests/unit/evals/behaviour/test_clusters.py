from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cambium.evals.behaviour.clusters import (
    Clusters,
    cluster_blind,
    share_test,
    smallest_new_share,
)
from cambium.evals.behaviour.diff import BehaviourConfig, compare, pair_kernel
from cambium.evals.statistics import sign_flip_test
from cambium.evals.statistics.permutation import sign_flip_omnibus

CONFIG = BehaviourConfig(num_clusters=8, min_members=5, num_flips=800)


def two_arms(
    generator: np.random.Generator, *, num_prompts: int = 40, num_samples: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """No change, but what is written depends strongly on the prompt: it has a favourite topic."""
    shape = (num_prompts, num_samples)
    topics = 3 * generator.normal(0, 1, (6, 8))
    favourite = generator.integers(0, 6, (num_prompts, 1))
    arms = []
    for _ in range(2):
        strays = generator.random(shape) < 0.4
        chosen = np.where(strays, generator.integers(0, 6, shape), favourite)
        arms.append(topics[chosen] + generator.normal(0, 1, (*shape, 8)))
    return arms[0].astype(np.float32), arms[1].astype(np.float32)


def plant(after: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Replaces a share of texts with something nobody wrote before."""
    chosen = generator.random(after.shape[:2]) < share
    new = np.full(8, 12.0) + 0.5 * generator.normal(0, 1, after.shape)
    return np.where(chosen[:, :, None], new, after).astype(np.float32)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), whole_prompts=st.booleans(), coarse=st.booleans())
def test_whoever_wrote_it_the_clusters_are_the_same(
    seed: int, whole_prompts: bool, coarse: bool
) -> None:
    generator = np.random.default_rng(seed)
    before, after = two_arms(generator, num_prompts=15)
    if coarse:  # many vectors that begin alike
        before, after = np.round(before / 6), np.round(after / 6)
    swap = generator.random((15, 1 if whole_prompts else 2)) < 0.5
    swap = np.broadcast_to(swap, (15, 2))
    mixed = [np.where(swap[:, :, None], x, y) for x, y in ((after, before), (before, after))]
    one = cluster_blind(before, after, num_clusters=5, seed=0)
    two = cluster_blind(*mixed, num_clusters=5, seed=0)
    assert (one.centres == two.centres).all() and (one.members == two.members).all()
    assert (two.before == np.where(swap, one.after, one.before)).all()
    assert (two.after == np.where(swap, one.before, one.after)).all()
    if whole_prompts:
        signs = np.where(swap[:, :1], -1, 1)
        assert (two.differences() == signs * one.differences()).all()


def test_each_text_is_in_its_own_cluster() -> None:
    before, after = two_arms(np.random.default_rng(0))
    found = cluster_blind(before, after, num_clusters=6, seed=0)
    for vectors, labels in ((before, found.before), (after, found.after)):
        distance = ((vectors[:, :, None] - found.centres) ** 2).sum(axis=-1)
        assert (labels == distance.argmin(axis=-1)).mean() > 0.98  # max_iter may stop it early
    both = np.concatenate([found.before, found.after]).ravel()
    assert found.members.tolist() == [(both == k).sum() for k in range(6)]


def test_fewer_distinct_texts_than_clusters_are_no_error() -> None:
    before = np.eye(3, dtype=np.float32)[np.arange(12).reshape(6, 2) % 3]
    found = cluster_blind(before, before[:, ::-1], num_clusters=50, seed=0)
    assert len(found.centres) == 3
    assert found.members.sum() == 24
    same = np.ones((6, 2, 3), dtype=np.float32)
    assert cluster_blind(same, same, num_clusters=50, seed=0).members.tolist() == [24]


def by_hand() -> Clusters:
    return Clusters(
        before=np.array([[0, 0], [0, 1], [2, 2]]),
        after=np.array([[0, 1], [1, 1], [2, 2]]),
        centres=np.zeros((3, 2)),
        members=np.array([4, 4, 4]),
    )


def test_differences_are_the_change_of_share_per_prompt() -> None:
    assert by_hand().differences().tolist() == [[-0.5, 0.5, 0], [-0.5, 0.5, 0], [0, 0, 0]]


@given(seed=st.integers(0, 50))
def test_shares_only_move(seed: int) -> None:
    generator = np.random.default_rng(seed)
    before, after = generator.integers(0, 4, (2, 9, 3))
    d = Clusters(
        before=before, after=after, centres=np.zeros((4, 2)), members=np.ones(4)
    ).differences()
    assert d.sum(axis=1) == pytest.approx(0, abs=1e-6)
    assert d.mean(axis=0) == pytest.approx(
        [(after == k).mean() - (before == k).mean() for k in range(4)], abs=1e-6
    )


def test_effect_error_and_interval_are_of_the_prompts() -> None:
    before, after = two_arms(np.random.default_rng(1), num_prompts=200)
    clusters = cluster_blind(before, after, num_clusters=4, seed=0)
    test = share_test(clusters, min_members=1, num_flips=200, seed=0)
    d = clusters.differences().astype(float)
    error = d.std(axis=0, ddof=1) / math.sqrt(200)
    assert test.effect == pytest.approx(d.mean(axis=0), abs=1e-6)
    assert test.error == pytest.approx(error, rel=1e-4)
    assert test.low == pytest.approx(test.effect - 1.96 * error, abs=0.25 * error.max())
    assert test.high == pytest.approx(test.effect + 1.96 * error, abs=0.25 * error.max())
    assert (
        test.flips.p_values.tolist() == sign_flip_test(d, num_flips=200, seed=0).p_values.tolist()
    )


def test_small_clusters_are_not_tested() -> None:
    clusters = Clusters(
        before=np.array([[0], [0], [0], [1]]),
        after=np.array([[0], [2], [2], [1]]),
        centres=np.zeros((3, 2)),
        members=np.array([4, 2, 2]),
    )
    assert share_test(clusters, min_members=3, num_flips=50, seed=0).tested.tolist() == [0]
    assert share_test(clusters, min_members=2, num_flips=50, seed=0).tested.tolist() == [0, 1, 2]
    none = share_test(clusters, min_members=99, num_flips=50, seed=0)
    assert none.tested.shape == none.effect.shape == none.low.shape == none.error.shape == (0,)


def test_without_a_change_the_diff_rarely_finds_one() -> None:
    generator = np.random.default_rng(0)
    runs, single = 150, []
    alarms = blocking = omnibus = 0
    for _ in range(runs):
        before, after = two_arms(generator)
        _, test = compare(before, after, config=CONFIG)
        alarms += bool((test.flips.q_values <= 0.05).any())
        blocking += bool((test.flips.family_wise <= 0.05).any())
        kernel = pair_kernel(before.mean(axis=1), after.mean(axis=1))
        omnibus += sign_flip_omnibus(kernel, num_flips=199, seed=0) <= 0.05
        single.extend(test.flips.p_values.tolist())
    most = stats.binom.ppf(0.999, runs, 0.05)
    assert alarms <= most and blocking <= most and omnibus <= most
    # They are not merely shy; shares of so few texts tie often, which keeps it below 5 %.
    assert 0.01 < np.mean(np.array(single) <= 0.05) < 0.06


def test_a_planted_behaviour_is_found() -> None:
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(20):
        before, after = two_arms(generator, num_prompts=80)
        after = plant(after, 0.15, generator)
        clusters, test = compare(before, after, config=CONFIG)
        best = int(test.flips.statistic.argmax())
        is_planted = clusters.centres[test.tested[best]].min() > 8
        found += is_planted and test.effect[best] > 0 and test.flips.family_wise[best] <= 0.05
    assert found >= 18


def test_a_planted_shift_is_seen_by_the_omnibus() -> None:
    generator = np.random.default_rng(0)
    seen = 0
    for _ in range(20):
        before, after = two_arms(generator, num_prompts=60)
        kernel = pair_kernel(before.mean(axis=1), after.mean(axis=1) + 0.6)
        seen += sign_flip_omnibus(kernel, num_flips=199, seed=0) <= 0.05
    assert seen >= 16


def test_the_pair_kernel_by_hand() -> None:
    before, after = np.random.default_rng(0).normal(0, 1, (2, 5, 3))
    pooled = np.concatenate([before, after])
    pairs = list(itertools.combinations(range(10), 2))
    width = np.median([((pooled[i] - pooled[j]) ** 2).sum() for i, j in pairs])

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-((a - b) ** 2).sum() / width)

    found = pair_kernel(before, after)
    for p, q in itertools.product(range(5), repeat=2):
        oracle = k(before[p], before[q]) + k(after[p], after[q])
        oracle -= k(before[p], after[q]) + k(after[p], before[q])
        assert found[p, q] == pytest.approx(oracle)


@pytest.mark.parametrize("num_equal", [0, 50, 60])
def test_swapping_a_prompts_arms_only_changes_its_sign(num_equal: int) -> None:
    """Also where most texts are one and the same, so that the median distance is none."""
    before, after = np.random.default_rng(0).normal(0, 1, (2, 60, 16))
    before[:num_equal] = after[:num_equal] = before[0]
    swap = np.random.default_rng(1).random(60) < 0.5
    mixed = [np.where(swap[:, None], x, y) for x, y in ((after, before), (before, after))]
    signs = np.where(swap, -1, 1)
    expected = pair_kernel(before, after) * signs[:, None] * signs
    assert pair_kernel(*mixed) == pytest.approx(expected, abs=1e-9)
    assert np.isfinite(expected).all()


@pytest.mark.parametrize(("num_texts", "num_tested"), [(100, 10), (400, 40), (1000, 100)])
def test_the_smallest_new_share_is_found_in_four_of_five(num_texts: int, num_tested: int) -> None:
    share = smallest_new_share(num_texts, num_tested=num_tested)
    generator = np.random.default_rng(0)

    def found_share(share: float) -> float:
        found = 0
        for i in range(300):
            new = generator.binomial(num_texts, share)  # prompts without it flip nothing
            flips = sign_flip_test(np.ones((new, 1)), num_flips=10_000, seed=i)
            found += flips.p_values[0] * num_tested <= 0.05
        return found / 300

    assert 0.7 < found_share(share) < 0.9
    assert found_share(0.6 * share) < 0.5


def test_the_smallest_new_share_by_hand() -> None:
    # 2^(1 - m) <= 5 % / 10 needs m = 9, and flips at random one more, of which 9 would not do.
    share = smallest_new_share(200, num_tested=10)
    assert stats.binom.sf(9, 200, share) == pytest.approx(0.8)
    assert smallest_new_share(2000, num_tested=10) < share
    assert smallest_new_share(200, num_tested=100) > share
    assert smallest_new_share(9, num_tested=10) == 1
    assert smallest_new_share(200, num_tested=0) < share
