"""Long work that can be broken off: before each of its passes it asks whether it shall go on.

A consolidation, a gate or a diff takes thousands of passes and knows nothing of servers. Whoever
begins one says, for its own thread, what is asked; what that raises ends the work there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


def _go_on() -> None:
    pass


_ASKED: ContextVar[Callable[[], object]] = ContextVar("asked", default=_go_on)


@contextmanager
def breakable(check: Callable[[], object]) -> Iterator[None]:
    """Asks `check` before each pass that this thread wants within the block."""
    token = _ASKED.set(check)
    try:
        yield
    finally:
        _ASKED.reset(token)


def check_going_on() -> None:
    """Returns while this thread's work shall go on; raises what `breakable` was given to raise."""
    _ASKED.get()()
