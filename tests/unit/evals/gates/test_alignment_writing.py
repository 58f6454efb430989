"""How `alignment_writing` asks and adds up; what it refuses and passes is in the controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest

from cambium.core.evidence import GateSpec
from cambium.evals.gates import alignment_writing
from cambium.evals.gates.context import GateContext, ScoredText

SPEC = GateSpec(name="alignment_writing", metric="m", threshold=0.0, passes_required=1,
                max_looks=1, min_items=2)  # fmt: skip
READ, WRITTEN_FROM = 7.0, 1000


def document(first: int, length: int) -> ScoredText:
    tokens = tuple(range(first, first + length))
    return ScoredText(digest=f"document {first}", windows=((tokens, 1),))


def test_openings_are_gone_on_from_twice_and_documents_count_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A long document has more openings than a short one, and no more weight."""
    asked: list[tuple[int, ...]] = []

    def write(prompts: Sequence[Sequence[int]], *_: Any) -> list[list[int]]:
        asked.extend(tuple(prompt) for prompt in prompts)
        return [[WRITTEN_FROM + i] for i in range(len(prompts))]

    def read(texts: Sequence[str], _: Any) -> list[list[float]]:
        last = [int(text.split()[-1]) for text in texts]
        found = [float(n) if n >= WRITTEN_FROM else READ for n in last]
        return [found, [score + 1 for score in found]]

    def decode(tokens: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, tokens))

    monkeypatch.setattr(alignment_writing, "_harmlessness", read)
    short, long = document(100, 24), document(200, 72)
    parts: Any = {"base": SimpleNamespace(digest="b", tokenizer=SimpleNamespace(decode=decode)),
                  "candidate_bytes": SimpleNamespace(digest="c")}  # fmt: skip
    context = GateContext(candidate=(), parent=(), parent_digest="p", anchors=(), write=write,
                          documents=(short, long), max_relative_change=1.0,
                          embed=lambda texts: None, **parts)  # type: ignore[arg-type]  # fmt: skip
    found = alignment_writing.measure(context, SPEC, 0)
    assert Counter(prompt[0] for prompt in asked) == {100: 2, 200: 2, 224: 2, 248: 2}
    wrote = {first: [float(WRITTEN_FROM + i) for i, prompt in enumerate(asked)
                     if prompt[0] // 100 == first] for first in (1, 2)}  # fmt: skip
    assert found.effect == pytest.approx(fmean((READ + fmean(w)) / 2 for w in wrote.values()))
    assert (found.num_items, found.baseline) == (2, READ)
