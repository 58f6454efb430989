"""Online learning: one to eight AdamW steps on ephemeral adapters, checked at every step.

Lessons of several adapters share their passes: each keeps its own rows, rate, steps and verdict.
This package opens no files and no sockets: the server persists what it returns.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from safetensors.torch import load, save

from cambium.core.errors import DataError
from cambium.core.evidence import StepCheck
from cambium.learn.examples import Window
from cambium.models.adapter_stack import AdapterStack, StackAdamW
from cambium.models.chunked_head import cross_entropy
from cambium.models.lora import Lora, LoraConfig, concatenated
from cambium.models.packing import IGNORED, Segment, pack, targets_of
from cambium.models.training_model import TrainingModel

MAX_STEPS = 8
PASS_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """One call's training.

    Args:
        lr: AdamW's rate; the default is the one that the learning-rate recipe chose.
        steps: optimiser steps, 1 to 8.
        max_grad_norm: gradients are clipped to this norm.
        tokens_per_step: windows are dealt to steps up to this many tokens each; more where
            some window would otherwise never be learned in the call.
    """

    lr: float = 2e-3
    steps: int = 8
    max_grad_norm: float = 0.5
    tokens_per_step: int = 4096
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What learns: an adapter on top of its parent, with the optimiser state it came with.

    Args:
        optimizer: the state that an earlier call returned, so that moments carry over.
    """

    lora: Lora
    parent: tuple[Lora, ...] = ()
    optimizer: bytes | None = None


