"""The application: runtime, routes, and errors as answers."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.telemetry import TelemetryConfig
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cambium import __version__
from cambium.core.errors import CambiumError, DataError
from cambium.serve.access import ANYBODY, SIGN_IN, caller_of, is_open
from cambium.serve.answering import CallersView
from cambium.serve.api import adapters, governance, killing, measuring, review, tokens
from cambium.serve.api.openai import openai_error_response
from cambium.serve.api.openai import router as openai_router
from cambium.serve.api.problems import problem
from cambium.serve.config import ServerConfig
from cambium.serve.dashboard import items, pages, playground, stopping, watching
from cambium.serve.errors import NotFound, NotUtf8, TooLarge, Unauthenticated
from cambium.serve.runtime import Runtime
from cambium.serve.telemetry import Observed

PARTS = (
    adapters, review, measuring, governance, killing, tokens,
    pages, items, watching, playground, stopping,
)  # fmt: skip
# The framework's own spans and logs hold query strings, and what was wrong with a body in its own
# words; `telemetry.Observed` says less.
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False, "metrics": False, "logs": False, "operation_spans": False,
    "auto_configure": False,
}  # fmt: skip
# A body over the bound is read on, unkept, up to this many times the bound.
DRAINED_BODIES = 4
MAX_OPEN_BODY = 4096


def create_app(config: ServerConfig, *, opened: Runtime | None = None) -> FastAPI:
    """Returns the server's application; its runtime closes with the lifespan.

    Args:
        opened: a runtime that is open already; None opens one when the lifespan begins.

    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with opened or Runtime(config) as runtime:
            app.state.runtime = runtime
            whole = CallersView(answering=runtime.answering, caller=ANYBODY)
            app.include_router(openai_router(whole, view=partial(_as_seen, runtime)))
            for part in PARTS:
                app.include_router(part.router(runtime))
            yield

    app = FastAPI(
        title="Cambium",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=NO_TELEMETRY,
    )
    app.add_exception_handler(CambiumError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(RequestGuard, max_body_bytes=config.max_body_bytes)
    app.add_middleware(Observed)  # the outermost: what is refused is counted too
    return app


class RequestGuard:
    """Gives each request an id and a caller; refuses bodies that are too large or not UTF-8.

    Every response says which revision was served and, unless a route says more, no adapter. Pure
    ASGI: the body is read once, here, because a bound that is checked after parsing is no bound.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("x-cambium-request-id", request_id)
                headers.setdefault("x-cambium-revision", str(_revision(scope)))
                headers.setdefault("x-cambium-adapter", "none")
            await send(message)

        refusal = _not_admitted(scope)
        # Of what nobody vouches for, no more is kept than a form holds.
        most = MAX_OPEN_BODY if is_open(scope["method"], scope["path"]) else self._max
        body = await self._read(receive, keep=refusal is None, most=most)
        if body is None:
            return  # the caller went away before it had said everything
        # Whoever takes their time with a body may have lost the token meanwhile.
        refusal = refusal or _not_admitted(scope, again=True)
        refusal = refusal or _refusal(body, most) or _killed(scope)
        if refusal is not None:
            answer = _to_sign_in(scope, refusal) or _answer_error(Request(scope), refusal)
            await answer(scope, receive, send_with_id)
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        await self._app(scope, replay, send_with_id)

    async def _read(self, receive: Receive, *, keep: bool, most: int) -> bytes | None:
        """Returns the body, or as much as shows that it is too large; None if it broke off.

        What is too large is read to its end but not kept, so that the caller, who is still
        sending, can read the refusal; up to a point.
        """
        parts: list[bytes] = []
        size = 0
        while size <= DRAINED_BODIES * most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            if keep and size <= most:
                parts.append(part)
            size += len(part)
            if not message.get("more_body", False):
                break
        return b"".join(parts)


def _refusal(body: bytes, most: int) -> CambiumError | None:
    if len(body) > most:
        return TooLarge(f"the body is over {most} bytes", mend="send less at a time")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        return NotUtf8(f"the body is not UTF-8 at byte {error.start}", mend="send UTF-8 JSON")
    return None


def _not_admitted(scope: Scope, *, again: bool = False) -> CambiumError | None:
    """Says why a request goes no further, or writes down who sent it."""
    runtime: Runtime = scope["app"].state.runtime
    try:
        headers = Headers(scope=scope)
        caller = runtime.access.admit(scope["method"], scope["path"], headers, again=again)
    except CambiumError as error:
        return error
    scope["state"]["caller"] = caller
    return None


def _to_sign_in(scope: Scope, refusal: CambiumError) -> Response | None:
    """Sends a browser that has no token to where it can give one."""
    wants_page = "text/html" in Headers(scope=scope).get("accept", "")
    if scope["method"] == "GET" and wants_page and isinstance(refusal, Unauthenticated):
        return RedirectResponse(SIGN_IN, status_code=303)
    return None


def _as_seen(runtime: Runtime, request: Request) -> CallersView:
    return CallersView(answering=runtime.answering, caller=caller_of(request))


def _killed(scope: Scope) -> CambiumError | None:
    kill = scope["app"].state.runtime.kill
    return None if kill.allows(scope["method"], scope["path"]) else kill.error()


def _revision(scope: Scope) -> int:
    runtime: Runtime = scope["app"].state.runtime
    return runtime.revision


def _answer_error(
    request: Request, error: CambiumError, *, status: int | None = None
) -> JSONResponse:
    if not request.url.path.startswith("/v1/"):
        return problem(error, request, status=status)
    response = openai_error_response(error)
    response.status_code = status or response.status_code
    return response


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    known = error if isinstance(error, CambiumError) else CambiumError("something broke")
    return _answer_error(request, known)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    if any(e.get("type") == "json_invalid" for e in found):
        return _answer_error(request, DataError("the body is not JSON", mend="send a JSON object"))
    first = found[0] if found else {}
    where = ".".join(str(p)[:80] for p in first.get("loc", ()) if p != "body")
    message = f"{where or 'body'}: {first.get('msg', 'invalid')}"
    return _answer_error(request, DataError(message, mend="see the API reference"))


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        missing = NotFound(f"nothing at {request.url.path[:100]}", mend="see the API reference")
        return _answer_error(request, missing)
    refused = DataError(str(getattr(error, "detail", error)), mend="see the API reference")
    return _answer_error(request, refused, status=status)


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    broken = CambiumError("something broke on the server", mend="see the server's log")
    return _answer_error(request, broken)
