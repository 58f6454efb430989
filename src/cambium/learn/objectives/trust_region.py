"""The guard of learning without labels: how far has the call led, and is it still undecided.

Measured before every step and after the last on the windows as they were sent: the divergence from
the adapter as the call found it, which may have been taught with labels, and the entropy beside the
parent's, which no number of calls can wear down. An adapter that has left the region goes back to
where the call began; nothing of the call is kept.
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
    """Compares an adapter's predictions with earlier ones on one step's windows after another.

    Args:
        steps: the windows of each step.
    """

    def __init__(self, steps: Sequence[Sequence[Window]], config: ObjectiveConfig) -> None:
        self._steps = steps
        self._config = config
        self._starts: dict[int, Teacher] = {}
        self._parents: dict[int, _Entropy] = {}
        self._seen: _Seen | None = None
        self._last = 0

    @property
    def is_left(self) -> bool:
        """Returns whether the last look found the adapter too far away, or too sure of itself."""
        if self._seen is None:
            return False
        config, parent = self._config, self._parents[self._last]
        floor = config.min_entropy_share * parent.values.mean()
        is_open = bool(self._seen.entropy.mean() >= floor)
        # What is no number is nowhere near: neither comparison may pass for it.
        return not (is_open and float(self._seen.divergence.mean()) <= config.max_divergence)

    @property
    def mean_probabilities(self) -> Tensor:
        """Returns the adapter's mean prediction over the last look's positions, shape [V]."""
        if self._seen is None:
            raise RuntimeError("nothing has been looked at yet")
        return self._seen.mean

    def teacher(self, step: int) -> Teacher:
        """Returns what the call began with says on the step's windows; looked at before."""
        return self._starts[step % len(self._steps)]

    def look(self, step: int, place: Place) -> Ask:
        """Returns what tells how the adapter stands on the step's windows."""
        at = self._last = step % len(self._steps)
        windows = self._steps[at]
        rows = [place.adapter]
        known = self._starts.get(at)
        if known is None or not known.is_complete:
            rows = [place.start, place.nobody, place.adapter]
        parts = [[window_segment(w, adapter=row, parent=place.parent) for w in windows]
                 for row in rows]  # fmt: skip
        count = sum(s.num_targets for s in parts[0])
        losses: list[HeadLoss] = []
        if len(rows) > 1:
            self._starts[at] = Teacher(count, temperature=1.0)
            self._parents[at] = _Entropy(count)
            losses = [self._starts[at].loss, self._parents[at].loss]
        self._seen = _Seen(count, self._starts[at])
        losses.append(self._seen.loss)
        segments = [segment for part in parts for segment in part]
        return Ask(segments=segments, loss=joined([(loss, count) for loss in losses]))


class _Entropy:
    """Keeps the entropy of positions, nats, shape [M]."""

    def __init__(self, count: int) -> None:
        self.values = torch.zeros(count)

    def loss(self, logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        """Keeps these positions; their loss is zero."""
        logprobs = torch.log_softmax(logits, dim=1)
        self.values[part] = -(logprobs.exp() * logprobs).sum(1)
        return torch.zeros(len(logits)), None


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
