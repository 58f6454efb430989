"""What being watched costs: a server with spans, metrics, logs and a page, beside ones without.

Three servers answer the same list of requests, block by block: one that is watched, one that is
not, and a twin of the latter, whose ratio to it says what this measurement takes for a difference
where there is none. The watched one sends spans and metrics to a collector on loopback, writes a
line of JSON for every request, and a page follows it as a browser would: it hears the events and
takes `/live` anew, once a second at most. Collector and page run beside the servers on the same
processor, so their own work counts as cost here too.

Blocks are short and their order turns round each time, so that whatever else the machine does
meets all three; each block is compared with its own neighbours. Requests differ in length: with
equal ones four clients fall into step, by chance in one server and not in another, and that
difference is larger than the one in question.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import median

import httpx
from scipy.stats import binom

from cambium.bench.report import Row
from cambium.serve.child import ChildServer

NUM_CLIENTS = 4
NUM_TOKENS = (5, 11, 7, 13, 3, 9)
REQUESTS_A_BLOCK = 48
NUM_BLOCKS = 40
PROMPT = "The harbour master wrote"
PAGE_EVERY_S = 1.0
# What a block causes is sent within it or soon after, not in a neighbour's time.
SEND_SOON = {"OTEL_BSP_SCHEDULE_DELAY": "250", "OTEL_METRIC_EXPORT_INTERVAL": "1000"}
Block = Callable[[], float]


def rows(say: Callable[[str], None]) -> list[Row]:
    """Returns the rows of the benchmark."""
    say(f"requests a second, watched and not, {NUM_BLOCKS} blocks of {REQUESTS_A_BLOCK} requests")
    with _servers() as servers:
        taken = blocks_in_turn(servers, NUM_BLOCKS)
    watched, plain, twin = taken["watched"], taken["plain"], taken["twin"]
    ratio = paired_ratio(watched, plain)
    setting = (
        f"{NUM_BLOCKS} blocks of {REQUESTS_A_BLOCK} requests each, {NUM_CLIENTS} clients, "
        f"{min(NUM_TOKENS)} to {max(NUM_TOKENS)} tokens, bundled base; spans and metrics over "
        "OTLP, JSON logs, a live page; collector and page on the same cores; ratio is the "
        "median of each block's to its neighbour's"
    )
    metric = "engine.watched_requests_per_s"
    found = [
        Row(metric=metric, unit="requests/s", value=median(watched), ratio=ratio[0],
            peer="the same server, watched by nothing", peer_value=median(plain),
            setting=setting)
    ]  # fmt: skip
    for name, end in (("low", 1), ("high", 2)):
        found.append(Row(metric=f"{metric}.ratio_{name}", unit="ratio", value=ratio[end],
                         setting="an end of the ratio's 95 % interval"))  # fmt: skip
    same = paired_ratio(twin, plain)
    twins = "two servers that nothing watches, in the same blocks"
    for name, value in zip(("ratio", "ratio_low", "ratio_high"), same, strict=True):
        found.append(Row(metric=f"{metric}.aa_{name}", unit="ratio", value=value, setting=twins))
    return found


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Returns the median of the pairs' ratios, and an interval that holds it at 95 %.

    The interval's ends are order statistics: it assumes nothing of how the ratios are spread.

    Raises:
        ValueError: fewer than six pairs, of which no two hold the median that surely.
    """
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    outside = int(binom.ppf(0.025, len(ratios), 0.5)) - 1
    if outside < 0:
        raise ValueError(f"{len(ratios)} pairs are too few")
    return median(ratios), ratios[outside], ratios[-1 - outside]


def blocks_in_turn(contenders: dict[str, Block], num_blocks: int) -> dict[str, list[float]]:
    """Returns each contender's blocks, after one that warms it up; every other turn goes back."""
    for block in contenders.values():
        block()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(num_blocks):
        names = list(contenders)[:: -1 if turn % 2 else 1]
        for name in names:
            taken[name].append(contenders[name]())
    return taken


@contextmanager
def _servers() -> Iterator[dict[str, Block]]:
    """Starts the three; the watched one stands between the others, next to both."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        collector = stack.enter_context(_collector())
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "CAMBIUM_LOG": "json", **SEND_SOON}
        plain = stack.enter_context(ChildServer(folder / "plain"))
        watched = stack.enter_context(ChildServer(folder / "watched", env=env))
        twin = stack.enter_context(ChildServer(folder / "twin"))
        stack.enter_context(_following(watched.url))
        yield {
            "plain": lambda: _rate(plain.url),
            "watched": lambda: _rate(watched.url),
            "twin": lambda: _rate(twin.url),
        }


def _rate(url: str) -> float:
    """Returns requests a second over one block: the same requests in the same order each time."""
    left: SimpleQueue[int] = SimpleQueue()
    for i in range(REQUESTS_A_BLOCK):
        left.put(NUM_TOKENS[i % len(NUM_TOKENS)])

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=60) as http, suppress(Empty):
            while True:
                body = {"model": "base", "prompt": PROMPT, "temperature": 0,
                        "max_tokens": left.get_nowait()}  # fmt: skip
                http.post("/v1/completions", json=body).raise_for_status()
                answered.put(None)

    answered: SimpleQueue[None] = SimpleQueue()
    threads = [threading.Thread(target=ask) for _ in range(NUM_CLIENTS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if answered.qsize() != REQUESTS_A_BLOCK:
        raise RuntimeError(f"only {answered.qsize()} of {REQUESTS_A_BLOCK} requests were answered")
    return REQUESTS_A_BLOCK / took


@contextmanager
def _following(url: str) -> Iterator[None]:
    """Does what an open live page does, until the end."""
    over = threading.Event()

    def follow() -> None:
        taken = 0.0
        with httpx.Client(base_url=url, timeout=httpx.Timeout(60, read=5)) as http:
            while not over.is_set():
                # A stream that says nothing for so long is opened again, as a browser does.
                with suppress(httpx.HTTPError), http.stream("GET", "/events") as events:
                    for line in events.iter_lines():
                        if over.is_set():
                            break
                        now = time.monotonic()
                        if line.startswith("event: change") and now - taken >= PAGE_EVERY_S:
                            taken = now
                            http.get("/live", headers={"accept": "text/html"}).raise_for_status()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
