"""What every objective offers: which texts to run at a step, and the loss of what they predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cambium.learn.examples import Window
from cambium.learn.passes import Ask


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an adapter lies in a pass's stacks.

    Args:
        adapter, parent: the rows of the adapter and of its frozen parent.
        nobody: the row of an adapter that changes nothing, so that the parent alone answers.
        start: the row of the adapter as it was when the call began; -1 where nobody asks it.
    """

    adapter: int
    parent: int
    nobody: int
    start: int = -1


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What objectives may be told; each takes what it needs.

    Args:
        beta: how steeply preferences count, per nat of the whole continuation.
        min_entropy: positions that are surer than this, in nats, teach nothing more.
        max_entropy_share: positions above this share of ln V are too unsure to learn from.
        max_divergence: how far, in nats per token, a call without labels may lead.
        min_entropy_share: below this share of the parent's own entropy, it has collapsed.
        trust_weight: of the divergence from where the call began, within the loss.
        diversity_weight: of the entropy of the mean prediction.
    """

    beta: float = 0.1
    min_entropy: float = 0.05
    max_entropy_share: float = 0.4
    max_divergence: float = 0.5
    min_entropy_share: float = 0.5
    trust_weight: float = 0.1
    diversity_weight: float = 0.1


class Objective(Protocol):
    """One lesson's loss. `step` counts from 0 within the call.

    At each step the learner runs `prepare` without gradients, looks at `is_lost`, and only then
    runs `ask` with gradients. After the last step it runs `prepare` and `ask` of step 0 once more,
    both without.
    """

    @property
    def is_lost(self) -> bool:
        """Returns whether the adapter has to go back to where the call began."""
        ...

    def prepare(self, step: int, place: Place) -> Ask | None:
        """Returns what has to be known before the step's loss, if anything."""
        ...

    def ask(self, step: int, place: Place) -> Ask:
        """Returns the step's texts and their loss."""
        ...

    def value(self, step: int, losses: Tensor) -> float:
        """Returns what is reported for the losses [M] of `ask`'s positions."""
        ...


class Unguarded:
    """For objectives with labels, which have nothing to prepare and cannot be lost."""

    is_lost = False

    def prepare(self, step: int, place: Place) -> Ask | None:
        """Returns nothing."""
        return None


def pairs_of(windows: Sequence[Window]) -> list[tuple[Window, Window]]:
    """Returns preference windows as two texts each: the chosen and the rejected."""
    return [
        (w, Window(tokens=(*w.tokens[: w.learn_from], *w.rejected), learn_from=w.learn_from))
        for w in windows
    ]


def means_of(losses: Tensor, counts: Sequence[int]) -> Tensor:
    """Returns each text's mean loss, shape [S], from all texts' losses side by side."""
    return torch.stack([part.mean() for part in losses.split(list(counts))])
