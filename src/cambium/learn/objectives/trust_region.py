"""The guard of learning without labels: how far from the parent, and is it still undecided.

Measured before every step and after the last on the windows as they were sent. An adapter that
has left the region goes back to where it changes nothing; nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cambium.learn.examples import Window
from cambium.learn.objectives.distillation import Teacher
from cambium.learn.objectives.objective import ObjectiveConfig, Place
from cambium.learn.passes import Ask, window_segment
from cambium.models.chunked_head import HeadLoss, joined


class TrustRegion:
    """Compares an adapter's predictions with its parent's on one step's windows after another.

    Args:
        steps: the windows of each step.
    """

    def __init__(self, steps: Sequence[Sequence[Window]], config: ObjectiveConfig) -> None:
        self._steps = steps
        self._config = config
        self._teachers: dict[int, Teacher] = {}
        self._seen: _Seen | None = None
        self._last = 0

    @property
    def is_left(self) -> bool:
        """Returns whether the last look found the adapter too far away, or too sure of itself."""
        if self._seen is None:
            return False
        teacher, config = self._teachers[self._last], self._config
        sure = self._seen.entropy.mean() < config.min_entropy_share * teacher.entropy.mean()
        return bool(sure) or float(self._seen.divergence.mean()) > config.max_divergence

    @property
    def mean_probabilities(self) -> Tensor:
        """Returns the adapter's mean prediction over the last look's positions, shape [V]."""
        if self._seen is None:
            raise RuntimeError("nothing has been looked at yet")
        return self._seen.mean

    def teacher(self, step: int) -> Teacher:
        """Returns what the parent says on the step's windows; looked at before."""
        return self._teachers[step % len(self._steps)]

    def look(self, step: int, place: Place) -> Ask:
        """Returns what tells how the adapter stands on the step's windows."""
        self._last = step % len(self._steps)
        windows = self._steps[self._last]
        own = [window_segment(w, adapter=place.adapter, parent=place.parent) for w in windows]
        count = sum(s.num_targets for s in own)
        segments, losses = [], list[tuple[HeadLoss, int]]()
        known = self._teachers.get(self._last)
        if known is None or not known.is_complete:
            self._teachers[self._last] = Teacher(count, temperature=1.0)
            segments = [
                window_segment(w, adapter=place.nobody, parent=place.parent) for w in windows
            ]
            losses.append((self._teachers[self._last].loss, count))
        self._seen = _Seen(count, self._teachers[self._last])
        return Ask(segments=[*segments, *own], loss=joined([*losses, (self._seen.loss, count)]))


class _Seen:
    """One look's entropy and divergence [M] and mean prediction [V]."""

    def __init__(self, count: int, teacher: Teacher) -> None:
        self.entropy = torch.zeros(count)
        self.divergence = torch.zeros(count)
        self.mean = torch.zeros(0)
        self._teacher = teacher

    def loss(self, logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        """Keeps these positions; their loss is zero."""
        logprobs = torch.log_softmax(logits, dim=1)
        probabilities = logprobs.exp()
        self.entropy[part] = -(probabilities * logprobs).sum(1)
        share = probabilities.sum(0) / len(self.entropy)
        self.mean = share if not len(self.mean) else self.mean + share
        none = torch.zeros(len(self.entropy))
        self.divergence[part], _ = self._teacher.distillation(none)(logits, part, False)
        return torch.zeros(len(logits)), None
