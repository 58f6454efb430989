"""Anchors: text that the parent itself writes, when nothing else says what it should retain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cambium.core.errors import ModelError
from cambium.models.engine import Engine, GenerationRequest
from cambium.models.lora import Lora
from cambium.models.sampling import SamplingConfig
from cambium.models.writing import write

_MIN_TOKENS = 32


def write_anchors(
    engine: Engine,
    writers: Sequence[tuple[Lora, ...]],
    *,
    number: int,
    num_tokens: int,
    seed: int,
    progress: Callable[[float], None] = lambda share: None,
) -> list[tuple[int, ...]]:
    """Returns `number` texts as token ids, drawn at temperature 1 from a bare beginning.

    Args:
        writers: adapters to write under, in turn: the bare base and each stable adapter.
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
            adapters=writers[i % len(writers)],
            max_tokens=min(num_tokens, engine.context - 1),
            sampling=SamplingConfig(temperature=1.0, seed=seed + i),
        )
        for i in range(number)
    ]
    texts = [[begin, *text] for text in write(engine, requests, progress)]
    kept = [tuple(t) for t in texts if len(t) >= _MIN_TOKENS]
    if len(kept) < number // 2:
        raise ModelError("the parent ends its texts at once, so there is nothing to hold on to",
                         mend="propose with approved corpora instead")  # fmt: skip
    return kept
