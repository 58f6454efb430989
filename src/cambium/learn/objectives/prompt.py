"""Prompt likelihood: learn what the requests themselves are like, without any label.

Source: Hu et al. (2025), test-time learning for language models: the input's own perplexity, on
inputs that are not likely already; with the guard of the trust region.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cambium.learn.examples import Window
from cambium.learn.objectives.objective import ObjectiveConfig, Place
from cambium.learn.objectives.trust_region import TrustRegion
from cambium.learn.passes import Ask, window_segment
from cambium.models.chunked_head import added, cross_entropy
from cambium.models.packing import targets_of


class PromptLikelihood:
    """The cross-entropy of all tokens of the windows, near where the call began."""

    def __init__(self, steps: Sequence[Sequence[Window]], config: ObjectiveConfig) -> None:
        self._steps = steps
        self._config = config
        self._region = TrustRegion(steps, config)

    @property
    def is_lost(self) -> bool:
        """Returns whether it has left its trust region."""
        return self._region.is_left

    def prepare(self, step: int, place: Place) -> Ask | None:
        """Returns the looks at parent and start, once, and at the adapter."""
        return self._region.look(step, place)

    def ask(self, step: int, place: Place) -> Ask:
        """Returns the step's windows and the loss of their tokens."""
        segments = [
            window_segment(w, adapter=place.adapter, parent=place.parent)
            for w in self._steps[step % len(self._steps)]
        ]
        targets, _ = targets_of(segments)
        share = torch.full((len(targets),), 1 / len(targets))
        held = self._region.teacher(step).distillation(share * self._config.trust_weight)
        return Ask(segments=segments, loss=added([cross_entropy(targets, share), held]))

    def value(self, step: int, losses: Tensor) -> float:
        """Returns the mean loss, in nats per token."""
        return float(losses.mean())
