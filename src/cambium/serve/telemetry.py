"""Where spans, metrics and logs go. Nowhere by default: only what the environment names.

`OTEL_EXPORTER_OTLP_ENDPOINT` (OpenTelemetry's own variable) sends spans and metrics there, with the
extra `otlp`. Logs go to standard error, as text or as JSON lines. None of them holds text of a
prompt, an answer, a document or an example: names, digests, numbers and times only (ADR 0023).
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, MutableMapping
from types import TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pythonjsonlogger.json import JsonFormatter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cambium import __version__
from cambium.core.errors import ConfigError
from cambium.serve.api.openai.runtime import TraceDraft

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_ENDPOINTS = (ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PLAIN = "%(levelname)s %(name)s: %(message)s"
_access = logging.getLogger("cambium.access")
_tracer = trace.get_tracer("cambium")
_propagator = TraceContextTextMapPropagator()
_Exception = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


class TextLines(logging.Formatter):
    """A log for people. Of an exception it says its kind and where it arose, not its words."""

    def formatException(self, ei: _Exception) -> str:
        """Returns the traceback without the exception's text, which may quote callers."""
        return _where(ei[1])


class JsonLines(JsonFormatter):
    """A log for programs, as sparing as `TextLines`."""

    def formatException(self, ei: _Exception) -> str:
        """Returns the traceback without the exception's text."""
        return _where(ei[1])


def resource() -> Resource:
    """Returns what every span and metric says of this program."""
    return Resource.create({"service.name": "cambium", "service.version": __version__})


def send_spans() -> Callable[[], None]:
    """Lets this process's spans go where the environment says; without that, they cost nothing.

    Returns:
        What sends the last of them, at the end.

    Raises:
        ConfigError: the environment names an endpoint, but the exporter is not installed.
    """
    if not _is_set("TRACES"):
        return lambda: None
    exporter = _exporter("trace_exporter", "OTLPSpanExporter")
    provider = TracerProvider(resource=resource())
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def metric_exporters() -> list[MetricReader]:
    """Returns what sends metrics where the environment says; nothing without that.

    Raises:
        ConfigError: as `send_spans`.
    """
    if not _is_set("METRICS"):
        return []
    exporter = _exporter("metric_exporter", "OTLPMetricExporter")
    return [PeriodicExportingMetricReader(exporter)]


def write_logs(form: str) -> None:
    """Writes this process's log to standard error: `text` for people, `json` for programs.

    As JSON there is a line for every request too.

    Raises:
        ConfigError: another form.
    """
    if form not in ("text", "json"):
        raise ConfigError(f"{form[:40]!r} is no form of a log", mend="use text or json")
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonLines(["levelname", "name", "message"], timestamp="at"))
    else:
        handler.setFormatter(TextLines(_PLAIN))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("cambium").setLevel(logging.INFO if form == "json" else logging.WARNING)


def record_answer(draft: TraceDraft) -> None:
    """Records a finished answer as a span of the request that asked for it."""
    if not trace.get_current_span().is_recording():
        return
    ended = time.time_ns()
    began = ended - int(draft.total_ms * 1e6)
    span = _tracer.start_span("generate", start_time=began)
    # OpenTelemetry's conventions for generative models.
    span.set_attributes({
        "gen_ai.operation.name": draft.endpoint,
        "gen_ai.request.model": draft.answerer.model,
        "gen_ai.response.model": draft.answerer.adapter,
        "gen_ai.response.finish_reasons": draft.finish_reasons,
        "gen_ai.usage.input_tokens": draft.prompt_tokens,
        "gen_ai.usage.output_tokens": draft.completion_tokens,
        "cambium.queued_ms": draft.queued_ms,
    })  # fmt: skip
    if draft.first_token_ms is not None:
        span.add_event("first token", timestamp=began + int(draft.first_token_ms * 1e6))
    span.end(ended)


class Observed:
    """A span, a log line and a count for every request; pure ASGI, around everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said: dict[str, Any] = {"status": 500}
        # Any word can stand there, and each would be a series of its own.
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                said["status"] = message["status"]
                headers = Headers(raw=message["headers"])
                said["request_id"] = headers.get("x-cambium-request-id")
                said["revision"] = headers.get("x-cambium-revision")
                said["adapter"] = headers.get("x-cambium-adapter")
            await send(message)

        began = time.perf_counter()
        carrier = {k.decode(): v.decode("latin-1") for k, v in scope["headers"]
                   if k in (b"traceparent", b"tracestate")}  # fmt: skip
        span = _tracer.start_span(
            method, context=_propagator.extract(carrier), kind=SpanKind.SERVER
        )
        # Without an exception's text and traceback, which may hold what callers wrote.
        with trace.use_span(
            span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        ):
            try:
                await self._app(scope, receive, watch)
            finally:
                route = getattr(scope.get("route"), "path", "none")
                if span.is_recording():
                    _describe(span, method, route, said)
                self._count(scope, method, route, said, (time.perf_counter() - began) * 1000)

    def _count(
        self,
        scope: Scope,
        method: str,
        route: str,
        said: MutableMapping[str, Any],
        took_ms: float,
    ) -> None:
        runtime = scope["app"].state.runtime if "app" in scope else None
        if runtime is not None:
            runtime.metrics.observe_response(method, route, said["status"])
        if _access.isEnabledFor(logging.INFO):
            context = trace.get_current_span().get_span_context()
            trace_id = f"{context.trace_id:032x}" if context.is_valid else None
            fields = {"method": method, "route": route, "ms": round(took_ms, 2),
                      "trace_id": trace_id, **said}  # fmt: skip
            _access.info("request", extra=fields)


def _describe(span: trace.Span, method: str, route: str, said: MutableMapping[str, Any]) -> None:
    span.update_name(f"{method} {route}")
    known = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": said["status"],
        **{f"cambium.{name}": said.get(name) for name in ("request_id", "revision", "adapter")},
    }
    span.set_attributes({k: v for k, v in known.items() if v is not None})
    if said["status"] >= 500:
        span.set_status(Status(StatusCode.ERROR))


def _where(error: BaseException | None) -> str:
    """Returns the frames of an exception and of those that led to it, each above its kind."""
    if error is None:
        return ""
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    above = f"{_where(earlier)}\nthen\n" if earlier else ""
    return above + "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__


def _is_set(signal: str) -> bool:
    names: Iterable[str] = (n for n in _ENDPOINTS if n == ENDPOINT or signal in n)
    return any(os.environ.get(name) for name in names)


def _exporter(module: str, name: str) -> Any:
    try:
        found = __import__(f"opentelemetry.exporter.otlp.proto.http.{module}", fromlist=[name])
    except ImportError as error:
        raise ConfigError(
            f"{ENDPOINT} is set, but nothing here can send to it",
            mend="pip install 'cambium[otlp]', or unset it",
        ) from error
    return getattr(found, name)()
