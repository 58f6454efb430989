"""The job runner: one background thread, in order, at most one job per name.

Where several processes share a state, each has a runner, and a job runs in one of them at a time.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from cambium.core.errors import Stopped
from cambium.serve.errors import StateLocked, StateUnreachable
from cambium.serve.spans import span
from cambium.serve.store.state import State

Job = Callable[[], None]
Hold = Callable[[str], AbstractContextManager[bool]]
Check = Callable[[], None]
Breakable = Callable[[Check], AbstractContextManager[None]]
# What passes by itself, and decides nothing meanwhile.
AWAY = (StateUnreachable, StateLocked)
# After which a job that another process works on, or whose state is away, is tried again.
RETRY_S = 0.5
_log = logging.getLogger(__name__)


@contextmanager
def _whole(_check: Check) -> Iterator[None]:
    yield


@contextmanager
def _alone(_name: str) -> Iterator[bool]:
    yield True


def claims_on(state: State) -> Hold:
    """Returns what takes a piece of work for a block; it gives False if another process has it.

    A process that dies has given everything back.
    """

    @contextmanager
    def hold(name: str) -> Iterator[bool]:
        with state.transaction() as tx:
            process = state.process or ""
            mine = tx.claim(name, process=process)
        try:
            yield mine
        finally:
            if mine:
                with state.transaction() as tx:
                    tx.release(name, process=process)

    return hold if state.is_shared else _alone


class JobRunner:
    """Runs jobs one after another; each can be broken off between two of its steps.

    What a job does must survive being cut off at any point: the store is the queue's memory,
    and at start the server submits again whatever was unfinished.
    """

    def __init__(self, hold: Hold = _alone, *, breakable: Breakable = _whole) -> None:
        """Takes what holds a piece of work for this process; by default it is the only one.

        Args:
            breakable: what makes a job ask between its steps, and end with what is raised then.
        """
        self.hold = hold
        self._breakable = breakable
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._running: str | None = None
        self._wake = threading.Condition()
        self._closing = False
        self._halted = False
        self._stop = threading.Event()  # of the running job
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def submit(self, name: str, job: Job) -> None:
        """Queues a job; a queued one of the same name is replaced."""
        with self._wake:
            self._jobs[name] = job
            self._wake.notify_all()

    @property
    def pending(self) -> tuple[str, ...]:
        """Returns the running job and those that wait."""
        with self._wake:
            running = (self._running,) if self._running else ()
            return (*running, *self._jobs)

    def wait_idle(self, timeout_s: float) -> bool:
        """Waits until nothing runs and nothing is queued; returns whether that came in time."""
        with self._wake:
            return self._wake.wait_for(lambda: not self.pending, timeout_s)

    def halt(self) -> None:
        """Breaks the running job off and drops the queued ones; none begins until `resume`."""
        with self._wake:
            self._halted = True
            self._jobs.clear()
            self._stop.set()

    def resume(self) -> None:
        """Lets jobs begin again; what was dropped has to be submitted again."""
        with self._wake:
            self._halted = False
            self._wake.notify_all()

    def close(self) -> None:
        """Breaks the running job off and waits for it; queued jobs are dropped."""
        with self._wake:
            self._closing = True
            self._jobs.clear()
            self._stop.set()
            self._wake.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while (self._halted or not self._jobs) and not self._closing:
                    self._wake.wait()
                if self._closing:
                    return
                self._running, job = self._jobs.popitem(last=False)
                stop = self._stop = threading.Event()
            is_done = True
            try:
                is_done = self._do(self._running, job, stop)
            except Stopped:
                _log.info("job %s was broken off", self._running)
            except AWAY as error:
                _log.warning("job %s waits: %s", self._running, error.one_line())
                is_done = False
            except Exception:  # noqa: BLE001  (a failed job must not end the runner)
                _log.exception("job %s failed", self._running)
            finally:
                with self._wake:
                    again, self._running = self._running, None
                    self._wake.notify_all()
                    if not is_done and not self._halted and not self._closing:
                        self._jobs.setdefault(again, job)
                        self._wake.wait(RETRY_S)

    def _do(self, name: str, job: Job, stop: threading.Event) -> bool:
        """Does a job, if no other process is at it; returns whether it did."""
        with self.hold(name) as mine:
            if mine:
                with span("job", job=name), self._breakable(partial(_check, stop)):
                    job()
        return mine


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped("the work was broken off", mend="it goes on when the server does")
