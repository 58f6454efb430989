"""Prometheus metrics of one server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cambium.serve.api.openai.runtime import TraceDraft


class Metrics:
    """Counts requests, tokens and time; gauges are read when asked for."""

    def __init__(self, *, attestation: str) -> None:
        self._registry = CollectorRegistry()
        labels = ["endpoint", "adapter_kind"]
        self._requests = Counter("cambium_requests", "Answered requests.", labels,
                                 registry=self._registry)  # fmt: skip
        self._tokens = Counter("cambium_tokens", "Tokens by direction.", ["direction"],
                               registry=self._registry)  # fmt: skip
        self._seconds = Histogram("cambium_request_seconds", "Time to the last token.",
                                  registry=self._registry)  # fmt: skip
        label = Gauge("cambium_attestation_info", "The attester's label.", ["attestation"],
                      registry=self._registry)  # fmt: skip
        label.labels(attestation).set(1)

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that is read when metrics are asked for."""
        Gauge(name, help_text, registry=self._registry).set_function(read)

    def observe(self, trace: TraceDraft) -> None:
        """Counts one finished request."""
        adapter = trace.answerer.adapter
        kind = trace.answerer.model if trace.answerer.model in ("base", "stable") else "adapter"
        self._requests.labels(trace.endpoint, kind if adapter != "none" else "none").inc()
        self._tokens.labels("prompt").inc(trace.prompt_tokens)
        self._tokens.labels("completion").inc(trace.completion_tokens)
        self._seconds.observe(trace.total_ms / 1000)

    def exposition(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
