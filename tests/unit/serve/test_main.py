"""The order in which a server ends."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any, cast

import pytest
import uvicorn

from cambium.serve.main import Server
from cambium.serve.runtime import Runtime


class Work:
    """What `Server` needs of a runtime."""

    def __init__(self) -> None:
        self.closing, self.jobs = threading.Event(), self
        self.said: list[str] = []
        self.over = asyncio.Event()

    def halt(self) -> None:
        self.said.append("jobs end")

    def stop(self) -> None:
        self.said.append("all ends")
        self.over.set()


@pytest.mark.parametrize(
    ("patience_s", "expected"),
    [(0.0, ["jobs end", "waits", "all ends"]), (3600.0, ["jobs end", "waits"])],
    ids=["an answer that takes too long", "an answer that comes to its end"],
)
def test_jobs_end_at_once_and_what_people_wait_for_after_a_while(
    patience_s: float, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cambium.serve.main.PATIENCE_S", patience_s)

    async def end() -> Work:
        work = Work()

        async def wait(_server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
            assert work.closing.is_set()
            work.said.append("waits")
            if not patience_s:
                await work.over.wait()

        monkeypatch.setattr(uvicorn.Server, "shutdown", wait)
        config = uvicorn.Config(cast("Any", None))
        await Server(config, cast("Runtime", work)).shutdown()
        return work

    assert asyncio.run(end()).said == expected
