"""The pages that follow the server: what happens now, one request's trace, and the events."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from cambium.core.errors import CambiumError
from cambium.serve.access import Asking, Caller
from cambium.serve.api.governance import seen_trace
from cambium.serve.dashboard.live import overview, pulse
from cambium.serve.dashboard.rendering import render
from cambium.serve.errors import NotFound, RateLimited
from cambium.serve.runtime import Runtime

PERIOD_S = 0.5
# Whose session or token has ended hears nothing more after so many periods.
PERIODS_TO_ADMIT = 10
MAX_FOLLOWERS = 64
MAX_OWN = 16  # of one token


def router(runtime: Runtime) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter(tags=["pages"])
    followers: set[tuple[str, str]] = set()
    pulses = _Pulses(runtime)

    @routes.get("/live", response_class=HTMLResponse)
    async def live(request: Request, caller: Asking) -> Response:
        return await asyncio.to_thread(_live, request, runtime, caller)

    @routes.get("/trace/{request_id}", response_class=HTMLResponse)
    async def trace(request: Request, request_id: str, caller: Asking) -> Response:
        return await asyncio.to_thread(_trace, request, runtime, request_id, caller)

    async def following(request: Request, caller: Asking) -> AsyncIterator[None]:
        """Holds one of the few places; before the answer begins, so that a refusal is one."""
        me = request.state.request_id, f"{caller.tenant}/{caller.name}"
        if len(followers) >= MAX_FOLLOWERS or sum(w == me[1] for _, w in followers) >= MAX_OWN:
            raise RateLimited("as many pages follow this server as may",
                              mend="close one", detail={"retry_after_s": 30})  # fmt: skip
        followers.add(me)
        try:
            yield
        finally:
            followers.discard(me)

    @routes.get("/events", response_class=EventSourceResponse, dependencies=[Depends(following)])
    async def events(request: Request) -> AsyncIterator[ServerSentEvent]:
        async for event in _events(runtime, pulses, request):
            yield event

    return routes


class _Pulses:
    """The server's pulse, felt once a period for however many pages follow."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._felt: asyncio.Task[tuple[object, ...]] | None = None
        self._at = 0.0

    async def now(self) -> tuple[object, ...]:
        """Returns the pulse, at most a period old."""
        if self._felt is None or time.monotonic() - self._at >= PERIOD_S:
            self._at = time.monotonic()
            self._felt = asyncio.create_task(asyncio.to_thread(pulse, self._runtime))
        return await asyncio.shield(self._felt)


async def _events(
    runtime: Runtime, pulses: _Pulses, request: Request
) -> AsyncIterator[ServerSentEvent]:
    """Yields an event whenever something has changed; what has, the page asks for itself."""
    seen, periods = None, 0
    with contextlib.suppress(CambiumError):  # not admitted any more, or the state is closed
        while not runtime.closing.is_set():
            if periods % PERIODS_TO_ADMIT == 0:
                runtime.access.admit("GET", request.url.path, request.headers, again=True)
            now = await pulses.now()
            if seen not in (None, now):
                yield ServerSentEvent(event="change", data=periods)
            seen, periods = now, periods + 1
            await asyncio.sleep(PERIOD_S)


def _live(request: Request, runtime: Runtime, caller: Caller) -> Response:
    return render(request, runtime, "live.html", **overview(runtime, caller))


def _trace(request: Request, runtime: Runtime, request_id: str, caller: Caller) -> Response:
    try:
        row = seen_trace(runtime, request_id, caller)
    except NotFound as error:
        return render(request, runtime, "error.html", status_code=404, error=error)
    fields = {"request_id": request_id, "at": row.at / 1000, "trace": row.record,
              "tenant": row.tenant}  # fmt: skip
    return render(request, runtime, "trace.html", **fields)
