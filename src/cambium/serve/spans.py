"""Spans around what takes time. An error leaves its code in them, never its words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import StatusCode

_tracer = trace.get_tracer("cambium")


@contextmanager
def span(name: str, **attributes: str) -> Iterator[None]:
    """Encloses a block, or as a decorator a function; costs nothing where spans go nowhere."""
    # An exception's text and traceback may hold what callers wrote.
    with _tracer.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as found:
        try:
            yield
        except BaseException as error:
            found.set_attribute("error.type", getattr(error, "code", type(error).__name__))
            found.set_status(StatusCode.ERROR)
            raise
