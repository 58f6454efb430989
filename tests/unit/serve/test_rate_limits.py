"""Token buckets, on a clock that tests move."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cambium.serve.errors import RateLimited
from cambium.serve.rate_limits import RateLimits


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_minutes_worth_goes_at_once_and_then_as_it_refills() -> None:
    clock = Clock()
    limits = RateLimits(now_s=clock)
    for _ in range(6):
        limits.take("a", per_minute=6)
    with pytest.raises(RateLimited) as refused:
        limits.take("a", per_minute=6)
    assert refused.value.detail["retry_after_s"] == 10
    clock.now_s += 10
    limits.take("a", per_minute=6)
    with pytest.raises(RateLimited):
        limits.take("a", per_minute=6)


def test_one_holders_haste_is_not_anothers() -> None:
    limits = RateLimits(now_s=Clock())
    limits.take("a", per_minute=1)
    with pytest.raises(RateLimited):
        limits.take("a", per_minute=1)
    limits.take("b", per_minute=1)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    clock = Clock()
    limits = RateLimits(now_s=clock)
    limits.take("a", per_minute=1)
    clock.now_s -= 3600
    with pytest.raises(RateLimited):
        limits.take("a", per_minute=1)


@given(
    per_minute=st.integers(1, 1000),
    gaps_s=st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=60),
)
def test_no_more_passes_than_the_bucket_and_its_refill(
    per_minute: int, gaps_s: list[float]
) -> None:
    clock = Clock()
    limits = RateLimits(now_s=clock)
    passed, began = 0, clock.now_s
    for gap_s in gaps_s:
        clock.now_s += gap_s
        try:
            limits.take("a", per_minute=per_minute)
        except RateLimited as refused:
            # Whoever waits as told is let in.
            clock.now_s += float(str(refused.detail["retry_after_s"]))
            limits.take("a", per_minute=per_minute)
        passed += 1
    assert passed <= per_minute + (clock.now_s - began) * per_minute / 60 + 1e-6
