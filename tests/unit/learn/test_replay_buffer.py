from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cambium.core.canonical import canonical_json
from cambium.core.errors import ConsentMissing, DataError
from cambium.learn.replay_buffer import BufferConfig, ReplayBuffer, ReplayRow


def row(key: str, *, source: str = "s", loss: float = 1.0, size: int = 100, novelty: float = 0.0) -> ReplayRow:  # fmt: skip  # noqa: E501
    return ReplayRow(key=key, pointer=f"blob-{key}", source=source, consent="given",
                     num_tokens=size, loss=loss, novelty=novelty, embedding=(0.6, 0.8))  # fmt: skip


def filled(number: int, config: BufferConfig, *, sources: int = 10, hostile: float = 0.0) -> ReplayBuffer:  # fmt: skip  # noqa: E501
    """A buffer after `number` rows; a share of them is from one hostile source, of high loss."""
    buffer = ReplayBuffer(config=config)
    chance = np.random.default_rng(0)
    for i in range(number):
        bad = chance.random() < hostile
        source = "enemy" if bad else f"source-{i % sources}"
        buffer.admit(row(f"{source}-{i}", source=source, loss=20.0 if bad else 1 + chance.random()))
    return buffer


def tokens(buffer: ReplayBuffer, **of: object) -> int:
    return sum(r.num_tokens for r in buffer.rows.values()
               if all(getattr(r, k) == v for k, v in of.items()))  # fmt: skip


def test_without_consent_nothing_comes_in() -> None:
    buffer = ReplayBuffer()
    with pytest.raises(ConsentMissing):
        buffer.admit(ReplayRow(key="k", pointer="p", source="s", consent="", num_tokens=5))
    assert not buffer.rows and buffer.tried == 0


def test_withdrawn_consent_takes_the_row_out() -> None:
    buffer = filled(40, BufferConfig())
    assert buffer.forget(lambda r: r.source == "source-3") == 4
    assert not [r for r in buffer.rows.values() if r.source == "source-3"]


def test_weights_undo_the_drawing() -> None:
    # E_P[w] = 1 at beta = 1, and no weight exceeds 1 / floor.
    buffer = filled(200, BufferConfig())
    rows = sorted(buffer.rows.values(), key=lambda r: r.key)
    shares = buffer.shares(rows)
    weights = 1 / (len(rows) * shares)
    assert float(shares.sum()) == pytest.approx(1)
    assert float((shares * weights).sum()) == pytest.approx(1)
    assert float(weights.max()) <= 1 / buffer.config.floor
    drawn = buffer.draw(5000, seed=1)
    estimate = np.mean([w * r.loss for r, w in drawn])
    assert estimate == pytest.approx(np.mean([r.loss for r in rows]), rel=0.03)


def test_the_surprising_is_drawn_more_often_but_not_alone() -> None:
    buffer = ReplayBuffer(config=BufferConfig(max_replays=10**9))
    for i in range(50):
        buffer.admit(row(f"r{i:02}", source=f"s{i}", loss=3.0 if i < 5 else 1.0))
    buffer.admit(row("huge", source="h", loss=1e9))
    drawn = [r.key for r, _ in buffer.draw(20_000, seed=0)]
    often, seldom = drawn.count("r01"), drawn.count("r30")
    assert often / seldom == pytest.approx(0.8 * 3**0.6 / 1 + 0.2, rel=0.25)
    assert drawn.count("huge") < 0.1 * len(drawn)
    assert set(drawn) == set(buffer.rows)


def test_novelty_counts_and_age_fades() -> None:
    buffer = ReplayBuffer(config=BufferConfig(half_life=10))
    buffer.admit(row("old", loss=2.0))
    fresh = buffer.priority(buffer.rows["old"])
    for i in range(10):
        buffer.admit(row(f"n{i}"))
    assert buffer.priority(buffer.rows["old"]) == pytest.approx(fresh / 2)
    novel = row("a", novelty=0.5)
    assert buffer.priority(novel) == pytest.approx(1.5 * buffer.priority(row("b")))


def test_rows_that_were_drawn_too_often_go() -> None:
    buffer = ReplayBuffer(config=BufferConfig(max_replays=3))
    buffer.admit(row("only"))
    for _ in range(2):  # once a lesson, however often a lesson goes through it
        assert len(buffer.draw(5, seed=0)) == 5 and buffer.rows
    assert len(buffer.draw(5, seed=0)) == 5
    assert not buffer.rows and buffer.draw(5, seed=0) == []


@pytest.mark.parametrize("hostile", [50, 1000, 4000])
def test_many_small_rows_of_one_source_are_not_drawn_more_than_its_share(hostile: int) -> None:
    buffer = ReplayBuffer(config=BufferConfig(max_tokens=50_000))
    for i in range(60):
        assert buffer.admit(row(f"honest-{i:02}", source=f"s{i % 6}", size=100, loss=1.0))
    for i in range(hostile):
        assert buffer.admit(row(f"flood-{i:04}", source="enemy", size=3, loss=4.0))
    rows = sorted(buffer.rows.values(), key=lambda r: r.key)
    shares = buffer.shares(rows)
    assert shares.sum() == pytest.approx(1)
    drawn = sum(s for r, s in zip(rows, shares, strict=True) if r.source == "enemy")
    assert drawn <= buffer.config.source_share + 1e-9
    # Nor do the weights give back what the bound takes, and none is above its limit.
    even = buffer._even(rows)
    kept = sum(e for r, e in zip(rows, even, strict=True) if r.source == "enemy")
    assert kept <= buffer.config.source_share + 1e-9
    weights = even / shares
    assert weights.max() <= 1 / buffer.config.floor + 1e-9
    assert (shares * weights).sum() == pytest.approx(1)


