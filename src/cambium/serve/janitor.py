"""What must leave: adapters whose time is over, old traces, bytes that no row names any more."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cambium.core.errors import CambiumError
from cambium.serve.ephemeral import EphemeralAdapters
from cambium.serve.store.state import State

PERIOD_S = 10.0
FORGET_S = 600.0
# A blob is put before the row that names it; what is younger than this is left alone.
GRACE_S = 20.0
_log = logging.getLogger(__name__)


class Janitor:
    """Ends and sweeps at the start, and then from one thread every `PERIOD_S`.

    The weights and optimizer of an adapter that has expired, was deleted or was taught further
    are off the disk within `PERIOD_S + GRACE_S` of that.
    """

    def __init__(
        self, adapters: EphemeralAdapters, state: State, *, forget: Callable[[], object] = int
    ) -> None:
        """Takes what lets old traces go, which is called every `FORGET_S`."""
        self._adapters = adapters
        self._state = state
        self._forget = forget
        self._forget_at = 0.0
        self._seen_seq = -1
        self._sweep_until = 0.0
        self._stop = threading.Event()
        self._try()
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)
        self._thread.start()

    def tidy(self, *, grace_s: float = GRACE_S) -> int:
        """Ends what is over and sweeps if anything has happened; returns how many blobs went.

        Whatever drops the name of a blob is in the log, so a log that has not grown since the
        last sweep after its grace means that there is nothing to do.
        """
        self._adapters.expire()
        if time.monotonic() >= self._forget_at:
            self._forget()
            self._forget_at = time.monotonic() + FORGET_S
        with self._state.read() as tx:
            last = tx.last_audit_entry()
        now = time.monotonic()
        if last is not None and last.seq != self._seen_seq:
            self._seen_seq = last.seq
            self._sweep_until = now + grace_s + 2 * PERIOD_S
        if now > self._sweep_until:
            return 0
        return self._state.sweep_blobs(grace_s=grace_s)

    def close(self) -> None:
        """Stops the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self._try()

    def _try(self) -> None:
        try:
            self.tidy()
        except CambiumError as error:  # a full disk: what is over answers no more all the same
            _log.warning("tidying waits: %s", error.one_line())
