"""The whole server over HTTP on loopback, inside this process, so that its parts can be seen."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from cambium.core.errors import ConfigError
from cambium.serve.app import create_app
from cambium.serve.config import ServerConfig
from cambium.serve.runtime import Runtime

START_S = 120.0


@contextmanager
def local_server(config: ServerConfig) -> Iterator[tuple[httpx.Client, Runtime]]:
    """Gives a client of a server that lives as long as the block, and its runtime.

    Raises:
        ConfigError: it did not come up within two minutes.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_app(config)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + START_S
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise ConfigError("the server did not start", mend="see its log")
                time.sleep(0.05)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=None) as http:
                yield http, app.state.runtime
        finally:
            server.should_exit = True
            thread.join()
