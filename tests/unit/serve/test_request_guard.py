"""The guard in front of the application, on the wire's own messages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from cambium.core.errors import CambiumError
from cambium.serve.access import ANYBODY, Caller
from cambium.serve.app import RequestGuard
from cambium.serve.errors import Unauthenticated


class Behind:
    """An application that keeps what reaches it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.state = self
        self.runtime = self
        self.revision = 7
        self.kill = self
        self.access = self
        self.refusal: CambiumError | None = None

    def admit(
        self, method: str, path: str, headers: Mapping[str, str], *, again: bool = False
    ) -> Caller:
        if self.refusal is not None:
            raise self.refusal
        return ANYBODY

    def allows(self, method: str, path: str) -> bool:
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def call(
    messages: list[Message], *, limit: int = 10, refusal: CambiumError | None = None
) -> tuple[Behind, list[Any]]:
    behind, sent = Behind(), []
    behind.refusal = refusal
    guard = RequestGuard(behind, max_body_bytes=limit)
    coming = iter(messages)

    async def receive() -> Message:
        return next(coming, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/learn/step", "headers": [], "app": behind,
             "query_string": b"", "server": ("127.0.0.1", 1), "scheme": "http"}  # fmt: skip
    asyncio.run(guard(scope, receive, send))
    return behind, sent


def test_a_caller_who_is_not_admitted_gets_no_further() -> None:
    behind, sent = call([part(b"{}")], refusal=Unauthenticated("who?", mend="say"))
    assert behind.bodies == []
    assert sent[0]["status"] == 401
    assert (b"www-authenticate", b"Bearer") in sent[0]["headers"]


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_parts_arrives_whole() -> None:
    behind, sent = call([part(b"ab", more=True), part(b"cd")])
    assert behind.bodies == [b"abcd"]
    headers = dict(sent[0]["headers"])
    assert headers[b"x-cambium-revision"] == b"7"
    assert headers[b"x-cambium-adapter"] == b"none"
    assert headers[b"x-cambium-request-id"].startswith(b"req-")


def test_half_a_body_is_not_acted_on() -> None:
    behind, sent = call([part(b'{"a": 1}', more=True)])
    assert (behind.bodies, sent) == ([], [])


@pytest.mark.parametrize("sizes", [[11], [5, 6], [5, 6, 30]])
def test_a_large_body_is_refused_after_it_was_sent(sizes: list[int]) -> None:
    behind, sent = call([part(b"x" * size, more=True) for size in sizes] + [part(b"")])
    assert behind.bodies == []
    assert sent[0]["status"] == 413


def test_an_endless_body_is_not_read_to_its_end() -> None:
    read: list[int] = []

    class Endless(list[Message]):
        def __iter__(self) -> Any:
            for n in range(10**6):
                read.append(n)
                yield part(b"x" * 10, more=True)

    behind, sent = call(Endless())
    assert behind.bodies == []
    assert sent[0]["status"] == 413
    assert len(read) < 10


def test_bytes_that_are_no_text_are_refused() -> None:
    behind, sent = call([part(b"\xff\xfe")])
    assert behind.bodies == []
    assert (sent[0]["status"], b"not_utf8" in sent[1]["body"]) == (400, True)
