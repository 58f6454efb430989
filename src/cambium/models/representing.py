"""What a model holds of a text inside: the hidden state at its last token, one layer up.

Shape letters: B rows, T positions. Passes run in fixed lengths, so a state does not depend on
what else was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cambium.core.errors import DataError
from cambium.models.adapter import Adapter, virtual_tokens
from cambium.models.base import BaseModel, RowWeights, shared_rows
from cambium.models.chat import encode_document
from cambium.models.packing import pass_length

PASS_TOKENS = 512


class Represent(Protocol):
    """Anything that turns texts into a model's own vectors."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 vectors, shape [len(texts) d_model]."""
        ...


def represents(
    base: BaseModel, adapters: Sequence[Adapter] = (), *, layer: int | None = None
) -> Represent:
    """Returns the reading of texts by the base with these adapters, summed, as one callable."""
    return partial(last_states, base, adapters=tuple(adapters), layer=layer)


@torch.inference_mode()
def last_states(
    base: BaseModel,
    texts: Sequence[str],
    *,
    adapters: Sequence[Adapter] = (),
    layer: int | None = None,
) -> np.ndarray:
    """Returns the hidden state after a block at each text's last token, [len(texts) d_model].

    Args:
        adapters: they act on all texts, summed.
        layer: 1 is after the first block; without it, two thirds up: below that a state is still
            mostly the word's own embedding, above it mostly the next word's.

    Raises:
        DataError: no such layer, or a text with no token or more than the context.
    """
    num_layers = base.model.config.get_text_config().num_hidden_layers
    at_layer = -(-2 * num_layers // 3) if layer is None else layer
    if not 1 <= at_layer <= num_layers:
        raise DataError(f"layer {layer} is not in 1..{num_layers}", mend="choose one of the base's")
    before = virtual_tokens(adapters)
    encoded = [[*before, *encode_document(base.tokenizer, text)] for text in texts]
    for tokens in encoded:
        if not len(before) < len(tokens) <= base.context:
            raise DataError(
                f"{len(tokens) - len(before)} tokens cannot be represented in a context of "
                f"{base.context - len(before)}",
                mend="give short texts that are not empty",
            )
    size = base.model.config.get_text_config().hidden_size
    found = np.zeros((len(texts), size), dtype=np.float32)
    weights = shared_rows(adapters)
    by_length: dict[int, list[int]] = {}
    for i, tokens in enumerate(encoded):
        by_length.setdefault(min(pass_length(len(tokens)), base.context), []).append(i)
    for length, members in sorted(by_length.items()):
        per_pass = max(1, PASS_TOKENS // length)
        for at in range(0, len(members), per_pass):
            chosen = members[at : at + per_pass]
            tokens = torch.zeros(per_pass, length, dtype=torch.long)
            for row, i in enumerate(chosen):
                tokens[row, : len(encoded[i])] = torch.tensor(encoded[i])
            work: Callable[[], Tensor] = partial(_states, base, weights, tokens, at_layer)
            states = base.run(work)
            for row, i in enumerate(chosen):
                found[i] = states[row, len(encoded[i]) - 1].float().numpy()
    return found


def _states(base: BaseModel, weights: RowWeights | None, tokens: Tensor, layer: int) -> Tensor:
    with base.rows(weights) as model:
        output = model(input_ids=tokens, use_cache=False, output_hidden_states=True)
    return output.hidden_states[layer]