class StepMonitor(Protocol):
    """Watches an adapter as it learns; its texts run in the learner's own passes."""

    def segments(self, step: int, *, adapter: int, parent: int, first: int) -> list[Segment]:
        """Returns what to score after the adapter's step number `step`, counted from 0.

        Args:
            adapter, parent: where the adapter and its parent lie in the pass's stacks.
            first: the index that the first returned segment will have in the pass.
        """
        ...

    def judge(self, step: int, losses: Sequence[float]) -> StepCheck:
        """Returns the verdict from the mean losses of those segments that predict something."""
        ...


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One adapter's share of a call.

    Args:
        monitor: asked after every step; a failed check ends this lesson, and no other.
        first_step: how many steps the adapter has taken before.
    """

    learner: Learner
    windows: Sequence[Window]
    config: LearnConfig = field(default_factory=LearnConfig)
    monitor: StepMonitor | None = None
    first_step: int = 0


@dataclass(frozen=True, kw_only=True)
class LearnResult:
    """The adapter after the steps; `quarantined` when a check failed, and then no further step.

    Args:
        losses: each step's loss before the step, nats per token.
        loss_before, loss_after: on the first step's windows, nats per token.
    """

    lora: Lora
    optimizer: bytes
    losses: tuple[float, ...]
    loss_before: float
    loss_after: float
    checks: tuple[StepCheck, ...] = ()
    quarantined: bool = False
    seconds: float = 0.0


def learn(model: TrainingModel, lesson: Lesson) -> LearnResult:
    """Takes the steps of one lesson; as `learn_together`."""
    return learn_together(model, [lesson])[0]


def learn_together(model: TrainingModel, lessons: Sequence[Lesson]) -> list[LearnResult]:
    """Takes every lesson's steps on its own adapter, on top of the frozen base and its parent.

    The given adapters are not changed; neither is the base, nor a parent.

    Raises:
        DataError: no windows, steps outside 1..8, or an optimiser state of another adapter.
    """
    group = LessonGroup(model, lessons)
    while not group.is_done:
        group.take_step()
    return group.results()


class LessonGroup:
    """Lessons under way together, one step at a time.

    Raises:
        DataError: as `learn_together`.
    """

    def __init__(self, model: TrainingModel, lessons: Sequence[Lesson]) -> None:
        for lesson in lessons:
            if not lesson.windows or not 1 <= lesson.config.steps <= MAX_STEPS:
                raise DataError(
                    f"{len(lesson.windows)} windows and {lesson.config.steps} steps teach nothing",
                    mend=f"send at least one example and 1 to {MAX_STEPS} steps",
                )
        self.model = model
        self.lessons = lessons
        self.started = time.monotonic()
        self.step = 0
        sites, dtype = model.base.sites, model.dtype
        self.stack = AdapterStack([x.learner.lora for x in lessons], sites, dtype=dtype)
        self.parent_of, self.parents = stack_parents(model, [x.learner.parent for x in lessons])
        self.adam = StackAdamW(
            self.stack,
            lr=torch.tensor([x.config.lr for x in lessons], dtype=torch.float64),
            max_grad_norm=torch.tensor([x.config.max_grad_norm for x in lessons]),
        )
        for g, lesson in enumerate(lessons):
            if lesson.learner.optimizer:
                load_state(self.adam, g, lesson.learner.optimizer)
        self.dealt = [deal(lesson.windows, lesson.config) for lesson in lessons]
        self.losses: list[list[float]] = [[] for _ in lessons]
        self.checks: list[list[StepCheck]] = [[] for _ in lessons]
        self.after = [float("nan")] * len(lessons)
        self.ended = [False] * len(lessons)

    @property
    def is_done(self) -> bool:
        """Returns whether every lesson has taken its steps or ended before."""
        return not self._active()

    def take_step(self) -> None:
        """Takes one step for every lesson that has one left, and asks its monitor."""
        active, step = self._active(), self.step
        if not active:
            return
        self.step += 1
        segments, weights = [], []
        for g in active:
            own = self._windows(g, self.dealt[g][step % len(self.dealt[g])])
            segments += own
            weights += [1 / sum(s.num_targets for s in own)] * len(own)
        self.stack.zero_grad()
        losses = self._train(segments, weights)
        for g in active:
            self.losses[g].append(_mean(segments, losses, g))
        mask = torch.zeros(len(self.lessons), dtype=torch.bool)
        mask[active] = True
        self.adam.step(mask)
        self._look(step, active)

    def results(self) -> list[LearnResult]:
        """Returns what each lesson came to."""
        seconds = time.monotonic() - self.started
        return [
            LearnResult(
                lora=self.stack.to_lora(g),
                optimizer=save_state(self.adam, g),
                losses=tuple(self.losses[g]),
                loss_before=self.losses[g][0],
                loss_after=self.after[g],
                checks=tuple(self.checks[g]),
                quarantined=any(not check.ok for check in self.checks[g]),
                seconds=seconds,
            )
            for g in range(len(self.lessons))
        ]

    def _active(self) -> list[int]:
        return [
            g
            for g, lesson in enumerate(self.lessons)
            if self.step < lesson.config.steps and not self.ended[g]
        ]

    def _windows(self, g: int, windows: Sequence[Window]) -> list[Segment]:
        return [window_segment(window, adapter=g, parent=self.parent_of[g]) for window in windows]

    def _train(self, segments: Sequence[Segment], weights: Sequence[float]) -> list[float]:
        """Adds the gradients of all segments to the stack; returns their summed losses."""
        losses: list[float] = []
        for part in in_passes(segments, PASS_TOKENS):
            packed = pack(segments[part])
            targets, counts = targets_of(segments[part])
            each = torch.tensor(weights[part]).repeat_interleave(torch.tensor(counts))
            loss = cross_entropy(targets, each)
            found = self.model.train_pass(packed, self.stack, loss, parents=self.parents)
            losses += [float(s.sum()) for s in found.split(counts)]
        return losses

    def _look(self, step: int, active: Sequence[int]) -> None:
        """Scores the monitors' texts and, for lessons at their end, the first step's windows."""
        segments: list[Segment] = []
        watched: list[tuple[int, StepMonitor, int, slice]] = []
        finished: list[tuple[int, slice]] = []
        for g in active:
            lesson, at = self.lessons[g], len(segments)
            if lesson.monitor is not None:
                number = lesson.first_step + step
                segments += lesson.monitor.segments(
                    number, adapter=g, parent=self.parent_of[g], first=at
                )
                watched.append((g, lesson.monitor, number, slice(at, len(segments))))
            if step + 1 == lesson.config.steps:
                at = len(segments)
                segments += self._windows(g, self.dealt[g][0])
                finished.append((g, slice(at, len(segments))))
        sums = self._score(segments) if segments else []
        for g, monitor, number, part in watched:
            counts = [s.num_targets for s in segments[part]]
            means = [x / n for x, n in zip(sums[part], counts, strict=True) if n]
            self.checks[g].append(monitor.judge(number, means))
            if not self.checks[g][-1].ok:
                self.ended[g] = True
                self.after[g] = self.losses[g][-1]
        for g, part in finished:
            self.after[g] = sum(sums[part]) / sum(s.num_targets for s in segments[part])

    def _score(self, segments: Sequence[Segment]) -> list[float]:
        sums: list[float] = []
        for part in in_passes(segments, PASS_TOKENS):
            chosen = rebased(segments[part], part.start)
            targets, counts = targets_of(chosen)
            loss = cross_entropy(targets, torch.ones(len(targets)))
            found = self.model.eval_pass(pack(chosen), self.stack, loss, parents=self.parents)
            sums += [float(s.sum()) for s in found.split(counts)]
        return sums


def window_segment(window: Window, *, adapter: int, parent: int) -> Segment:
    """Returns a window as a segment: inputs and what each should predict."""
    ids = window.tokens
    unlearned = [IGNORED] * (window.learn_from - 1)
    return Segment(
        adapter=adapter,
        tokens=ids[:-1],
        targets=[*unlearned, *ids[window.learn_from :]],
        parent=parent,
    )


def stack_parents(
    model: TrainingModel, parents: Sequence[tuple[Lora, ...]]
) -> tuple[list[int], AdapterStack | None]:
    """Returns the distinct parents as one frozen stack, its last empty, and each one's index."""
    distinct = {tuple(map(id, parent)): parent for parent in parents if parent}
    order = {key: i for i, key in enumerate(distinct)}
    indices = [order.get(tuple(map(id, parent)), -1) for parent in parents]
    if not distinct:
        return indices, None
    empty = Lora(config=LoraConfig(), a={}, b={})
    members = [*(concatenated(parent) for parent in distinct.values()), empty]
    return indices, AdapterStack(members, model.base.sites, dtype=model.dtype)


