"""The benchmark of the diff must not cheat: arms share prompts and no text; plants lie in place."""

from __future__ import annotations

import numpy as np
import pytest

from cambium.bench.diff import naive_q
from cambium.bench.diff_pool import Pool
from cambium.evals.behaviour.clusters import Clusters

# Each vector says which prompt and sample it is.
POOL = Pool(
    vectors=np.stack(np.meshgrid(np.arange(20.0), np.arange(6.0), indexing="ij"), axis=-1).astype(
        np.float32
    )
)


@pytest.mark.parametrize(("prompts", "samples"), [(20, 1), (10, 3)])
def test_arms_share_prompts_and_no_text(prompts: int, samples: int) -> None:
    a, b = POOL.arms(prompts, samples, seed=3)
    assert a.shape == b.shape == (prompts, samples, 2)
    for own, other in zip(a, b, strict=True):
        assert len({*own[:, 0], *other[:, 0]}) == 1
        assert len({*own[:, 1], *other[:, 1]}) == 2 * samples
    assert len({prompt for prompt, _ in a[:, 0]}) == prompts


def test_arms_of_other_seeds_are_other_texts() -> None:
    assert not np.array_equal(POOL.arms(20, 1, seed=0)[0], POOL.arms(20, 1, seed=1)[0])
    assert np.array_equal(POOL.arms(20, 1, seed=0)[0], POOL.arms(20, 1, seed=0)[0])


def test_unshared_arms_have_no_prompt_in_common() -> None:
    a, b = POOL.unshared(seed=0, samples=2)
    assert not {*a[:, :, 0].ravel()} & {*b[:, :, 0].ravel()}


def test_a_plant_lies_where_it_is_said_to_lie() -> None:
    planted = Pool(vectors=np.full((20, 1, 2), -1, dtype=np.float32))
    _, arm = POOL.arms(20, 2, seed=0)
    where = planted.put_into(arm, 20, share=0.2, seed=0)
    assert where.sum() == 8
    assert np.array_equal(where, arm[:, :, 0] == -1)


def test_the_naive_test_is_fishers_on_pooled_counts() -> None:
    before, after = np.zeros((30, 1), dtype=int), np.zeros((30, 1), dtype=int)
    after[:12] = 1
    clusters = Clusters(before=before, after=after, centres=np.zeros((2, 1)),
                        members=np.array([48, 12]))  # fmt: skip
    q = naive_q(clusters, [0, 1])
    assert q[0] == q[1] < 0.001
