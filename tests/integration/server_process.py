"""Servers that can be killed, without a fresh interpreter each: the child of `tests.killable`.

`server_process.py STATE BASE PORT [DB]`: says `ready` when it has loaded the code, forks a server
for every line on standard input and says `pid N` when it has, then `ended STATUS` when that server
has ended, however it did.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import uvicorn

from cambium.serve.app import create_app
from cambium.serve.config import ServerConfig


def serve(state: Path, base: str, listener: socket.socket, db: str | None) -> None:
    """Serves on a socket that listens already, so that callers can connect at once."""
    config = ServerConfig(
        state=state,
        db=db,
        port=listener.getsockname()[1],
        model=base,
        num_rows=4,
        num_replay_anchors=4,
        num_retention_anchors=24,
        anchor_tokens=40,
    )
    server = uvicorn.Server(uvicorn.Config(create_app(config), log_level="error"))
    server.run(sockets=[listener])


def main() -> None:
    """Starts one server after another."""
    state, base, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    os.write(1, b"ready\n")
    for _ in sys.stdin:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
        pid = os.fork()
        if pid == 0:
            serve(state, base, listener, sys.argv[4] if len(sys.argv) > 4 else None)
            os._exit(0)
        listener.close()
        os.write(1, f"pid {pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(1, f"ended {status}\n".encode())


if __name__ == "__main__":
    main()
