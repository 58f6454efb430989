"""`python -m cambium serve` as a process: it says what it serves, and ends in good order."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
from tests.serving import tiny_base


def command(state: Path, base: Path, port: int) -> list[str]:
    options = ["--state", str(state), "--model", str(base), "--port", str(port)]
    return [sys.executable, "-m", "cambium", "serve", *options]


def test_a_server_starts_answers_and_ends(tmp_path: Path) -> None:
    base, state = tiny_base(tmp_path / "base"), tmp_path / "state"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(state, base, port), **pipes) as process:  # type: ignore[call-overload]
        try:
            said = [process.stderr.readline() for _ in range(2)]
            assert f"revision 1, at http://127.0.0.1:{port}" in said[0]
            assert "cambium init" in said[1]  # a bare state says what is missing
            transport = httpx.HTTPTransport(retries=20)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport) as http:
                assert http.get("/readyz", timeout=60).json()["status"] == "ready"
                body = {"model": "base", "prompt": "Fact", "max_tokens": 2}
                traced = http.post("/v1/completions", json=body).headers["x-cambium-request-id"]
                # A body that is too large is refused while it is still being sent.
                large = http.post("/learn/step", content=b" " * (40 << 20), timeout=60)
                assert (large.status_code, large.json()["code"]) == (413, "too_large")

            second = subprocess.run(command(state, base, 0), capture_output=True, text=True)
            assert (second.returncode, second.stderr.count("\n")) == (2, 1), second.stderr
            assert str(process.pid) in second.stderr
        finally:
            process.send_signal(signal.SIGTERM)
            ended = process.wait(30)
    assert ended in (0, -signal.SIGTERM)
    from cambium.serve.store.state import State

    with State.open(state) as left, left.read() as view:
        assert view.get_trace(traced).record["model"] == "base"
