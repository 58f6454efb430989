"""Servers that can be killed, without a fresh interpreter each: the child of `tests.killable`.

Says `ready` when it has loaded the code. Forks a server for every line on standard input, which is
JSON with the fields of `Order`; says `pid N` when it has, then `ended STATUS` when that server has
ended, however it did.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

# What a server imports once it needs it: here, so that its parent has paid for it.
import sentence_transformers  # noqa: F401
import uvicorn
from transformers import LlamaForCausalLM  # noqa: F401

from cambium.serve.app import create_app
from cambium.serve.config import ServerConfig


@dataclass(frozen=True, kw_only=True)
class Order:
    """One server: its folder, its base, its port, its database, and where its errors go."""

    state: str
    base: str
    port: int
    db: str | None
    log: str


def serve(order: Order, listener: socket.socket) -> None:
    """Serves on a socket that listens already, so that callers can connect at once."""
    os.dup2(os.open(order.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    config = ServerConfig(
        state=Path(order.state),
        db=order.db,
        port=order.port,
        model=order.base,
        num_rows=16,
        num_replay_anchors=4,
        num_retention_anchors=24,
        anchor_tokens=40,
    )
    server = uvicorn.Server(uvicorn.Config(create_app(config), log_level="error"))
    server.run(sockets=[listener])


def main() -> None:
    """Starts one server after another."""
    os.write(1, b"ready\n")
    for line in sys.stdin:
        order = Order(**json.loads(line))
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", order.port))
        listener.listen(128)
        pid = os.fork()
        if pid == 0:
            serve(order, listener)
            os._exit(0)
        listener.close()
        os.write(1, f"pid {pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(1, f"ended {status}\n".encode())


if __name__ == "__main__":
    main()
