"""Rehearsal: old texts that a lesson goes through beside the new ones.

Each old text counts by its importance weight, as what is learned again and as what the teacher,
the parent revision unless told otherwise, says about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cambium.learn.examples import Window
from cambium.learn.objectives.distillation import Teacher
from cambium.learn.objectives.objective import Place
from cambium.learn.passes import Ask, window_segment
from cambium.models.chunked_head import HeadLoss, added, cross_entropy
from cambium.models.packing import targets_of


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """The old texts of each step; further steps begin again with the first.

    Args:
        steps: windows with their importance weights, at most 1 each in what they may count.
        keys: what each of those texts is called, for whoever asks how it fared.
        task_weight: of the loss of learning them again; `distill_weight` of the divergence.
    """

    steps: Sequence[Sequence[tuple[Window, float]]]
    keys: Sequence[Sequence[str]] = ()
    task_weight: float = 1.0
    distill_weight: float = 1.0
    temperature: float = 2.0
    _teachers: dict[int, Teacher] = field(default_factory=lambda: {}, init=False, repr=False)

    def prepare(self, step: int, place: Place) -> Ask | None:
        """Returns what the teacher has to say of the step's texts, unless it said so before."""
        at = step % len(self.steps)
        known = self._teachers.get(at)
        if not self.distill_weight or not self.steps[at] or (known and known.is_complete):
            return None
        segments = [
            window_segment(w, adapter=place.nobody, parent=place.parent) for w, _ in self.steps[at]
        ]
        count = sum(s.num_targets for s in segments)
        self._teachers[at] = Teacher(count, temperature=self.temperature)
        return Ask(segments=segments, loss=self._teachers[at].loss)

    def fared(self, losses: Sequence[Tensor]) -> dict[str, float]:
        """Returns each text's loss when it was last gone through, nats per token, by key.

        Args:
            losses: of each step's positions in order, as `LearnResult.rehearsed` has them.
        """
        found: dict[str, float] = {}
        for step, own in enumerate(losses):
            at = step % len(self.steps)
            counts = [len(window.tokens) - window.learn_from for window, _ in self.steps[at]]
            for key, part in zip(self.keys[at], own.split(counts), strict=True):
                found[key] = float(part.mean())
        return found

    def ask(self, step: int, place: Place) -> Ask | None:
        """Returns the step's texts and their loss."""
        at = step % len(self.steps)
        if not self.steps[at]:
            return None
        segments = [
            window_segment(w, adapter=place.adapter, parent=place.parent) for w, _ in self.steps[at]
        ]
        targets, counts = targets_of(segments)
        weights = torch.tensor([weight for _, weight in self.steps[at]])
        each = weights.repeat_interleave(torch.tensor(counts)) / len(targets)
        losses: list[HeadLoss] = []
        if self.task_weight:
            losses.append(cross_entropy(targets, each * self.task_weight))
        if self.distill_weight:
            losses.append(self._teachers[at].distillation(each * self.distill_weight))
        return Ask(segments=segments, loss=losses[0] if len(losses) == 1 else added(losses))
