"""Servers in processes of their own, to be killed, and what people ask of them over HTTP."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.serving import WAIT_S, People

from cambium.core.nouns import Action, SignedAct
from cambium.trust.acts import sign_act, signature_to_json
from cambium.trust.audit import AuditEntry, Checkpoint, verify_log
from cambium.trust.keys import PublicKey

SCRIPT = Path(__file__).parent / "integration" / "server_process.py"


# Parents that wait for their next server, and those that have loaded the code, which takes longer
# than many a test.
_IDLE: list[subprocess.Popen[str]] = []
_READY: set[subprocess.Popen[str]] = set()


def _parent() -> subprocess.Popen[str]:
    while _IDLE:
        if (found := _IDLE.pop()).poll() is None:
            return found
    return subprocess.Popen(
        [sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@atexit.register
def _end_parents() -> None:
    for process in _IDLE:
        process.kill()
        process.wait()


@dataclass(kw_only=True)
class Killable:
    """The parent of the servers, their order, and the file they complain into."""

    process: subprocess.Popen[str]
    order: dict[str, Any]
    log: Path
    pid: int = 0

    def wait(self) -> None:
        """Waits until the parent has loaded the code: what it forks then starts at once."""
        assert self.process.stdout
        if self.process not in _READY:
            assert self.process.stdout.readline() == "ready\n"
            _READY.add(self.process)

    def start(self) -> httpx.Client:
        assert self.process.stdin and self.process.stdout
        self.wait()
        self.process.stdin.write(json.dumps(self.order) + "\n")
        self.process.stdin.flush()
        self.pid = int(self.process.stdout.readline().removeprefix("pid "))
        url = f"http://127.0.0.1:{self.order['port']}"
        http = httpx.Client(base_url=url, timeout=120, trust_env=False)
        deadline = time.monotonic() + WAIT_S
        try:
            # A starved one may have fallen behind the state's database for a moment.
            while (answer := http.get("/readyz")).status_code != 200:
                assert time.monotonic() < deadline, answer.text
                time.sleep(0.05)
        except httpx.TransportError as error:
            http.close()
            raise AssertionError(f"no server: {self.log.read_text()}") from error
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
    log = base.parent / f"server-{port}.log"
    log.touch()
    order = {"state": str(state), "base": str(base), "port": port, "db": db or None,
             "log": str(log)}  # fmt: skip
    found = Killable(process=_parent(), order=order, log=log)
    try:
        yield found
        if found.pid:
            found.kill()
        _IDLE.append(found.process)
    except BaseException:
        print(log.read_text())
        if found.pid:  # a test that fails must not leave its server
            with suppress(ProcessLookupError):
                os.kill(found.pid, signal.SIGKILL)
        with found.process as process:
            process.kill()
        raise


def approve(http: httpx.Client, people: People, proposal: str) -> None:
    for key in people.approvers[:2]:
        view = http.get(f"/proposals/{proposal}").json()
        act = SignedAct(
            action=Action.APPROVE,
            target=view["proposal_digest"],
            state_version=view["state_version"],
            expires=int(time.time()) + 3600,
            policy=view["policy_digest"],
        )
        body = signature_to_json(sign_act(key, act))
        assert http.post(f"/proposals/{proposal}/approvals", json=body).status_code == 200


def check_whole_log(http: httpx.Client) -> None:
    """Jobs write on meanwhile: the checkpoint covers the entries up to its size."""
    body = http.get("/audit/checkpoint").json()
    public = PublicKey(raw=body.pop("public"))
    signed = Checkpoint(**body)
    entries = [AuditEntry(**e) for e in http.get("/audit").json()["entries"]]
    covered = [e for e in entries if e.seq <= signed.size]
    assert verify_log(covered, checkpoint=signed, server_public=public) == signed.size
