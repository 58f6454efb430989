"""Log-probabilities of given tokens, batched over rows with different adapters.

Shape letters: B rows, T positions, V words. Passes run in fixed shapes (a multiple of 16
positions, `SCORE_TOKENS` tokens in all), so a score does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cambium.core.errors import DataError
from cambium.models.base import BaseModel, stack_rows
from cambium.models.lora import Lora

SCORE_TOKENS = 1024
_LENGTH_STEP = 16


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """Token ids to be scored (at least two) and the adapters that act on them."""

    tokens: Sequence[int]
    adapters: tuple[Lora, ...] = ()


@torch.inference_mode()
def score(
    base: BaseModel,
    rows: Sequence[ScoreRow],
    *,
    reduce: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """Returns for each row the log-probability of every token after its first, in nats [T-1].

    Args:
        reduce: called with log-probabilities [T-1 V] and targets [T-1] of one row, if something
            else than the targets' own values is wanted.

    Raises:
        DataError: a row has fewer than two tokens, or more than the context and its target.
    """
    for row in rows:
        if not 2 <= len(row.tokens) <= base.context + 1:
            raise DataError(
                f"{len(row.tokens)} tokens cannot be scored in a context of {base.context}",
                mend="cut the text into windows",
            )
    results: list[Tensor | None] = [None] * len(rows)
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_length.setdefault(_bucket(len(row.tokens) - 1, base.context), []).append(i)
    for length, members in sorted(by_length.items()):
        per_pass = max(1, SCORE_TOKENS // length)
        for at in range(0, len(members), per_pass):
            chosen = members[at : at + per_pass]
            logits = _forward(base, [rows[i] for i in chosen], length, per_pass)
            for i, row_logits in zip(chosen, logits, strict=False):
                targets = torch.tensor(list(rows[i].tokens[1:]))
                logits_of_row = row_logits[: len(targets)].float()
                if reduce is None:
                    results[i] = _own(logits_of_row, targets)
                else:
                    results[i] = reduce(torch.log_softmax(logits_of_row, dim=-1), targets)
    return [r for r in results if r is not None]


def _forward(base: BaseModel, rows: Sequence[ScoreRow], length: int, per_pass: int) -> Tensor:
    tokens = torch.zeros(per_pass, length, dtype=torch.long)
    for i, row in enumerate(rows):
        inputs = list(row.tokens[:-1])
        tokens[i, : len(inputs)] = torch.tensor(inputs)
    adapters = [row.adapters for row in rows] + [()] * (per_pass - len(rows))
    with base.rows(stack_rows(adapters)) as model:
        return model(input_ids=tokens, use_cache=False).logits


def _own(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)


def _bucket(length: int, context: int) -> int:
    return min(-(-length // _LENGTH_STEP) * _LENGTH_STEP, context)
