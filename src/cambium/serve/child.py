"""A server in a process of its own, for the demo and the benchmarks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import httpx

START_TIMEOUT_S = 120.0


class ChildServer:
    """`cambium serve` on a free loopback port, ended with the `with` block.

    Raises:
        OSError: on entering, when it ends at once or does not come up in time.
    """

    def __init__(
        self, state: Path, *, model: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """Takes the state's folder, its base (None: the bundled one), and more environment."""
        self._env = {**os.environ, **(env or {})}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        state.mkdir(parents=True, exist_ok=True)
        self.log = state / "server.log"
        self._state, self._model = state, model
        self._process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=self.url, timeout=300.0)

    def __enter__(self) -> ChildServer:
        command = [sys.executable, "-m", "cambium", "serve"]
        command += ["--state", str(self._state), "--port", str(self.port)]
        command += ["--model", str(self._model)] if self._model else []
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=self._env)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                said = self.log.read_text(errors="replace").strip()
                raise OSError(f"the server ended at once: {said[-400:]}")
            try:
                if self.http.get("/readyz").status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.1)
        self._end()
        raise OSError("the server did not come up in time")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.http.close()
        self._end()

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
