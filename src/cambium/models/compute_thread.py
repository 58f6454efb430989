"""One thread for every pass of a server: it has all cores, and it lets answers go before."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import torch

# What answers under way get of the time, at least, while others want it too.
ANSWERS_SHARE = 0.92
# But no pass waits longer than this for what another took: a long one, as the first of a new shape
# is, would hold up whoever comes next for many times its length.
MAX_WAIT_S = 3.0
_Result = TypeVar("_Result")
_Job = tuple[Callable[[], Any], "Future[Any]"]


class ComputeThread:
    """Runs passes one at a time: answers first, all others in the order in which they came.

    OpenMP keeps a team of threads for every thread that computes. Once teams outnumber cores,
    members go to sleep at each of a pass's many barriers, and a short pass takes twice as long.
    So while this is open, all other threads of the process compute on one core each, and surely
    so where `OMP_NUM_THREADS=1` was set before torch was imported.

    While answers are under way, a pass of another kind leaves the time after it to them, and none
    follows before that is over: not even in the moments between two passes of an answer.

    Args:
        num_threads: that a pass runs on; None for as many as torch uses now.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        self.num_threads = num_threads or torch.get_num_threads()
        self._answers: deque[_Job] = deque()
        self._others: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._expects_answers = False
        self._others_from = 0.0
        self._closing = False
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(ready,), name="compute", daemon=True
        )
        self._thread.start()
        ready.result()
        torch.set_num_threads(1)

    def run(self, work: Callable[[], _Result], *, is_answer: bool = False) -> _Result:
        """Returns what `work` returns; it runs in the caller's grad and inference mode.

        Raises:
            RuntimeError: the thread was closed. And whatever `work` raises.
        """
        if threading.current_thread() is self._thread:
            return work()
        is_inference, has_grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

        def in_mode() -> _Result:
            with torch.inference_mode(is_inference), torch.set_grad_enabled(has_grad):
                return work()

        result: Future[_Result] = Future()
        with self._wake:
            if self._closing:
                raise RuntimeError("the compute thread is closed")
            (self._answers if is_answer else self._others).append((in_mode, result))
            self._wake.notify()
        return result.result()

    def expect_answers(self, expected: bool) -> None:
        """Says whether answers are under way."""
        with self._wake:
            self._expects_answers = expected
            self._others_from = 0.0
            self._wake.notify()

    def close(self) -> None:
        """Ends the thread after what waits; other threads may have all cores again."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        torch.set_num_threads(self.num_threads)

    def _run(self, ready: Future[None]) -> None:
        torch.set_num_threads(self.num_threads)
        # The first question settles it for this thread, whatever is set for others later.
        torch.get_num_threads()
        ready.set_result(None)
        while (taken := self._next()) is not None:
            (work, result), is_answer = taken
            started = time.monotonic()
            try:
                tell = partial(result.set_result, work())
            except BaseException as error:  # noqa: BLE001 - told to whoever asked
                tell = partial(result.set_exception, error)
            if not is_answer:
                self._leave_time(time.monotonic() - started)
            tell()

    def _next(self) -> tuple[_Job, bool] | None:
        """Waits for the next pass and whether it is an answer's; None when all is over."""
        with self._wake:
            while True:
                wait_s = self._others_from - time.monotonic()
                if self._others and (wait_s <= 0 or self._closing):
                    return self._others.popleft(), False
                if self._answers:
                    return self._answers.popleft(), True
                if self._closing:
                    return None
                self._wake.wait(wait_s if self._others else None)

    def _leave_time(self, seconds: float) -> None:
        """Leaves to answers under way what they are owed for a pass of so many seconds."""
        with self._wake:
            if self._expects_answers:
                owed_s = seconds * ANSWERS_SHARE / (1 - ANSWERS_SHARE)
                self._others_from = time.monotonic() + min(owed_s, MAX_WAIT_S)
