"""Online learning: one to eight AdamW steps on ephemeral adapters, checked at every step.

Lessons of several adapters share their passes: each keeps its own rows, rate, steps and verdict.
This package opens no files and no sockets: the server persists what it returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from safetensors.torch import load, save
from torch import Tensor

from cambium.core.errors import DataError
from cambium.learn.importance import IMPORTANCE, Importances
from cambium.learn.lesson import MAX_STEPS, Frame, LearnConfig, LearnResult, Lesson, Shape
from cambium.learn.objectives import OBJECTIVES, UNLABELLED, ewc
from cambium.learn.objectives.objective import Objective, Place
from cambium.learn.passes import Ask, deal, nothing, run_asks, stack_parents
from cambium.models.adapter_stack import AdapterStack, StackAdamW
from cambium.models.chunked_head import HeadLoss, cross_entropy
from cambium.models.lora import Lora, concatenated
from cambium.models.packing import Pack, Segment, targets_of
from cambium.models.step_check import StepCheck
from cambium.models.training_model import TrainingModel


def learn(model: TrainingModel, lesson: Lesson) -> LearnResult:
    """Takes the steps of one lesson; as `learn_together`."""
    return learn_together(model, [lesson])[0]


def learn_together(model: TrainingModel, lessons: Sequence[Lesson]) -> list[LearnResult]:
    """Takes every lesson's steps on its own adapter, on top of the frozen base and its parent.

    The given adapters are not changed; neither is the base, nor a parent.

    Raises:
        DataError: no windows, steps outside 1..8, texts that the loss cannot use, or an optimiser
            state of another adapter.
    """
    group = LessonGroup(model, lessons)
    while not group.is_done:
        group.take_step()
    return group.results()


class LessonGroup:
    """Lessons under way together, one step at a time.

    Args:
        frame: that of a lesson which is replayed; the other rows change nothing then.

    Raises:
        DataError: as `learn_together`.
    """

    def __init__(
        self, model: TrainingModel, lessons: Sequence[Lesson], *, frame: Frame | None = None
    ) -> None:
        for lesson in lessons:
            _check(lesson)
        self.model = model
        self.lessons = lessons
        self.started = time.monotonic()
        self.step = 0
        self.objectives = [lesson.objective or _objective(lesson) for lesson in lessons]
        members = [x.learner.lora for x in lessons]
        parents = [x.learner.parent for x in lessons]
        if frame is None:
            self.parent_of, self.parents = stack_parents(model, parents)
            # The rows after the lessons' own answer for their teachers and never learn.
            self.places = self._places(members)
            self.stack = AdapterStack(members, model.base.sites, dtype=model.dtype)
        else:
            self._rebuild(frame, members, parents[frame.row])
        configs = [x.config for x in lessons] + [LearnConfig()] * (len(members) - len(lessons))
        self.adam = StackAdamW(
            self.stack,
            lr=torch.tensor([x.lr for x in configs], dtype=torch.float64),
            max_grad_norm=torch.tensor([x.max_grad_norm for x in configs]),
        )
        self.importances: Importances | None = None
        self.weighs = torch.tensor([bool(x.ewc_strength or x.si_strength) for x in configs])
        # What mattered to a lesson that weighs nothing now: it may again tomorrow.
        self.put_by: dict[int, dict[str, Tensor]] = {}
        if self.weighs.any():
            self.importances = Importances(
                self.stack,
                ewc_strengths=[x.ewc_strength for x in configs],
                si_strengths=[x.si_strength for x in configs],
            )
        for g, lesson in enumerate(lessons):
            if lesson.learner.optimizer:
                self._load_state(g, lesson.learner.optimizer)
        # What a lesson without labels goes back to.
        self.found = {
            g: tuple(row.clone() for row in self._rows(g))
            for g, lesson in enumerate(lessons)
            if _is_guarded(lesson) or lesson.objective
        }
        # Copies: what a lesson that comes to nothing was told is of weights that nobody keeps.
        self.monitors = {g: x.monitor.copied() for g, x in enumerate(lessons) if x.monitor}
        self.losses: list[list[float]] = [[] for _ in lessons]
        self.rehearsed: list[list[Tensor]] = [[] for _ in lessons]
        self.checks: list[list[StepCheck]] = [[] for _ in lessons]
        self.after = [float("nan")] * len(lessons)
        self.begun = [0] * len(lessons)
        self.ended = [False] * len(lessons)
        self.was_reset = [False] * len(lessons)
        self.shapes: list[dict[str, dict[int, tuple[Shape, ...]]]] = []

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
        self.shapes.append({})
        for g in active:
            self.begun[g] += 1
        self._prepare(step, active)
        lost = [g for g in active if self.objectives[g].is_lost]
        for g in lost:
            self._reset(g)
        learning = [g for g in active if g not in lost]
        if learning:
            self._learn(step, learning)
        self._look(step, learning, lost)

    def results(self) -> list[LearnResult]:
        """Returns what each lesson came to."""
        return [self.result(g) for g in range(len(self.lessons))]

    def result(self, g: int) -> LearnResult:
        """Returns what lesson g came to."""
        return LearnResult(
            lora=self.stack.to_adapter(g),
            optimizer=self._save_state(g),
            losses=tuple(self.losses[g]),
            loss_before=self.losses[g][0] if self.losses[g] else self.after[g],
            loss_after=self.after[g],
            checks=tuple(self.checks[g]),
            quarantined=any(not check.ok for check in self.checks[g]),
            reset=self.was_reset[g],
            seconds=time.monotonic() - self.started,
            rehearsed=tuple(self.rehearsed[g]),
            monitor=self.monitors.get(g),
            frame=self._frame(g),
            shapes=tuple(self.shapes[: self.begun[g]]),
        )

    def _places(self, members: list[Lora]) -> list[Place]:
        """Returns where each lesson lies; appends the teachers' rows to `members`."""
        teachers: dict[int, int] = {}
        nobody = len(members)
        if any(x.config.loss != "task" or x.rehearsal is not None for x in self.lessons):
            members.append(nothing())
        starts: dict[int, int] = {}
        for g, lesson in enumerate(self.lessons):
            if lesson.learner.teacher is not None:
                teachers[g] = len(members)
                members.append(lesson.learner.teacher)
            if _is_guarded(lesson):
                starts[g] = len(members)
                members.append(lesson.learner.lora)
        return [
            Place(
                adapter=g,
                parent=self.parent_of[g],
                nobody=teachers.get(g, nobody),
                start=starts.get(g, -1),
            )
            for g in range(len(self.lessons))
        ]

    def _rebuild(self, frame: Frame, members: list[Lora], parent: tuple[Lora, ...]) -> None:
        """Makes the stacks of a recorded lesson, everything but its own rows empty."""
        sites, dtype = self.model.base.sites, self.model.dtype
        teacher = self.lessons[frame.row].learner.teacher
        members += [nothing()] * (frame.rows - len(members))
        if teacher is not None:
            members[frame.nobody] = teacher
        if frame.start >= 0:
            members[frame.start] = self.lessons[frame.row].learner.lora
        self.stack = AdapterStack(members, sites, dtype=dtype, rank=frame.rank, paths=frame.paths)
        self.parents = None
        if frame.parents:
            above = [nothing()] * frame.parents
            if parent:
                above[frame.parent] = concatenated(parent)
            rank, paths = frame.parents_rank, frame.parents_paths
            self.parents = AdapterStack(above, sites, dtype=dtype, rank=rank, paths=paths)
        self.parent_of = [frame.parent] * len(self.lessons)
        self.places = [
            Place(adapter=g, parent=frame.parent, nobody=frame.nobody, start=frame.start)
            for g in range(len(self.lessons))
        ]

    def _frame(self, g: int) -> Frame:
        stack, parents = self.stack, self.parents
        return Frame(
            row=g,
            rows=len(stack.adapters),
            rank=stack.rank,
            paths=stack.paths,
            nobody=self.places[g].nobody,
            start=self.places[g].start,
            parent=self.parent_of[g],
            parents=len(parents.adapters) if parents else 0,
            parents_rank=parents.rank if parents else 0,
            parents_paths=parents.paths if parents else (),
        )

    def _active(self) -> list[int]:
        return [
            g
            for g, lesson in enumerate(self.lessons)
            if self.step < lesson.config.steps and not self.ended[g]
        ]

    def _prepare(self, step: int, active: Sequence[int]) -> None:
        asks: dict[int, Ask] = {}
        for g in active:
            own = self.objectives[g].prepare(step, self.places[g])
            rehearsal = self.lessons[g].rehearsal
            old = rehearsal.prepare(step, self.places[g]) if rehearsal else None
            if own is not None or old is not None:
                asks[g] = next(ask for ask in (own, old) if ask is not None)
            if own is not None and old is not None:
                asks[g] = own.followed_by(old)
        self._run(asks, self._eval, "prepare")

    def _learn(self, step: int, active: Sequence[int]) -> None:
        self.stack.zero_grad()
        asks = {g: self.objectives[g].ask(step, self.places[g]) for g in active}
        for g, losses in self._run(asks, self._train, "task").items():
            self.losses[g].append(self.objectives[g].value(step, losses))
        kept = self.importances
        # Importance is of the task alone; what rehearsal adds to the gradient comes after.
        grad = self.stack.grad.clone() if kept else None
        before = self.stack.weights.clone() if kept else None
        old: dict[int, Ask] = {}
        for g in active:
            rehearsal = self.lessons[g].rehearsal
            ask = rehearsal.ask(step, self.places[g]) if rehearsal else None
            if ask is not None:
                old[g] = ask
        for g, losses in self._run(old, self._train, "rehearsal").items():
            self.rehearsed[g].append(losses)
        mask = torch.zeros(len(self.stack.weights), dtype=torch.bool)
        mask[list(active)] = True
        self.adam.step(mask)
        if kept and grad is not None and before is not None:
            kept.step(grad, before, self.adam.lr, mask & self.weighs)

    def _look(self, step: int, learning: Sequence[int], lost: Sequence[int]) -> None:
        """Asks the monitors of what the step left, and scores what is at its end once more."""
        ending = [g for g in learning if step + 1 == self.lessons[g].config.steps]
        ready = {g: self.objectives[g].prepare(0, self.places[g]) for g in ending}
        self._run({g: ask for g, ask in ready.items() if ask is not None}, self._eval)
        for g in ending:
            if self.objectives[g].is_lost:
                self._reset(g)
        last = {g: self.objectives[g].ask(0, self.places[g]) for g in (*ending, *lost)}
        watched = {g: self._watched(g, step) for g in learning if g in self.monitors}
        asks = [*(_plain(own) for own in watched.values()), *last.values()]
        found = run_asks(asks, self._eval)
        self._judge(step, watched, found[: len(watched)])
        for g, losses in zip(last, found[len(watched) :], strict=True):
            self.after[g] = self.objectives[g].value(0, losses)
        for g in ending:
            ends = self.lessons[g].config.ends_task and not self.was_reset[g]
            if self.importances is not None and self.weighs[g] and ends:
                self._end_task(g, self.importances)

    def _watched(self, g: int, step: int | None) -> list[Segment]:
        """Returns what lesson g's monitor asks after a step of this call; None is all there is."""
        at = None if step is None else self.lessons[g].first_step + step
        return self.monitors[g].segments(at, adapter=g, parent=self.parent_of[g])

    def _judge(
        self, step: int | None, watched: Mapping[int, Sequence[Segment]], found: Sequence[Tensor]
    ) -> None:
        """Books the monitors' verdicts; a monitor in doubt is given all that it can ask."""
        doubted: list[int] = []
        for (g, own), losses in zip(watched.items(), found, strict=True):
            at = None if step is None else self.lessons[g].first_step + step
            parts = losses.split([s.num_targets for s in own])
            check = self.monitors[g].judge(at, [float(x.mean()) for x in parts if len(x)])
            if check is not None:
                self._book(g, check)
            elif step is None:
                raise RuntimeError("a monitor had all its answers and gave no verdict")
            else:
                doubted.append(g)
        if doubted:
            whole = {g: self._watched(g, None) for g in doubted}
            asks = [_plain(own) for own in whole.values()]
            self._judge(None, whole, run_asks(asks, self._eval))

    def _book(self, g: int, check: StepCheck) -> None:
        self.checks[g].append(check)
        if not check.ok:
            self.ended[g] = True
            self.after[g] = self.losses[g][-1]

    def _end_task(self, g: int, importances: Importances) -> None:
        lesson, found = self.lessons[g], None
        if lesson.config.ewc_strength:
            exact = self.model
            if exact.dtype != torch.float32:
                exact = TrainingModel(exact.base, torch.float32)
            found = ewc.fisher(
                exact, self.stack.to_adapter(g), lesson.windows, parent=lesson.learner.parent
            )
        importances.end_task(g, found, decay=lesson.config.ewc_decay)

    def _reset(self, g: int) -> None:
        """Makes adapter g what the call found, with no memory of what led it astray."""
        for row, before in zip(self._rows(g), self.found[g], strict=True):
            row.copy_(before)
        self.stack.refresh()
        monitor = self.lessons[g].monitor
        if monitor is not None:
            self.monitors[g] = monitor.copied()
        self.ended[g] = self.was_reset[g] = True

    def _rows(self, g: int) -> tuple[Tensor, ...]:
        """Returns all that learning changes of adapter g, as views."""
        adam = self.adam
        own = (self.stack.weights[g], adam.mean[g], adam.square[g], adam.steps[g : g + 1])
        return own + (self.importances.rows(g) if self.importances else ())

    def _run(
        self, asks: Mapping[int, Ask], run: Callable[[Pack, HeadLoss], Tensor], phase: str = ""
    ) -> dict[int, Tensor]:
        """Runs asks together; what a phase with a name ran is remembered for the manifest."""
        if not asks:
            return {}
        if phase:
            self.shapes[-1][phase] = {g: shape_of(ask) for g, ask in asks.items()}
        return dict(zip(asks, run_asks(list(asks.values()), run), strict=True))

    @property
    def _train(self) -> Callable[[Pack, HeadLoss], Tensor]:
        return partial(_run_pass, self.model.train_pass, self.stack, self.parents)

    @property
    def _eval(self) -> Callable[[Pack, HeadLoss], Tensor]:
        return partial(_run_pass, self.model.eval_pass, self.stack, self.parents)

    def _save_state(self, g: int) -> bytes:
        found = self.put_by.get(g, {})
        if self.importances is not None and self.weighs[g]:
            found = self.importances.save(g)
        return save({**save_state(self.adam, g), **found})

    def _load_state(self, g: int, data: bytes) -> None:
        state = load(data)
        load_state(self.adam, g, state)
        if self.importances is not None and self.weighs[g]:
            self.importances.load(g, state)
        else:
            self.put_by[g] = {k: v for k, v in state.items() if k.startswith(IMPORTANCE)}


