"""Lessons wait here for one thread, which lets those that come together share their passes.

Groups take their steps in turn, one step each: a correction of one step waits for at most one step
of every longer lesson under way, never for the whole of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from cambium.core.errors import Stopped
from cambium.learn.lesson import LearnResult, Lesson
from cambium.learn.online import LessonGroup
from cambium.models.training_model import TrainingModel

# How long the first of several lessons waits for company.
GATHER_S = 0.002
MAX_TOGETHER = 64
# Lessons with more tokens in a step go alone, so that short ones do not wait for their passes.
SHORT_TOKENS = 512


@dataclass(kw_only=True)
class _Waiting:
    lesson: Lesson
    tenant: str
    result: Future[LearnResult] = field(default_factory=Future)


@dataclass(kw_only=True)
class _Running:
    group: LessonGroup
    members: Sequence[_Waiting]


class LearningQueue:
    """Runs lessons; a failure ends the lessons of its own group and nothing else."""

    def __init__(self, model: TrainingModel) -> None:
        self._model = model
        self._waiting: deque[_Waiting] = deque()
        self._running: deque[_Running] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._refused: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="learning", daemon=True)
        self._thread.start()

    def learn(self, lesson: Lesson, *, tenant: str) -> LearnResult:
        """Takes the lesson's steps, in company with others that are there; returns when done.

        Raises:
            DataError: as `learn_together`.
            Stopped: the server closes.
        """
        waiting = _Waiting(lesson=lesson, tenant=tenant)
        with self._wake:
            if self._closing:
                raise Stopped("the learner is closing", mend="try again when the server is up")
            if self._refused is not None:
                raise self._refused
            self._waiting.append(waiting)
            self._wake.notify()
        return waiting.result.result()

    @property
    def num_pending(self) -> int:
        """Returns how many lessons are being learned or wait."""
        return len(self._waiting) + sum(len(r.members) for r in list(self._running))

    def halt(self, error: Exception) -> None:
        """Ends lessons with `error` before their next step and lets none begin until `resume`."""
        with self._wake:
            self._refused = error

    def resume(self) -> None:
        """Lets lessons begin again."""
        with self._wake:
            self._refused = None

    def close(self) -> None:
        """Ends the thread; lessons that are not done answer `Stopped` and change nothing."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        left = [*self._waiting, *(m for r in self._running for m in r.members)]
        for waiting in left:
            waiting.result.set_exception(
                Stopped("the learner closed before the lesson was done", mend="send it again")
            )

    def _run(self) -> None:
        while self._has_work():
            # Answers may be owed time; who comes before it is paid still joins the group.
            self._model.base.run(_nothing)
            for members in _grouped(self._take_waiting()):
                self._start(members)
            if self._refused is not None:
                self._end_all(self._refused)
            if self._running:
                self._step(self._running.popleft())

    def _has_work(self) -> bool:
        with self._wake:
            while not self._closing and not self._waiting and not self._running:
                self._wake.wait()
            idle = not self._running
        if idle and not self._closing:
            time.sleep(GATHER_S)
        return not self._closing

    def _take_waiting(self) -> list[_Waiting]:
        with self._wake:
            taken = list(self._waiting)
            self._waiting.clear()
        return taken

    def _start(self, members: Sequence[_Waiting]) -> None:
        try:
            group = LessonGroup(self._model, [m.lesson for m in members])
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            self._give_up(members, error)
        else:
            # What has just come goes before what has been at work for long.
            self._running.appendleft(_Running(group=group, members=members))

    def _step(self, running: _Running) -> None:
        try:
            running.group.take_step()
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            self._give_up(running.members, error)
            return
        if not running.group.is_done:
            self._running.append(running)
            return
        for member, result in zip(running.members, running.group.results(), strict=True):
            member.result.set_result(result)

    def _end_all(self, error: Exception) -> None:
        for running in self._running:
            for member in running.members:
                member.result.set_exception(error)
        self._running.clear()

    def _give_up(self, members: Sequence[_Waiting], error: Exception) -> None:
        """Tells the error to a lesson that was alone; of several, each tries by itself."""
        if len(members) == 1:
            members[0].result.set_exception(error)
            return
        for member in members:
            self._start([member])


def _nothing() -> None:
    pass


def _grouped(waiting: Sequence[_Waiting]) -> list[list[_Waiting]]:
    """Returns short lessons together, tenants in turn, and each long one by itself."""
    short = [w for w in waiting if _step_tokens(w.lesson) <= SHORT_TOKENS]
    groups = [[w] for w in waiting if _step_tokens(w.lesson) > SHORT_TOKENS]
    by_tenant: dict[str, deque[_Waiting]] = {}
    for one in short:
        by_tenant.setdefault(one.tenant, deque()).append(one)
    ordered: list[_Waiting] = []
    while by_tenant:
        for tenant in list(by_tenant):
            ordered.append(by_tenant[tenant].popleft())
            if not by_tenant[tenant]:
                del by_tenant[tenant]
    return groups + [ordered[at : at + MAX_TOGETHER] for at in range(0, len(ordered), MAX_TOGETHER)]


def _step_tokens(lesson: Lesson) -> int:
    total = sum(len(window.tokens) for window in lesson.windows)
    return min(total, lesson.config.tokens_per_step)
