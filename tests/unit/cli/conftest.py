"""A real HTTP server on a loopback port whose answers a test decides and whose calls it sees."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cambium.cli import main

Answer = tuple[int, Any]


@dataclass
class Stage:
    """`answers` by "METHOD /path": a pair of status and body, or a function of the call's body."""

    url: str = ""
    answers: dict[str, Answer | Callable[[Any], Answer]] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def sent(self, call: str) -> list[Any]:
        return [body for name, body in self.calls if name == call]

    async def answer(self, request: Request) -> Response:
        data = await request.body()
        body = json.loads(data) if data else dict(request.query_params)
        call = f"{request.method} {request.url.path}"
        self.calls.append((call, body))
        self.headers.append(dict(request.headers))
        answer = self.answers.get(call, (404, {"code": "not_found", "detail": f"no {call}"}))
        status, content = answer(body) if callable(answer) else answer
        if isinstance(content, Response):
            return content
        if isinstance(content, str):
            return Response(content, status)
        return JSONResponse(content, status)


def application(stage: Stage, **more: Any) -> Starlette:
    return Starlette(
        routes=[Route("/{path:path}", stage.answer, methods=["GET", "POST", "DELETE"])], **more
    )


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage()
    config = uvicorn.Config(application(stage), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        stage.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("CAMBIUM_URL", stage.url)
        monkeypatch.delenv("CAMBIUM_TOKEN", raising=False)
        # The listener is open already: a call made before the server runs waits for it.
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield stage
        server.should_exit = True
        thread.join()


@pytest.fixture
def local() -> tuple[Stage, Callable[..., Starlette]]:
    """The same server without a socket."""
    stage = Stage()
    return stage, lambda **more: application(stage, **more)


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cambium(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        seen = capsys.readouterr()
        return Ended(status, seen.out, seen.err)

    return run
