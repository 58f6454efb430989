from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cambium.evals.errors import GateBroken
from cambium.evals.statistics import sign_flip_test
from cambium.evals.statistics.permutation import sign_flip_omnibus


def every_sign(num_prompts: int) -> np.ndarray:
    return np.array(list(itertools.product([-1.0, 1.0], repeat=num_prompts)))


def enumerated(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The p-values and family-wise p-values over all 2^P flips."""
    norms = np.sqrt((d**2).sum(axis=0))
    scale = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    observed = np.abs(d.sum(axis=0)) * scale
    flipped = np.abs(every_sign(len(d)) @ d) * scale
    highest = flipped.max(axis=1)[:, None]
    return (flipped >= observed - 1e-9).mean(axis=0), (highest >= observed - 1e-9).mean(axis=0)


def sampling_error(p: np.ndarray, num_flips: int) -> np.ndarray:
    return 5 * np.sqrt(p * (1 - p) / num_flips) + 1 / num_flips


shares = st.lists(
    st.lists(st.sampled_from([-1.0, -0.75, -0.25, 0.0, 0.25, 0.5, 1.0]), min_size=3, max_size=3),
    min_size=2,
    max_size=8,
)


@settings(max_examples=40)
@given(rows=shares)
def test_p_values_are_those_of_every_flip(rows: list[list[float]]) -> None:
    d = np.array(rows)
    found = sign_flip_test(d, num_flips=5000, seed=1)
    p, family_wise = enumerated(d)
    assert (np.abs(found.p_values - p) <= sampling_error(p, 5000)).all()
    assert (np.abs(found.family_wise - family_wise) <= sampling_error(family_wise, 5000)).all()
    assert found.q_values == pytest.approx(stats.false_discovery_control(found.p_values))
    assert (found.family_wise >= found.p_values).all()


def test_continuous_differences_are_those_of_every_flip() -> None:
    d = np.random.default_rng(3).standard_t(2, (7, 4)) + np.array([0, 0.5, 1, 3])
    found = sign_flip_test(d, num_flips=20_000, seed=1)
    p, family_wise = enumerated(d)
    assert (np.abs(found.p_values - p) <= sampling_error(p, 20_000)).all()
    assert (np.abs(found.family_wise - family_wise) <= sampling_error(family_wise, 20_000)).all()
    assert found.statistic == pytest.approx(
        np.abs(d.sum(axis=0)) / np.sqrt((d**2).sum(axis=0)), rel=1e-5
    )


def test_every_flip_counts_and_the_observed_signs_too() -> None:
    d = np.column_stack([np.ones(60), np.zeros(60)])
    found = sign_flip_test(d, num_flips=5000, seed=0)
    assert found.p_values.tolist() == [1 / 5001, 1]
    assert found.family_wise.tolist() == [1 / 5001, 1]
    assert found.statistic == pytest.approx([math.sqrt(60), 0])
    assert found.num_flips == 5000


@given(seed=st.integers(0, 20), scale=st.sampled_from([-1.0, 0.5, 4.0]))
def test_names_of_the_arms_and_units_do_not_matter(seed: int, scale: float) -> None:
    d = np.random.default_rng(seed).integers(-4, 5, (12, 3)) / 4
    found = sign_flip_test(d, num_flips=300, seed=seed)
    other = sign_flip_test(scale * d, num_flips=300, seed=seed)
    assert (found.p_values == other.p_values).all()
    assert (found.family_wise == other.family_wise).all()


def heavy_dependent(generator: np.random.Generator) -> np.ndarray:
    """No change at all, but prompts of very different size and columns that move together."""
    size = generator.pareto(1.5, (25, 1))
    return size * (generator.normal(0, 1, (25, 1)) + generator.normal(0, 0.7, (25, 8)))


def test_without_a_change_p_values_are_uniform() -> None:
    generator = np.random.default_rng(0)
    p = np.array([
        sign_flip_test(heavy_dependent(generator)[:, :1], num_flips=199, seed=i).p_values[0]
        for i in range(600)
    ])  # fmt: skip
    # On a grid of 1/200; spread evenly within its steps for the test.
    smooth = p - generator.random(600) / 200
    assert stats.kstest(smooth, "uniform").pvalue > 0.001
    assert abs((p <= 0.05).sum() - 30) <= 4 * math.sqrt(600 * 0.05 * 0.95)


def test_without_a_change_the_family_rarely_alarms() -> None:
    generator = np.random.default_rng(1)
    family, single = 0, 0
    for i in range(500):
        found = sign_flip_test(heavy_dependent(generator), num_flips=199, seed=i)
        family += bool((found.family_wise <= 0.05).any())
        single += bool((found.p_values <= 0.05).any())
    tolerance = 4 * math.sqrt(500 * 0.05 * 0.95)
    assert abs(family - 25) <= tolerance
    assert single > 25 + tolerance


def test_a_planted_change_is_found_alone() -> None:
    generator = np.random.default_rng(2)
    d = generator.normal(0, 1, (60, 10))
    d[:, 4] += 1
    found = sign_flip_test(d, num_flips=2000, seed=0)
    assert np.nonzero(found.family_wise <= 0.01)[0].tolist() == [4]
    assert found.q_values[4] <= 0.01


def test_no_columns_have_no_p_values() -> None:
    found = sign_flip_test(np.zeros((20, 0)), num_flips=100, seed=0)
    assert found.p_values.shape == found.q_values.shape == found.family_wise.shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_difference_that_is_not_finite_is_broken(bad: float) -> None:
    d = np.random.default_rng(0).normal(0, 1, (20, 3))
    d[3, 1] = bad
    with pytest.raises(GateBroken):
        sign_flip_test(d, num_flips=199, seed=0)
    with pytest.raises(GateBroken):
        sign_flip_omnibus(d @ d.T, num_flips=199, seed=0)


def random_kernel(generator: np.random.Generator, num_prompts: int, shift: float) -> np.ndarray:
    d = generator.standard_t(3, (num_prompts, 4)) + shift
    return d @ d.T


@pytest.mark.parametrize("seed", range(6))
def test_the_omnibus_is_that_of_every_flip(seed: int) -> None:
    h = random_kernel(np.random.default_rng(seed), 8, shift=0.4 * seed)
    off = h - np.diag(np.diag(h))
    signs = every_sign(8)
    sums = np.einsum("fp,pq,fq->f", signs, off, signs)
    p = np.array((sums >= off.sum() - 1e-3).mean())
    found = sign_flip_omnibus(h, num_flips=5000, seed=1)
    assert abs(found - p) <= sampling_error(p, 5000)


def test_the_omnibus_leaves_out_the_diagonal_and_its_argument_alone() -> None:
    h = random_kernel(np.random.default_rng(0), 12, shift=0.3)
    kept = h.copy()
    found = sign_flip_omnibus(h, num_flips=500, seed=0)
    assert (h == kept).all()
    assert sign_flip_omnibus(h + 1000 * np.eye(12), num_flips=500, seed=0) == found


def test_the_omnibus_keeps_its_level_and_has_power() -> None:
    generator = np.random.default_rng(0)
    null, planted = (
        np.array([
            sign_flip_omnibus(random_kernel(generator, 20, shift), num_flips=199, seed=i)
            for i in range(400)
        ])
        for shift in (0.0, 0.6)
    )  # fmt: skip
    assert abs((null <= 0.05).sum() - 20) <= 4 * math.sqrt(400 * 0.05 * 0.95)
    assert stats.kstest(null - generator.random(400) / 200, "uniform").pvalue > 0.001
    assert (planted <= 0.05).mean() > 0.7


def test_nothing_differs_at_all() -> None:
    assert sign_flip_omnibus(np.zeros((15, 15)), num_flips=2500, seed=0) == 1
    assert sign_flip_omnibus(np.ones((30, 30)), num_flips=2500, seed=0) == 1 / 2501
