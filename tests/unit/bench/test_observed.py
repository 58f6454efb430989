"""What watching costs is told from noise: a planted loss is found, and none where none is."""

from __future__ import annotations

import random

import pytest

from cambium.bench.observed import NUM_BLOCKS, blocks_in_turn, paired_ratio

DRIFT = 0.5  # a machine that gets slower by half over the run, which both contenders meet
NOISE = 0.08  # a block's own, larger than what is looked for


def _blocks(seed: int, share: float) -> tuple[list[float], list[float]]:
    draw = random.Random(seed)
    weather = [30 * (1 - DRIFT * i / NUM_BLOCKS) for i in range(NUM_BLOCKS)]
    ours = [w * share * draw.gauss(1, NOISE) for w in weather]
    return ours, [w * draw.gauss(1, NOISE) for w in weather]


def test_a_planted_loss_is_found_in_weather_larger_than_it() -> None:
    ratio, low, high = paired_ratio(*_blocks(seed=1, share=0.88))
    assert low < ratio < high < 0.95


def test_no_loss_is_found_where_there_is_none() -> None:
    held = 0
    for seed in range(200):
        _, low, high = paired_ratio(*_blocks(seed=seed, share=1.0))
        held += low <= 1.0 <= high
    assert held >= 184  # 95 % of 200, less three standard errors


def test_too_few_pairs_say_so() -> None:
    assert paired_ratio([1.0] * 6, [2.0] * 6) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="5 pairs are too few"):
        paired_ratio([1.0] * 5, [2.0] * 5)


def test_every_other_turn_goes_back_so_that_no_contender_is_always_first() -> None:
    order: list[str] = []

    def block(name: str) -> float:
        order.append(name)
        return float(len(order))

    taken = blocks_in_turn({n: lambda n=n: block(n) for n in "abc"}, 2)
    assert order == [*"abc", *"abc", *"cba"]
    assert taken == {"a": [4.0, 9.0], "b": [5.0, 8.0], "c": [6.0, 7.0]}
