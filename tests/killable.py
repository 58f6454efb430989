"""Servers in processes of their own, to be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

SCRIPT = Path(__file__).parent / "integration" / "server_process.py"


@dataclass(kw_only=True)
class Killable:
    """The parent of the servers, and the address they all have."""

    process: subprocess.Popen[str]
    port: int
    pid: int = 0

    def start(self) -> httpx.Client:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.pid = int(self.process.stdout.readline().removeprefix("pid "))
        http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False)
        assert http.get("/readyz").status_code == 200
        return http

    def kill(self) -> None:
        assert self.process.stdout
        os.kill(self.pid, signal.SIGKILL)
        self.pid = 0
        assert self.process.stdout.readline() == f"ended {int(signal.SIGKILL)}\n"


@contextmanager
def killable_servers(state: Path, base: Path, *, db: str = "") -> Iterator[Killable]:
    """Gives what starts one server after another at one free port, on a folder or a database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SCRIPT), str(state), str(base), str(port), *filter(None, [db])]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        found = Killable(process=process, port=port)
        yield found
        if found.pid:
            found.kill()
        process.kill()
