"""Traces: what stood behind each answer, written in batches in their own lane.

A trace is visible at once and durable within `FLUSH_S`; only then does losing power lose it.
It is not an acknowledged write: answers do not wait for the disk. What is written is a leaf of the
requests' own tree in the same transaction; see `request_log`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from cambium.core.errors import CambiumError
from cambium.serve.errors import TraceNotFound
from cambium.serve.request_log import log_requests
from cambium.serve.store.records import TraceRow
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.trust.keys import SigningKey

FLUSH_S = 0.05
MAX_PENDING = 20_000
_log = logging.getLogger(__name__)


class TraceLane:
    """Collects traces and writes them together from one thread."""

    def __init__(self, state: State, key_in: Callable[[Transaction], SigningKey]) -> None:
        """Takes the state and what says which key signs in a transaction."""
        self._state = state
        self._key_in = key_in
        self._pending: OrderedDict[str, TraceRow] = OrderedDict()
        self._lock = threading.Lock()
        self.num_written = 0  # since the start; amendments count too
        self._closing = threading.Event()
        self._filled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def record(self, trace: TraceRow) -> None:
        """Takes a trace; it can be read from now on."""
        with self._lock:
            self._pending[trace.request_id] = trace
            if len(self._pending) > MAX_PENDING:  # the disk is full: memory must not fill too
                self._pending.popitem(last=False)
        self._filled.set()

    def get(self, request_id: str) -> TraceRow:
        """Returns a trace.

        Raises:
            TraceNotFound: no answer had this id.
        """
        with self._lock:
            found = self._pending.get(request_id)
        if found is None:
            with self._state.read() as tx:
                return tx.get_trace(request_id)
        return found

    def amend(self, request_id: str, **more: object) -> None:
        """Adds to a trace that is there already; one that is not yet is left alone."""
        with contextlib.suppress(TraceNotFound):
            found = self.get(request_id)
            # Two amendments of one trace come from one thread; only `record` may come between.
            self.record(replace(found, record={**found.record, **more}))

    def close(self) -> None:
        """Writes what is pending and stops."""
        self._closing.set()
        self._filled.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._filled.wait()
            self._filled.clear()
            self._closing.wait(FLUSH_S)
            self._flush()
        self._flush()  # what came between the last flush and the end

    def _flush(self) -> None:
        with self._lock:
            batch = list(self._pending.values())
        if not batch:
            return
        try:
            with self._state.transaction() as tx:
                tx.put_traces(batch)
                log_requests(tx, batch, self._key_in(tx))
        except CambiumError as error:  # a full disk must not stop answers
            _log.warning("traces wait for the disk: %s", error.one_line())
            return
        self.num_written += len(batch)
        with self._lock:
            for trace in batch:  # one that was amended meanwhile is not on disk yet
                if self._pending.get(trace.request_id) is trace:
                    del self._pending[trace.request_id]
