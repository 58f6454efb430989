"""What a lesson is: who learns what and how, who watches, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from cambium.learn.examples import Window
from cambium.learn.objectives.objective import Objective, ObjectiveConfig, Place
from cambium.learn.passes import Ask
from cambium.models.lora import Lora
from cambium.models.packing import Segment
from cambium.models.step_check import StepCheck

MAX_STEPS = 8
# A segment as (adapter, parent, tokens, targets, after): all that a pass's shape depends on.
Shape = tuple[int, int, int, int, int | None]


class Rehearses(Protocol):
    """Old texts beside the new, as `Rehearsal` gives them."""

    def prepare(self, step: int, place: Place) -> Ask | None:
        """Returns what has to be known before `ask`, if anything."""
        ...

    def ask(self, step: int, place: Place) -> Ask | None:
        """Returns the step's old texts and their loss, if there are any."""
        ...


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The stacks of a group, as far as one lesson's numbers depend on them.

    Args:
        row, rows: the lesson's own row of how many.
        rank, paths: of the stack.
        nobody: the row that answers for the lesson's teacher.
        start: the row of the adapter as the call found it; -1 where nobody asks it.
        parent, parents: the parent's index of how many; -1 of 0 where no lesson has one.
        parents_rank, parents_paths: of the parents' stack.
    """

    row: int
    rows: int
    rank: int
    paths: tuple[str, ...]
    nobody: int
    start: int
    parent: int
    parents: int
    parents_rank: int
    parents_paths: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """One call's training.

    Args:
        lr: AdamW's rate; the default is the one that the learning-rate recipe chose.
        steps: optimiser steps, 1 to 8.
        max_grad_norm: gradients are clipped to this norm.
        tokens_per_step: windows are dealt to steps up to this many tokens each; more where
            some window would otherwise never be learned in the call.
        loss: a name from `OBJECTIVES`.
        ewc_strength, si_strength: how hard weights that mattered before are held; 0 is off.
        ends_task: whether importances are booked at the end of the call.
    """

    lr: float = 2e-3
    steps: int = 8
    max_grad_norm: float = 0.5
    tokens_per_step: int = 4096
    seed: int = 0
    loss: str = "task"
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    ewc_strength: float = 0.0
    ewc_decay: float = 0.9
    si_strength: float = 0.0
    ends_task: bool = True


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What learns: an adapter on top of its parent, with the optimiser state it came with.

    Args:
        optimizer: the state that an earlier call returned, so that moments carry over.
        teacher: what rehearsal compares with; without one, the parent alone.
    """

    lora: Lora
    parent: tuple[Lora, ...] = ()
    optimizer: bytes | None = None
    teacher: Lora | None = None


class StepMonitor(Protocol):
    """Watches an adapter as it learns; its texts run in the learner's own passes."""

    def copied(self) -> StepMonitor:
        """Returns a monitor that remembers the same, and can change while this one stays."""
        ...

    def segments(self, step: int | None, *, adapter: int, parent: int) -> list[Segment]:
        """Returns what to score after the adapter's step number `step`, counted from 0.

        Args:
            step: None for all that there is to score.
            adapter, parent: where the adapter and its parent lie in the pass's stacks.
        """
        ...

    def judge(self, step: int | None, losses: Sequence[float]) -> StepCheck | None:
        """Returns the verdict from the mean losses of those segments that predict something.

        Returns:
            None where they do not settle it; those of all segments always do.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One adapter's share of a call.

    Args:
        monitor: a copy of it is asked after every step; a failed check ends this lesson, and no
            other.
        first_step: how many steps the adapter has taken before.
        rehearsal: old texts to go through beside the new ones.
        objective: instead of the one that the configuration names.
    """

    learner: Learner
    windows: Sequence[Window]
    config: LearnConfig = field(default_factory=LearnConfig)
    monitor: StepMonitor | None = None
    first_step: int = 0
    rehearsal: Rehearses | None = None
    objective: Objective | None = None


@dataclass(frozen=True, kw_only=True)
class LearnResult:
    """The adapter after the steps; `quarantined` when a check failed, and then no further step.

    Args:
        losses: each step's loss before the step, as its objective reports it.
        loss_before, loss_after: on the first step's windows.
        reset: learning without labels left its trust region; the adapter is as it was before.
        rehearsed: the losses of each step's old texts, by position, before the step.
        monitor: the lesson's, with what it was told on the way.
        frame, shapes: where it lay among others, and what ran in each step, by phase and row.
    """

    lora: Lora
    optimizer: bytes
    losses: tuple[float, ...]
    loss_before: float
    loss_after: float
    checks: tuple[StepCheck, ...] = ()
    quarantined: bool = False
    reset: bool = False
    seconds: float = 0.0
    rehearsed: tuple[Tensor, ...] = ()
    monitor: StepMonitor | None = None
    frame: Frame | None = None
    shapes: tuple[Mapping[str, Mapping[int, tuple[Shape, ...]]], ...] = ()
