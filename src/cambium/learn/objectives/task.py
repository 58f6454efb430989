"""The task loss: cross-entropy of what the windows say should be learned, in nats per token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cambium.learn.examples import Window
from cambium.learn.objectives.objective import ObjectiveConfig, Place, Unguarded
from cambium.learn.passes import Ask, window_segment
from cambium.models.chunked_head import cross_entropy
from cambium.models.packing import targets_of


class Task(Unguarded):
    """Each step's windows count together, every token the same.

    Args:
        steps: the windows of each step; further steps begin again with the first.
    """

    def __init__(self, steps: Sequence[Sequence[Window]], config: ObjectiveConfig) -> None:
        self._steps = steps

    def ask(self, step: int, place: Place) -> Ask:
        """Returns the step's windows and their mean loss."""
        windows = self._steps[step % len(self._steps)]
        segments = [window_segment(w, adapter=place.adapter, parent=place.parent) for w in windows]
        targets, _ = targets_of(segments)
        weights = torch.full((len(targets),), 1 / max(1, len(targets)))
        return Ask(segments=segments, loss=cross_entropy(targets, weights))

    def value(self, step: int, losses: Tensor) -> float:
        """Returns the mean, in nats per token."""
        return float(losses.mean())