def in_passes(segments: Sequence[Segment], budget: int) -> list[slice]:
    """Cuts segments into runs of at most `budget` tokens; what follows a prompt stays with it."""
    runs: list[slice] = []
    start, size = 0, 0
    for i, segment in enumerate(segments):
        if i > start and size + len(segment.tokens) > budget and segment.after is None:
            runs.append(slice(start, i))
            start, size = i, 0
        size += len(segment.tokens)
    runs.append(slice(start, len(segments)))
    return runs


def rebased(segments: Sequence[Segment], start: int) -> list[Segment]:
    """Returns segments of a pass that begins at `start`, with what they follow counted so."""
    return [s if s.after is None else replace(s, after=s.after - start) for s in segments]


def deal(windows: Sequence[Window], config: LearnConfig) -> list[list[Window]]:
    """Returns at most `config.steps` steps, each a list of windows, that hold every window."""
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(config.seed))
    steps: list[list[Window]] = [[]]
    tokens = 0
    for i in order.tolist():
        size = len(windows[i].tokens)
        if steps[-1] and tokens + size > config.tokens_per_step:
            steps.append([])
            tokens = 0
        steps[-1].append(windows[i])
        tokens += size
    if len(steps) > config.steps:
        return deal(windows, replace(config, tokens_per_step=2 * config.tokens_per_step))
    return [sorted(step, key=lambda w: (len(w.tokens), w.tokens)) for step in steps]


def save_state(adam: StackAdamW, g: int) -> bytes:
    """Returns adapter g's moments and step count as safetensors."""
    compact = adam.stack.compact
    return save(
        {
            "mean": compact(adam.mean, g),
            "square": compact(adam.square, g),
            "step": adam.steps[g : g + 1].clone(),
        }
    )


def load_state(adam: StackAdamW, g: int, data: bytes) -> None:
    """Takes up what `save_state` returned.

    Raises:
        DataError: it is of another adapter.
    """
    state = load(data)
    adam.stack.expand(state["mean"], adam.mean, g)
    adam.stack.expand(state["square"], adam.square, g)
    adam.steps[g] = state["step"][0]


def _mean(segments: Sequence[Segment], sums: Sequence[float], g: int) -> float:
    own = [(x, s.num_targets) for s, x in zip(segments, sums, strict=True) if s.adapter == g]
    return sum(x for x, _ in own) / sum(n for _, n in own)
