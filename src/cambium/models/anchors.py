"""Anchors: text that the parent itself writes, when nothing else says what it should retain."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cambium.core.errors import ModelError
from cambium.models.adapter import Adapter
from cambium.models.engine import Engine, GenerationRequest
from cambium.models.sampling import SamplingConfig
from cambium.models.writing import write

_MIN_TOKENS = 32
# The name of the writer without an adapter; no domain has blanks in its name.
BASE = "the base"


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A text that a parent wrote.

    Args:
        by: the writer's name; None of texts that were kept before writers were.
    """

    by: str | None
    tokens: tuple[int, ...]


def write_anchors(
    engine: Engine,
    writers: Sequence[tuple[str, tuple[Adapter, ...]]],
    *,
    number: int,
    num_tokens: int,
    seed: int,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Anchor]:
    """Returns `number` texts as token ids, drawn at temperature 1 from a bare beginning.

    Args:
        writers: names and adapters to write under, in turn: the bare base and each stable adapter.
        num_tokens: length of each text; shorter where the model ends by itself.

    Raises:
        ModelError: the model writes nothing, so that there is nothing to retain.
        Stopped: the engine closed meanwhile; half a text would pass for a whole one.
    """
    tokenizer = engine.base.tokenizer
    begin = tokenizer.bos_token_id
    if begin is None:
        begin = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    requests = [
        GenerationRequest(
            prompt=[begin],
            adapters=writers[i % len(writers)][1],
            max_tokens=min(num_tokens, engine.context - 1),
            sampling=SamplingConfig(temperature=1.0, seed=seed + i),
        )
        for i in range(number)
    ]
    texts = [
        Anchor(by=writers[i % len(writers)][0], tokens=(begin, *text))
        for i, text in enumerate(write(engine, requests, progress))
    ]
    kept = [t for t in texts if len(t.tokens) >= _MIN_TOKENS]
    if len(kept) < number // 2:
        raise ModelError("the parent ends its texts at once, so there is nothing to hold on to",
                         mend="propose with approved corpora instead")  # fmt: skip
    return kept


def to_json(anchors: Sequence[Anchor]) -> bytes:
    """Returns anchors as they are stored."""
    return json.dumps([{"by": a.by, "tokens": a.tokens} for a in anchors]).encode()


def from_json(data: bytes) -> list[Anchor]:
    """Returns stored anchors; those of before writers were kept are bare lists of tokens."""
    return [
        Anchor(by=None, tokens=tuple(a))
        if isinstance(a, list)
        else Anchor(by=a["by"], tokens=tuple(a["tokens"]))
        for a in json.loads(data)
    ]
