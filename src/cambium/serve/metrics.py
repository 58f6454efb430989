"""One server's numbers, counted once: shown to Prometheus, and sent on if OTLP is set up.

Names and labels hold nothing that callers choose, so that no caller can make them many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest

from cambium.serve.api.openai.runtime import TraceDraft
from cambium.serve.telemetry import metric_exporters, resource


class Metrics:
    """Counts requests, tokens, lessons and looks; gauges are read when asked for."""

    def __init__(self, *, attestation: str) -> None:
        self._registry = CollectorRegistry()
        shown = PrometheusMetricReader(
            disable_target_info=True, scope_info_enabled=False, registry=self._registry
        )
        self._provider = MeterProvider(
            [shown, *metric_exporters()], resource=resource(), shutdown_on_exit=False
        )
        self._meter = meter = self._provider.get_meter("cambium")
        self._requests = meter.create_counter("cambium_requests", description="Answered requests.")
        self._tokens = meter.create_counter("cambium_tokens", description="Tokens by direction.")
        self._seconds = meter.create_histogram(
            "cambium_request", unit="s", description="Time to the last token."
        )
        self._responses = meter.create_counter(
            "cambium_http_responses", description="Responses by route and status."
        )
        self._lessons = meter.create_counter(
            "cambium_lessons", description="Calls to learn by what the monitors made of them."
        )
        self._lesson_seconds = meter.create_histogram(
            "cambium_lesson", unit="s", description="Time of a call to learn."
        )
        self._verdicts = meter.create_counter(
            "cambium_gate_verdicts", description="Looks of gates by verdict."
        )
        self._watch("cambium_attestation_info", "The attester's label.",
                    lambda: 1, attestation=attestation)  # fmt: skip

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that is read when metrics are asked for."""
        self._watch(name, help_text, read)

    def observe(self, trace: TraceDraft) -> None:
        """Counts one finished request."""
        adapter = trace.answerer.adapter
        kind = trace.answerer.model if trace.answerer.model in ("base", "stable") else "adapter"
        kind = kind if adapter != "none" else "none"
        self._requests.add(1, {"endpoint": trace.endpoint, "adapter_kind": kind})
        self._tokens.add(trace.prompt_tokens, {"direction": "prompt"})
        self._tokens.add(trace.completion_tokens, {"direction": "completion"})
        self._seconds.record(trace.total_ms / 1000)

    def observe_response(self, method: str, route: str, status: int) -> None:
        """Counts one response of a route as the API declares it."""
        said = {"method": method, "route": route, "status": str(status)}
        self._responses.add(1, said)

    def observe_lesson(self, outcome: str, seconds: float) -> None:
        """Counts one call to learn: `kept`, `reset` or `quarantined`."""
        self._lessons.add(1, {"outcome": outcome})
        self._lesson_seconds.record(seconds)

    def observe_verdict(self, gate: str, verdict: str) -> None:
        """Counts what one look of a gate said."""
        self._verdicts.add(1, {"gate": gate, "verdict": verdict})

    def exposition(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def close(self) -> None:
        """Sends what is left to send, and ends."""
        self._provider.shutdown()

    def _watch(self, name: str, help_text: str, read: Callable[[], float], **labels: str) -> None:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(read(), labels)]

        self._meter.create_observable_gauge(name, [observe], description=help_text)
