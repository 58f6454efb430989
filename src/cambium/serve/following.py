"""Several processes decide on one state: each sees what the others have done before it decides.

What a decision rests on (the served revision, the policy) is in memory, and in the database under
one number, the state's version, which grows with every signed act. A decision holds the lock of all
writers, and first reads again whatever the number says is old; so what it decides is decided on
what holds. Between decisions, a thread looks a few times a second.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cambium.core.errors import CambiumError
from cambium.serve.errors import NotCurrent
from cambium.serve.publish import Published
from cambium.serve.rules import Rules
from cambium.serve.store.membership import CURRENT_S
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.trust.policy import Policy

PERIOD_S = 0.2
_log = logging.getLogger(__name__)


class Following:
    """Keeps the served revision and the policy in force equal to the state's, and says when not.

    Used as a context manager, it holds the decisions of this process apart; `transaction` those of
    all processes.
    """

    def __init__(
        self,
        state: State,
        *,
        rules: Rules,
        published: Published,
        read_policy: Callable[[Transaction], Policy | None],
    ) -> None:
        self._state = state
        self._rules = rules
        self._published = published
        self._read_policy = read_policy
        self._lock = threading.RLock()
        self._version: int | None = None
        self._process = state.process
        self._followed_at = time.monotonic()
        self._why = ""
        # Told, from the thread that follows, that it looks, that something was decided, that a new
        # policy is in force, and that nobody may be doing some work any more.
        self.on_look: Callable[[], object] = lambda: None
        self.on_act: Callable[[], object] = lambda: None
        self.on_policy: Callable[[], object] = lambda: None
        self.on_unattended: Callable[[], object] = lambda: None
        self._told_of = rules.policy
        self._num_taken_over = state.num_taken_over
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to look at what others do, where there can be others."""
        if self._state.is_shared:
            self.follow()  # opening took a while
            self._thread = threading.Thread(target=self._run, name="following", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stops looking."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Gives the one writer of all processes, with everything in memory as the state has it.

        Raises:
            NotCurrent: the newest revision or policy does not verify, so nothing can rest on it.
        """
        with self._lock, self._state.transaction() as tx:
            self._catch_up(tx)
            yield tx

    def why_not_current(self) -> str:
        """Returns why this process must not say what holds now, or nothing."""
        if not self._state.is_shared:
            return self._why
        heard = self._state.is_current and time.monotonic() - self._followed_at < CURRENT_S
        if not heard or self._state.process != self._process:
            return "this process has not heard from the database for a while"
        return self._why

    def check(self) -> None:
        """Returns while what this process has in memory is what the state says.

        Raises:
            NotCurrent: it may have been overtaken, or cannot verify what is newer.
        """
        if why := self.why_not_current():
            raise NotCurrent(f"this process does not know what is served now: {why}",
                             mend="ask another process, or look at its /readyz")  # fmt: skip

    def follow(self) -> None:
        """Looks once, and reads again whatever has changed."""
        began, process, failed = time.monotonic(), self._state.process, bool(self._why)
        with self._state.read() as tx:  # without the lock: a decision may wait for other writers
            is_old = failed or tx.state_version() != self._version
        self.on_look()
        if is_old or process != self._process:
            self._read_again(from_scratch=process != self._process)
            self.on_act()
        came_back = process != self._process or (failed and not self._why)
        self._process, self._followed_at = process, began
        if self._rules.policy is not self._told_of:
            self._told_of = self._rules.policy
            self.on_policy()
        taken_over = self._state.num_taken_over
        if came_back or taken_over != self._num_taken_over:
            self._num_taken_over = taken_over
            self.on_unattended()

    def _read_again(self, *, from_scratch: bool) -> None:
        with self._lock, self._state.read() as tx:
            if from_scratch:
                self._version = None  # it was taken for dead: nothing in memory counts
            try:
                self._catch_up(tx)
            except NotCurrent as error:
                _log.error("%s", error.one_line())

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            try:
                self.follow()
            except CambiumError as error:
                if self._why != error.one_line():
                    self._why = error.one_line()
                    _log.warning("not following: %s", self._why)
            except Exception as error:  # noqa: BLE001 - whatever happens, it goes on looking
                self._why = type(error).__name__
                _log.exception("not following")

    def _catch_up(self, tx: Transaction) -> None:
        version = tx.state_version()
        if version == self._version and not self._why:
            return
        try:
            policy = self._read_policy(tx)
            self._published.follow(tx)
        except CambiumError as error:
            self._why = error.one_line()
            raise NotCurrent(f"the newest revision or policy cannot be served: {self._why}",
                             mend="restore the state from a backup") from error  # fmt: skip
        if policy != self._rules.policy:
            self._rules.policy = policy
        self._version, self._why = version, ""