def test_few_sources_share_alike_at_most() -> None:
    buffer = ReplayBuffer()
    for i in range(30):
        buffer.admit(row(f"a-{i:02}", source="a"))
    alone = sorted(buffer.rows.values(), key=lambda r: r.key)
    assert buffer._even(alone) == pytest.approx(1 / 30)
    for i in range(3):
        buffer.admit(row(f"b-{i}", source="b"))
    rows = sorted(buffer.rows.values(), key=lambda r: r.key)
    assert sum(e for r, e in zip(rows, buffer._even(rows), strict=True) if r.source == "a") == (
        pytest.approx(0.5)
    )


def test_what_is_refused_makes_nobody_old() -> None:
    buffer = ReplayBuffer(config=BufferConfig(max_tokens=10_000))
    assert buffer.admit(row("first"))
    before = buffer.priority(buffer.rows["first"])
    for _ in range(5000):
        assert not buffer.admit(row("first"))
        assert not buffer.admit(row("huge", size=9000))
    assert buffer.tried == 1 and buffer.priority(buffer.rows["first"]) == before


def test_a_smaller_room_is_kept_at_once() -> None:
    large = filled(600, BufferConfig(max_tokens=40_000, source_share=1.0), hostile=0.2)
    small = ReplayBuffer(
        config=BufferConfig(max_tokens=10_000, source_share=1.0), rows=large.rows, tried=large.tried
    )
    small.trim()
    assert tokens(small, in_reservoir=True) <= 2500
    assert tokens(small, in_reservoir=False) <= 7500 and len(small.rows) > 50


def test_a_source_over_its_quota_gives_up_what_matters_least_of_its_own() -> None:
    config = BufferConfig(max_tokens=10_000, reservoir_share=0.0)
    buffer = ReplayBuffer(config=config)
    for i in range(25):
        assert buffer.admit(row(f"own-{i:02}", source="own", loss=1 + i))
        assert buffer.admit(row(f"other-{i:02}", source="other", loss=0.5))
    assert not buffer.admit(row("dull", source="own", loss=0.5))
    assert buffer.admit(row("telling", source="own", loss=9.0))
    assert "own-00" not in buffer.rows and "own-01" in buffer.rows
    assert tokens(buffer, source="own") == tokens(buffer, source="other") == 2500
    assert not buffer.admit(row("huge", source="own", size=2501, loss=99.0))
    assert tokens(buffer, source="own") == 2500


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.5])
def test_one_source_cannot_fill_it(share: float) -> None:
    config = BufferConfig(max_tokens=20_000)
    held = tokens(filled(3000, config, hostile=share), source="enemy")
    assert held <= 0.25 * config.max_tokens
    open_to_all = BufferConfig(max_tokens=20_000, source_share=1.0)
    free = tokens(filled(3000, open_to_all, hostile=share), source="enemy")
    # The control: without a quota, loss alone lets a few percent take most of the priority lane.
    assert free >= held
    if share >= 0.05:
        assert free > 2 * 0.25 * config.max_tokens


def test_the_reservoir_is_blind_to_priority() -> None:
    buffer = filled(3000, BufferConfig(max_tokens=20_000, source_share=1.0), hostile=0.2)
    lane = buffer.reservoir()
    assert tokens(buffer, in_reservoir=True) <= 5000
    enemies = sum(r.source == "enemy" for r in lane)
    # 20 % of what came; three standard deviations of 50 draws.
    assert len(lane) == 50 and enemies / 50 == pytest.approx(0.2, abs=3 * (0.16 / 50) ** 0.5)
    others = [r for r in buffer.rows.values() if not r.in_reservoir]
    assert sum(r.source == "enemy" for r in others) / len(others) > 0.9


@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=60),
    sources=st.integers(1, 4),
    share=st.floats(0.1, 1.0),
)
def test_bounds_hold_whatever_comes(sizes: list[int], sources: int, share: float) -> None:
    config = BufferConfig(max_tokens=10_000, source_share=share)
    buffer = ReplayBuffer(config=config)
    for i, size in enumerate(sizes):
        before = dict(buffer.rows)
        came = buffer.admit(row(f"k{i}", source=f"s{i % sources}", size=size, loss=float(i % 7)))
        assert came == (f"k{i}" in buffer.rows)
        assert len(buffer.rows) <= len(before) + 1
    assert tokens(buffer) <= config.max_tokens
    for s in range(sources):
        assert tokens(buffer, source=f"s{s}") <= share * config.max_tokens
    text = canonical_json(buffer.to_json())
    again = ReplayBuffer.from_json(json.loads(text))
    assert again == buffer and again.draw(7, seed=3) == buffer.draw(7, seed=3)


@pytest.mark.parametrize("size", [0, 9_999, 200_001])
def test_a_size_outside_the_design_is_refused(size: int) -> None:
    with pytest.raises(DataError, match="max_tokens"):
        BufferConfig(max_tokens=size)


def test_what_is_no_buffer_is_refused() -> None:
    good = filled(3, BufferConfig()).to_json()
    for broken in (
        {},
        {**good, "rows": [{}]},
        {**good, "config": {"a": 1}},
        {**good, "tried": "x"},
    ):
        with pytest.raises(DataError):
            ReplayBuffer.from_json(broken)
