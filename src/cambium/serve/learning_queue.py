"""Lessons wait here for one thread, which lets those that come together share their passes.

One step at a time: what has just come and what is at work take turns, and within either the tenant
goes next who has waited longest. So a correction of one step waits for one step of a longer lesson
and never for the whole of it, and a stream of corrections keeps no longer lesson from its end.
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


@dataclass(kw_only=True, eq=False)
class _Running:
    group: LessonGroup
    members: Sequence[_Waiting]

    @property
    def tenants(self) -> set[str]:
        """Returns whose lessons these are."""
        return {member.tenant for member in self.members}


class LearningQueue:
    """Runs lessons; a failure ends the lessons of its own group and nothing else."""

    def __init__(self, model: TrainingModel) -> None:
        self._model = model
        self._waiting: deque[_Waiting] = deque()
        self._fresh: list[_Running] = []  # have taken no step yet
        self._running: list[_Running] = []
        self._turn_of_running = False
        # At which step of this queue each tenant was last served.
        self._served: dict[str, int] = {}
        self._num_steps = 0
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
        groups = [*self._fresh, *self._running]
        return len(self._waiting) + sum(len(group.members) for group in groups)

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
        left = [*self._waiting, *(m for r in (*self._fresh, *self._running) for m in r.members)]
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
            if self._fresh or self._running:
                self._step(self._next())

    def _has_work(self) -> bool:
        with self._wake:
            while not self._closing and not self._waiting and not self._is_at_work:
                self._served.clear()
                self._wake.wait()
            idle = not self._is_at_work
        if idle and not self._closing:
            time.sleep(GATHER_S)
        return not self._closing

    @property
    def _is_at_work(self) -> bool:
        return bool(self._fresh or self._running)

    def _next(self) -> _Running:
        """Takes out the group whose turn it is."""
        is_old = bool(self._running) and (self._turn_of_running or not self._fresh)
        self._turn_of_running = not is_old
        lane = self._running if is_old else self._fresh
        chosen = min(lane, key=lambda r: min(self._served.get(t, 0) for t in r.tenants))
        lane.remove(chosen)
        self._num_steps += 1
        self._served.update(dict.fromkeys(chosen.tenants, self._num_steps))
        return chosen

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
            self._fresh.append(_Running(group=group, members=members))

    def _step(self, running: _Running) -> None:
        try:
            running.group.take_step()
            results = running.group.results() if running.group.is_done else None
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            self._give_up(running.members, error)
            return
        if results is None:
            self._running.append(running)
            return
        for member, result in zip(running.members, results, strict=True):
            member.result.set_result(result)

    def _end_all(self, error: Exception) -> None:
        for running in (*self._fresh, *self._running):
            for member in running.members:
                member.result.set_exception(error)
        self._fresh.clear()
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
