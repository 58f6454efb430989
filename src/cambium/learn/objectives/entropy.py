"""Entropy minimisation without labels, held back from its trivial optimum.

Positions that are too unsure to learn from, or so sure that they teach nothing, are left out; the
mean prediction is kept broad; a divergence from where the call began is part of the loss, and
beyond the trust region the call is undone.

Sources: Wang et al. (2021), TENT, eq. 1; Niu et al. (2023), SAR, eq. 2 (the filter at 0.4 ln C;
their sharpness-aware step is left out). The mean prediction is the one before the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cambium.learn.examples import Window
from cambium.learn.objectives.objective import ObjectiveConfig, Place
from cambium.learn.objectives.trust_region import TrustRegion
from cambium.learn.passes import Ask, window_segment
from cambium.models.chunked_head import HeadLoss, added


class Entropy:
    """Makes the adapter surer of what it would say after each token of the windows."""

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
        """Returns the step's windows and their entropy."""
        windows, config = self._steps[step % len(self._steps)], self._config
        segments = [window_segment(w, adapter=place.adapter, parent=place.parent) for w in windows]
        count = sum(s.num_targets for s in segments)
        share = torch.full((count,), 1 / count)
        loss = added(
            [
                entropy(
                    share,
                    bounds=(config.min_entropy, config.max_entropy_share),
                    mean=self._region.mean_probabilities,
                    diversity_weight=config.diversity_weight,
                ),
                self._region.teacher(step).distillation(share * config.trust_weight),
            ]
        )
        return Ask(segments=segments, loss=loss)

    def value(self, step: int, losses: Tensor) -> float:
        """Returns the mean entropy, in nats per token."""
        return float(losses.mean())


def entropy(
    weights: Tensor, *, bounds: tuple[float, float], mean: Tensor, diversity_weight: float
) -> HeadLoss:
    """Returns H(p) of each position; the gradient also broadens the mean prediction.

    dH/dz_k = -p_k (log p_k + H). The mean's negative entropy has the gradient
    p_k (log m_k - sum_j p_j log m_j) by a position's logits, m being the mean prediction.

    Args:
        weights: of the gradients, shape [M].
        bounds: positions count from this entropy in nats up to this share of ln V.
        mean: the mean prediction m, shape [V].
    """
    log_mean = mean.clamp_min(1e-12).log()

    def loss(logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        logprobs = torch.log_softmax(logits, dim=1)
        p = logprobs.exp()
        found = -(p * logprobs).sum(1)
        if not wanted:
            return found, None
        counts = (found >= bounds[0]) & (found <= bounds[1] * math.log(logits.shape[1]))
        grad = -p * (logprobs + found[:, None]) * counts[:, None]
        toward = p @ log_mean
        grad += diversity_weight * p * (log_mean[None] - toward[:, None])
        return found, grad * weights[part][:, None]

    return loss
