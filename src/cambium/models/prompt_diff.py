"""How the virtual tokens before a sequence moved, each beside the word that it is nearest to.

Shape letters: P virtual tokens, D d_model, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cambium.models.adapter import Adapter
from cambium.models.base import BaseModel


@dataclass(frozen=True, kw_only=True)
class PromptChange:
    """How one virtual token moved; one that is only on one side moved by all it is.

    Args:
        token: its place, counted from 0.
        delta_norm: Euclidean norm of the change; `relative` that by a word's mean norm.
        nearest: the base's word whose embedding points most alike, None where the token is gone.
        cosine: how alike, -1 to 1.
    """

    token: int
    delta_norm: float
    relative: float
    nearest: str | None
    cosine: float | None


def prompt_changes(
    base: BaseModel, before: Sequence[Adapter], after: Sequence[Adapter]
) -> list[PromptChange]:
    """Returns each virtual token's change, in order; none where neither side has any."""
    old, new = _tokens(before), _tokens(after)
    if not old and not new:
        return []
    holder: Any = base.model
    words = holder.get_input_embeddings().weight.detach().float()
    mean = float(torch.linalg.norm(words, dim=1).mean())
    changes = []
    for i in range(max(len(old), len(new))):
        was, now = (side[i] if i < len(side) else None for side in (old, new))
        nothing = torch.zeros(words.shape[1])
        moved = (nothing if now is None else now) - (nothing if was is None else was)
        norm = float(torch.linalg.norm(moved))
        nearest, cosine = (None, None) if now is None else _nearest(base, words, now)
        changes.append(
            PromptChange(
                token=i, delta_norm=norm, relative=norm / mean, nearest=nearest, cosine=cosine
            )
        )
    return changes


def _tokens(adapters: Sequence[Adapter]) -> list[Tensor]:
    return [row for one in adapters if one.prompt is not None for row in one.prompt]


def _nearest(base: BaseModel, words: Tensor, token: Tensor) -> tuple[str, float]:
    alike = nn.functional.cosine_similarity(words, token[None])
    best = int(alike.argmax())
    return base.tokenizer.decode([best]), float(alike[best])