def _check(lesson: Lesson) -> None:
    config, windows = lesson.config, lesson.windows
    if not windows or not 1 <= config.steps <= MAX_STEPS:
        raise DataError(
            f"{len(windows)} windows and {config.steps} steps teach nothing",
            mend=f"send at least one example and 1 to {MAX_STEPS} steps",
        )
    if config.loss not in OBJECTIVES or not 0 <= config.lr < float("inf"):
        raise DataError(
            f"no loss {config.loss!r} at a rate of {config.lr}",
            mend=f"use one of {', '.join(OBJECTIVES)}, at a rate that is a number",
        )
    if any(len(window.tokens) <= window.learn_from for window in windows):
        raise DataError("a window has no token to learn", mend="leave it out")


def _is_guarded(lesson: Lesson) -> bool:
    return lesson.config.loss in UNLABELLED and lesson.objective is None


def _objective(lesson: Lesson) -> Objective:
    config = lesson.config
    dealt = deal(
        lesson.windows,
        steps=config.steps,
        tokens_per_step=config.tokens_per_step,
        seed=config.seed,
    )
    return OBJECTIVES[config.loss](dealt, config.objective)


def shape_of(ask: Ask) -> tuple[Shape, ...]:
    """Returns all that an ask's passes depend on but its content."""
    return tuple((s.adapter, s.parent, len(s.tokens), s.num_targets, s.after) for s in ask.segments)


def _plain(segments: Sequence[Segment]) -> Ask:
    targets, _ = targets_of(segments)
    return Ask(segments=segments, loss=cross_entropy(targets, torch.ones(len(targets))))


def _run_pass(
    run: Callable[..., Tensor],
    stack: AdapterStack,
    parents: AdapterStack | None,
    pack: Pack,
    loss: HeadLoss,
) -> Tensor:
    return run(pack, stack, loss, parents=parents)


def save_state(adam: StackAdamW, g: int) -> dict[str, Tensor]:
    """Returns adapter g's moments and step count."""
    compact = adam.stack.compact
    return {
        "mean": compact(adam.mean, g),
        "square": compact(adam.square, g),
        "step": adam.steps[g : g + 1].clone(),
    }


def load_state(adam: StackAdamW, g: int, state: Mapping[str, Tensor]) -> None:
    """Takes up what `save_state` returned.

    Raises:
        DataError: it is of another adapter.
    """
    adam.stack.expand(state["mean"], adam.mean, g)
    adam.stack.expand(state["square"], adam.square, g)
    adam.steps[g] = state["step"][0]
