from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cambium.learn import passes
from cambium.learn.examples import Window
from cambium.models.packing import Segment


@given(
    lengths=st.lists(st.integers(2, 129), min_size=1, max_size=40),
    steps=st.integers(1, 8),
    per_step=st.integers(1, 512),
)
def test_every_window_is_dealt_to_one_step_of_the_call(
    lengths: list[int], steps: int, per_step: int
) -> None:
    fed = [
        Window(tokens=tuple(range(1000 * i, 1000 * i + n)), learn_from=1 + i % (n - 1))
        for i, n in enumerate(lengths)
    ]
    dealt = passes.deal(fed, steps=steps, tokens_per_step=per_step, seed=0)
    assert 1 <= len(dealt) <= steps
    key = lambda w: w.tokens  # noqa: E731
    assert sorted((w for step in dealt for w in step), key=key) == sorted(fed, key=key)


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=30), budget=st.integers(1, 200))
def test_passes_hold_every_segment_and_keep_prompts_with_what_follows(
    lengths: list[int], budget: int
) -> None:
    segments = [
        Segment(adapter=0, tokens=[5] * n, targets=[5] * n, after=i - 1 if i % 3 == 1 else None)
        for i, n in enumerate(lengths)
    ]
    runs = passes.in_passes(segments, budget)
    assert [i for run in runs for i in range(run.start, run.stop)] == list(range(len(lengths)))
    for run in runs:
        based = passes.rebased(segments[run], run.start)
        assert all(s.after is None or 0 <= s.after < i for i, s in enumerate(based))
        heads = [s for s in based if s.after is None]
        assert sum(len(s.tokens) for s in heads) <= budget or len(heads) == 1
