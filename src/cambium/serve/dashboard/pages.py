"""The dashboard's routes: the list, a proposal, the line of revisions, signing in and out.

Pages are rendered on the server and run no script. They only read: whatever changes something is
signed by a person's own key, on the command line, and the page says which command.
"""

from __future__ import annotations

import asyncio
from functools import cache, partial
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from cambium.core.errors import DataError, NotFound
from cambium.lifecycle.proposal import FINAL
from cambium.serve.access import SIGN_IN, Asking, Caller
from cambium.serve.api.review import is_shown, may_see, shown
from cambium.serve.dashboard import views
from cambium.serve.diff import diff_of
from cambium.serve.errors import Unauthenticated
from cambium.serve.runtime import Runtime
from cambium.serve.sessions import COOKIE, SESSION_S

# Nothing from elsewhere, nothing inline, nothing that runs, no frame around the page.
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
STATIC = {"cambium.css": "text/css"}


def router(runtime: Runtime) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter(tags=["pages"], default_response_class=HTMLResponse)
    _add_pages(routes, runtime)
    _add_session(routes, runtime)
    return routes


def _add_pages(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get("/")
    async def proposals(caller: Asking) -> Response:
        return await asyncio.to_thread(_proposals, runtime, caller)

    @routes.get("/review/{proposal_id}")
    async def proposal(proposal_id: str, caller: Asking) -> Response:
        try:
            return await asyncio.to_thread(_proposal, runtime, proposal_id, caller)
        except NotFound as error:
            return _page(runtime, "error.html", status_code=404, error=error)

    @routes.get("/line")
    async def line(caller: Asking) -> Response:
        return await asyncio.to_thread(_line, runtime, caller)

    @routes.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in STATIC:
            raise NotFound(f"nothing at /static/{name[:80]}", mend="see GET /")
        headers = {**HEADERS, "cache-control": "max-age=3600"}
        return Response(_static(name), media_type=STATIC[name], headers=headers)


def _add_session(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get(SIGN_IN)
    async def form() -> Response:
        return _page(None, "sign_in.html", refused=None)

    @routes.post(SIGN_IN)
    async def sign_in(request: Request) -> Response:
        _check_origin(request)
        # Not `Form`: that would need another parser for one field.
        fields = parse_qs((await request.body()).decode("utf-8"))
        token = fields.get("token", [""])[0].strip()
        try:
            session = await asyncio.to_thread(runtime.sessions.open, token)
        except Unauthenticated as error:
            return _page(None, "sign_in.html", status_code=401, refused=error)
        answer = RedirectResponse("/", status_code=303, headers=HEADERS)
        # Sent by this site's own pages only, readable by no script, and good for reading alone.
        answer.set_cookie(COOKIE, session, max_age=SESSION_S, httponly=True, samesite="strict",
                          secure=request.url.scheme == "https")  # fmt: skip
        return answer

    @routes.post("/sign-out")
    async def sign_out() -> Response:
        answer = RedirectResponse(SIGN_IN, status_code=303, headers=HEADERS)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer


def _check_origin(request: Request) -> None:
    """Refuses a form that another site's page has a browser send.

    Raises:
        DataError: the browser says that the form is not this server's own.
    """
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise DataError("this form was sent from another site", mend="sign in on /sign-in")


def _proposals(runtime: Runtime, caller: Caller) -> Response:
    rows = []
    own = [filed for filed in runtime.proposals.all() if is_shown(filed, caller)]
    for filed in sorted(own, key=lambda f: -f.created_at):
        view = runtime.review.view(filed)
        rows.append({**view, "status": views.status_line(view), "verdicts": views.verdicts(view)})
    return _page(runtime, "proposals.html", rows=rows, has_policy=runtime.policy is not None)


def _proposal(runtime: Runtime, proposal_id: str, caller: Caller) -> Response:
    filed = shown(runtime.proposals, proposal_id, caller)
    view, diff = runtime.review.view(filed), diff_of(filed, runtime)
    with runtime.state.read() as tx:
        entries = [dict(entry.__dict__) for entry in tx.audit_entries(naming=proposal_id)]
    return _page(
        runtime,
        "proposal.html",
        view=view,
        status=views.status_line(view),
        is_decided=filed.proposal.state in FINAL,
        gates=views.gate_rows(view),
        diff=diff,
        clusters=views.cluster_rows(diff["behaviour"]),
        modules=views.module_rows(diff["weights"]),
        timeline=views.timeline(entries, proposal_id),
        policy=runtime.policy,
    )


def _line(runtime: Runtime, caller: Caller) -> Response:
    seen = partial(may_see, runtime, caller)
    revisions = runtime.releases.list()
    for revision in revisions:
        revision["domains"] = sorted(domain for domain in revision["bank"] if seen(domain))
        revision["others"] = len(revision["bank"]) - len(revision["domains"])
    drift = runtime.drift.report(seen)
    return _page(runtime, "line.html", revisions=revisions[::-1], drift=drift)


def _page(runtime: Runtime | None, name: str, *, status_code: int = 200, **fields: Any) -> Response:
    """Returns a page; without a runtime one for strangers, which tells nothing of the server."""
    standing = {
        "revision": runtime.revision,
        "attestation": runtime.identity.attestation_label,
        "killed": runtime.kill.killed,
        "has_tokens": runtime.tokens.demanded,
    } if runtime else None  # fmt: skip
    html = _environment().get_template(name).render(standing=standing, **fields)
    return HTMLResponse(html, status_code=status_code, headers=HEADERS)


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("cambium.serve.dashboard"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(short=views.short, number=views.number, when=views.when)
    return found


@cache
def _static(name: str) -> bytes:
    return (resources.files("cambium.serve.dashboard") / "static" / name).read_bytes()
