"""The job runner: one background thread, in order, at most one job per name."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

from cambium.serve.spans import span

Job = Callable[[threading.Event], None]
_log = logging.getLogger(__name__)


class JobRunner:
    """Runs jobs one after another; a job is given an event that says when to stop.

    What a job does must survive being cut off at any point: the store is the queue's memory,
    and at start the server submits again whatever was unfinished.
    """

    def __init__(self) -> None:
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
            self._wake.notify()

    @property
    def pending(self) -> tuple[str, ...]:
        """Returns the running job and those that wait."""
        with self._wake:
            running = (self._running,) if self._running else ()
            return (*running, *self._jobs)

    def halt(self) -> None:
        """Asks the running job to stop and drops the queued ones; none begins until `resume`."""
        with self._wake:
            self._halted = True
            self._jobs.clear()
            self._stop.set()

    def resume(self) -> None:
        """Lets jobs begin again; what was dropped has to be submitted again."""
        with self._wake:
            self._halted = False
            self._wake.notify()

    def close(self) -> None:
        """Asks the running job to stop and waits for it; queued jobs are dropped."""
        with self._wake:
            self._closing = True
            self._jobs.clear()
            self._stop.set()
            self._wake.notify()
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
            try:
                with span("job", job=self._running):
                    job(stop)
            except Exception:  # noqa: BLE001  (a failed job must not end the runner)
                _log.exception("job %s failed", self._running)
            finally:
                with self._wake:
                    self._running = None
