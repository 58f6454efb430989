"""A real server that is told where to send spans and metrics, and what it sends and logs there."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.serving import tiny_base

SECRET = "the heron of Ullapool"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


class Collector(ThreadingHTTPServer):
    """Takes what OTLP over HTTP sends."""

    def __init__(self) -> None:
        self.got: dict[str, list[bytes]] = {"/v1/traces": [], "/v1/metrics": []}
        super().__init__(("127.0.0.1", 0), _Taker)

    def spans(self) -> dict[str, Any]:
        found = {}
        for body in self.got["/v1/traces"]:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        found.setdefault(span.name, span)  # the first of each
        return found

    def metrics(self) -> set[str]:
        return {
            metric.name
            for body in self.got["/v1/metrics"]
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


class _Taker(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        zipped = self.headers.get("content-encoding") == "gzip"
        self.server.got[self.path].append(gzip.decompress(body) if zipped else body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_spans_metrics_and_logs_tell_who_what_and_when_but_no_text(
    tmp_path: Path, collector: Collector
) -> None:
    base = tiny_base(tmp_path / "base")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cambium", "serve", "--state", str(tmp_path / "state"),
               "--model", str(base), "--port", str(port)]  # fmt: skip
    address = f"http://127.0.0.1:{collector.server_address[1]}"
    env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": address, "CAMBIUM_LOG": "json"}
    log = tmp_path / "log"
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as follower,
        log.open("wb") as stderr,
        subprocess.Popen(command, stderr=stderr, env=env) as process,
    ):
        try:
            asked, learned = _use(port, follower)
        finally:
            process.send_signal(signal.SIGTERM)
            # A page that follows the server is open, and does not hold it up.
            assert process.wait(30) in (0, -signal.SIGTERM)
    spans = collector.spans()
    request, answer = spans["POST /v1/completions"], spans["generate"]
    assert request.trace_id.hex() == answer.trace_id.hex() == TRACE_ID
    assert answer.parent_span_id == request.span_id
    assert spans["learn"].parent_span_id == spans["POST /learn/step"].span_id
    assert not any(name.startswith("fastapi") for name in spans)
    said = {a.key: a.value for a in answer.attributes}
    assert said["gen_ai.usage.output_tokens"].int_value == 3
    assert {a.key: a.value.string_value for a in request.attributes}[
        "cambium.request_id"] == asked.headers["x-cambium-request-id"]  # fmt: skip
    assert {"cambium_requests", "cambium_request", "cambium_lessons", "cambium_revision",
            "cambium_http_responses"} <= collector.metrics()  # fmt: skip

    written = log.read_text()
    lines = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    line, refused = [r for r in lines if r.get("route") == "/v1/completions"]
    assert refused["status"] == 400
    assert line["request_id"] == asked.headers["x-cambium-request-id"]
    assert (line["status"], line["trace_id"], line["adapter"]) == (200, TRACE_ID, "base")
    (line,) = [r for r in lines if r.get("route") == "/learn/step"]
    assert line["request_id"] == learned.headers["x-cambium-request-id"]
    everything = written.encode() + b"".join(b for bodies in collector.got.values() for b in bodies)
    for secret in (SECRET, "heron", "token_in_a_query"):
        assert secret.encode() not in everything


def _use(port: int, follower: httpx.Client) -> tuple[httpx.Response, httpx.Response]:
    """Asks and teaches something secret, with a page open that follows."""
    transport = httpx.HTTPTransport(retries=30)
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, transport=transport, timeout=60) as http:
        http.get("/readyz")
        follower.send(follower.build_request("GET", "/events"), stream=True)
        headers = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
        body = {"model": "base", "prompt": SECRET, "max_tokens": 3, "temperature": 0}
        asked = http.post("/v1/completions?q=token_in_a_query", json=body, headers=headers)
        assert asked.status_code == 200
        http.post("/adapters/ephemeral", json={"task_id": "x"})
        taught = {"adapter_id": "x", "examples": [{"text": SECRET}], "steps": 1}
        learned = http.post("/learn/step", json=taught)
        assert learned.status_code == 200
        # What fails is logged too, and says no more.
        assert http.post("/v1/completions", json={**body, "max_tokens": SECRET}).status_code == 400
        assert http.get("/metrics").text.count("cambium_lessons_total") >= 1
    return asked, learned


def test_an_endpoint_that_nothing_can_send_to_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cambium.core.errors import ConfigError
    from cambium.serve import telemetry

    assert telemetry.metric_exporters() == []
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    with pytest.raises(ConfigError) as refused:
        telemetry.metric_exporters()
    assert "cambium[otlp]" in refused.value.mend
    with pytest.raises(ConfigError, match="form"):
        telemetry.write_logs("xml")
