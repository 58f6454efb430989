"""What being watched costs: a server with spans, metrics, logs and a page, beside one without.

Both answer the same requests, in turn. The watched one sends spans and metrics to a collector on
loopback, writes a line of JSON for every request, and a page follows it as a browser would: it
hears the events and takes `/live` anew, once a second at most. Collector and page run beside the
servers on the same processor, so their own work counts as cost here too.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from cambium.bench.report import Row, interleaved
from cambium.serve.child import ChildServer

NUM_CLIENTS = 4
ROUND_S = 8.0
ROUNDS = 5
BODY = {"model": "base", "prompt": "The harbour master wrote", "max_tokens": 8, "temperature": 0}


def rows(say: Callable[[str], None]) -> list[Row]:
    """Returns the row of the benchmark."""
    say(f"requests a second, watched and not, {2 * ROUNDS} rounds of {ROUND_S:.0f} s")
    with tempfile.TemporaryDirectory() as folder, _collector() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "CAMBIUM_LOG": "json"}
        with (
            ChildServer(Path(folder) / "plain") as plain,
            ChildServer(Path(folder) / "watched", env=env) as watched,
        ):

            def rate_watched() -> float:
                with _following(watched.url):
                    return _rate(watched.url)

            contenders = {"watched": rate_watched, "plain": lambda: _rate(plain.url)}
            for contender in contenders.values():
                contender()
            rates = interleaved(contenders, ROUNDS)
    setting = f"{NUM_CLIENTS} clients, {BODY['max_tokens']} tokens each, bundled base; spans and "
    setting += "metrics over OTLP, JSON logs, a live page; collector and page on the same cores"
    return [
        Row(metric="engine.watched_requests_per_s", unit="requests/s", value=rates["watched"],
            peer="the same server, watched by nothing", peer_value=rates["plain"],
            ratio=rates["watched"] / rates["plain"], setting=setting)
    ]  # fmt: skip


def _rate(url: str) -> float:
    ends = time.perf_counter() + ROUND_S
    counts = [0] * NUM_CLIENTS

    def ask(i: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as http:
            while time.perf_counter() < ends:
                http.post("/v1/completions", json=BODY).raise_for_status()
                counts[i] += 1

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(NUM_CLIENTS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


@contextmanager
def _following(url: str) -> Iterator[None]:
    """Does what an open live page does."""
    http = httpx.Client(base_url=url, timeout=httpx.Timeout(60, read=5))
    events = http.send(http.build_request("GET", "/events"), stream=True)

    def follow() -> None:
        taken = 0.0
        with suppress(httpx.HTTPError):  # the end of the round closes the stream
            for line in events.iter_lines():
                if line.startswith("event: change") and time.monotonic() - taken >= 1:
                    taken = time.monotonic()
                    http.get("/live", headers={"accept": "text/html"}).raise_for_status()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        # A closed stream is not heard of before the next line; the time to wait for one is short.
        thread.join()
        events.close()
        http.close()


class _Taker(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def _collector() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Taker) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
