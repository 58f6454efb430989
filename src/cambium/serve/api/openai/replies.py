"""One planned request answered: whole or as a stream, traced once, cancelled when unheard."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cambium.core.errors import CambiumError
from cambium.serve.api.openai.choices import Piece
from cambium.serve.api.openai.errors import openai_error_response
from cambium.serve.api.openai.generation import Generation
from cambium.serve.api.openai.plans import Plan
from cambium.serve.api.openai.runtime import OpenAIRuntime, TraceDraft
from cambium.serve.api.openai.token_texts import TokenTexts


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """When a request came (seconds of `time.perf_counter`) and the id it goes by."""

    request_id: str
    at: float


class Reply:
    """Generates one answer; `close` must follow whatever happens, and leaves one trace."""

    def __init__(
        self, runtime: OpenAIRuntime, texts: TokenTexts, plan: Plan, arrival: Arrival
    ) -> None:
        self._runtime = runtime
        self._plan = plan
        self._arrival = arrival
        self._created = int(time.time())
        self._generation = Generation(runtime.engine, texts, plan.jobs)
        self._open = True
        self._broken = False

    def start(self) -> None:
        """Hands the work to the engine; see `Generation.start`."""
        self._generation.start()

    async def whole(self) -> dict[str, object]:
        """Returns the body of an answer that is not streamed."""
        pieces: list[list[Piece]] = [[] for _ in self._plan.jobs]
        async for piece in self._pieces():
            pieces[piece.index].append(piece)
        choices = [self._plan.renderer.whole(i, some) for i, some in enumerate(pieces)]
        head = self._head(self._plan.renderer.whole_object)
        return head | {"choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[bytes]:
        """Yields a stream's server-sent events; an error is the last of them."""
        renderer = self._plan.renderer
        try:
            for i in range(len(self._plan.jobs)):
                if (opening := renderer.opening(i)) is not None:
                    yield self._event([opening])
            async for piece in self._pieces():
                yield self._event([renderer.chunk(piece)])
        except CambiumError as error:
            self.close()
            yield b"data: " + bytes(openai_error_response(error).body) + b"\n\n"
            return
        if self._plan.include_usage:
            yield self._event([], usage=self._usage())
        self.close()  # before the last byte: whoever has the answer finds its trace
        yield b"data: [DONE]\n\n"

    def close(self) -> None:
        """Stops what is still being generated and records the trace, once."""
        if not self._open:
            return
        self._open = False
        run = self._generation
        run.cancel()
        ended = "error" if self._broken else "cancelled"
        first = run.first_token_at
        self._runtime.record(
            TraceDraft(
                request_id=self._arrival.request_id,
                endpoint=self._plan.renderer.endpoint,
                answerer=self._plan.answerer,
                prompt_tokens=self._plan.prompt_tokens,
                completion_tokens=run.num_tokens,
                finish_reasons=run.finishes(otherwise=ended),
                queued_ms=self._since(run.started_at or time.perf_counter()),
                first_token_ms=None if first is None else self._since(first),
                total_ms=self._since(time.perf_counter()),
                params=dict(self._plan.params),
            )
        )

    async def _pieces(self) -> AsyncIterator[Piece]:
        try:
            async for piece in self._generation.pieces():
                yield piece
        except CambiumError:
            self._broken = True
            raise

    def _since(self, moment: float) -> float:
        return (moment - self._arrival.at) * 1000

    def _head(self, kind: str) -> dict[str, object]:
        return {
            "id": self._plan.renderer.id_prefix + self._arrival.request_id,
            "object": kind,
            "created": self._created,
            "model": self._plan.answerer.model,
            "system_fingerprint": f"cambium-r{self._plan.answerer.revision}",
        }

    def _usage(self) -> dict[str, int]:
        prompt, answer = self._plan.prompt_tokens, self._generation.num_tokens
        total = prompt + answer
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": total}

    def _event(
        self, choices: list[dict[str, object]], *, usage: dict[str, int] | None = None
    ) -> bytes:
        chunk = self._head(self._plan.renderer.chunk_object) | {"choices": choices}
        if self._plan.include_usage:
            chunk["usage"] = usage
        data = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
        return b"data: " + data.encode("utf-8") + b"\n\n"


class EventStream(StreamingResponse):
    """A stream that always ends with `on_end`, also when the client left before it began."""

    def __init__(
        self, events: AsyncIterator[bytes], *, on_end: Callable[[], None], headers: dict[str, str]
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def respond(
    request: Request, reply: Reply, *, stream: bool, headers: dict[str, str]
) -> Response:
    """Returns the response to `request`, or stops generating once nobody waits for it."""
    try:
        reply.start()
        if stream:
            quiet = headers | {"cache-control": "no-cache"}
            return EventStream(reply.events(), on_end=reply.close, headers=quiet)
        body = await _unless_disconnected(request, reply)
    except BaseException:
        reply.close()
        raise
    reply.close()
    if body is None:
        return Response(status_code=499, headers=headers)  # nginx's "client closed request"
    return JSONResponse(body, headers=headers)


async def _unless_disconnected(request: Request, reply: Reply) -> dict[str, object] | None:
    answer = asyncio.create_task(reply.whole())
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        answer.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
