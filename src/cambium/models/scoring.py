"""Log-probabilities of given tokens under given adapters, batched.

Shape letters: B rows, T positions, V words. Passes run in fixed shapes (a few lengths, about
`SCORE_TOKENS` tokens in all), so a score does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from cambium.core.errors import DataError
from cambium.models.adapter import Adapter, virtual_tokens
from cambium.models.base import BaseModel, RowWeights, shared_rows
from cambium.models.packing import pass_length

SCORE_TOKENS = 512


@torch.inference_mode()
def score(
    base: BaseModel,
    texts: Sequence[Sequence[int]],
    *,
    adapters: Sequence[Adapter] = (),
    reduce: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """Returns for each text the log-probability of every token after its first, in nats [T-1].

    Args:
        texts: token ids, at least two each.
        adapters: the adapters that act on all of them, summed.
        reduce: called with log-probabilities [T-1 V] and targets [T-1] of one text, if something
            else than the targets' own values is wanted.

    Raises:
        DataError: a text has fewer than two tokens, or more than the context and its target.
    """
    before = virtual_tokens(adapters)
    room = base.context - len(before)
    for text in texts:
        if not 2 <= len(text) <= room + 1:
            raise DataError(
                f"{len(text)} tokens cannot be scored in a context of {room}",
                mend="cut the text into windows",
            )
    weights = shared_rows(adapters)
    results: list[Tensor | None] = [None] * len(texts)
    by_length: dict[int, list[int]] = {}
    for i, text in enumerate(texts):
        length = pass_length(len(before) + len(text) - 1)
        by_length.setdefault(min(length, base.context), []).append(i)
    for length, members in sorted(by_length.items()):
        per_pass = max(1, SCORE_TOKENS // length)
        for at in range(0, len(members), per_pass):
            chosen = members[at : at + per_pass]
            tokens = torch.zeros(per_pass, length, dtype=torch.long)
            for row, i in enumerate(chosen):
                read = [*before, *texts[i][:-1]]
                tokens[row, : len(read)] = torch.tensor(read)
            logits = base.run(partial(_logits, base, weights, tokens))
            for i, row_logits in zip(chosen, logits, strict=False):
                targets = torch.tensor(list(texts[i][1:]))
                logits_of_row = row_logits[len(before) :][: len(targets)].float()
                if reduce is None:
                    results[i] = _own(logits_of_row, targets)
                else:
                    results[i] = reduce(torch.log_softmax(logits_of_row, dim=-1), targets)
    return [r for r in results if r is not None]


def _logits(base: BaseModel, weights: RowWeights | None, tokens: Tensor) -> Tensor:
    with base.rows(weights) as model:
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def _own(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)
