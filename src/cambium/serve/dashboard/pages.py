"""The dashboard's routes: the list, a proposal, the line of revisions, keys, signing in and out.

Pages are rendered on the server. What they change they ask of the same routes as every other
client; a person's signature is made by their own key, in their browser or on the command line.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from cambium.core.nouns import Action, tenant_of
from cambium.lifecycle.proposal import FINAL
from cambium.models.adapter_kinds import config_from, shape_in_words
from cambium.serve.access import SIGN_IN, Asking, Caller, check_origin
from cambium.serve.api.review import may_see, shown
from cambium.serve.dashboard import items, views
from cambium.serve.dashboard.rendering import (
    HEADERS,
    load,
    render,
    render_for_strangers,
    static_file,
)
from cambium.serve.diff import diff_of
from cambium.serve.errors import NotFound, PageForged, Unauthenticated
from cambium.serve.model_card import model_card
from cambium.serve.runtime import Runtime
from cambium.serve.sessions import COOKIE, SESSION_S


def router(runtime: Runtime) -> APIRouter:
    """Returns the routes, all that they show read from the disk."""
    load()
    routes = APIRouter(tags=["pages"], default_response_class=HTMLResponse)
    _add_pages(routes, runtime)
    _add_session(routes, runtime)
    return routes


def _add_pages(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get("/")
    async def proposals(request: Request, caller: Asking) -> Response:
        return await asyncio.to_thread(_proposals, request, runtime, caller)

    @routes.get("/review/{proposal_id}")
    async def proposal(request: Request, proposal_id: str, caller: Asking) -> Response:
        try:
            return await asyncio.to_thread(_proposal, request, runtime, proposal_id, caller)
        except NotFound as error:
            return render(request, runtime, "error.html", status_code=404, error=error)

    @routes.get("/line")
    async def line(request: Request, caller: Asking) -> Response:
        return await asyncio.to_thread(_line, request, runtime, caller)

    @routes.get("/my-key")
    async def my_key(request: Request) -> Response:
        return await asyncio.to_thread(_my_key, request, runtime)

    @routes.get("/static/{name}")
    async def static(name: str) -> Response:
        return static_file(name)


def _add_session(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get(SIGN_IN)
    async def form() -> Response:
        return render_for_strangers("sign_in.html", refused=None)

    @routes.post(SIGN_IN)
    async def sign_in(request: Request) -> Response:
        try:
            check_origin(request.method, request.headers)
            # Not `Form`: that would need another parser for one field.
            fields = parse_qs((await request.body()).decode("utf-8"))
            token = fields.get("token", [""])[0].strip()
            session = await asyncio.to_thread(runtime.sessions.open, token)
        except Unauthenticated as error:
            return render_for_strangers("sign_in.html", status_code=401, refused=error)
        except PageForged as error:
            return render_for_strangers("sign_in.html", status_code=403, refused=error)
        answer = RedirectResponse("/", status_code=303, headers=HEADERS)
        # Sent by this site's own pages only, and readable by no script.
        answer.set_cookie(COOKIE, session, max_age=SESSION_S, httponly=True, samesite="strict",
                          secure=request.url.scheme == "https")  # fmt: skip
        return answer

    @routes.post("/sign-out")
    async def sign_out(request: Request) -> Response:
        check_origin(request.method, request.headers)
        answer = RedirectResponse(SIGN_IN, status_code=303, headers=HEADERS)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer


def _proposals(request: Request, runtime: Runtime, caller: Caller) -> Response:
    """Shows who waits, and of the decided some at a time: views of many take their time."""
    heads = runtime.proposals.heads()
    own = [head for head, adapter in heads if caller.sees(tenant_of(adapter))][::-1]
    waiting = [head.id for head in own if head.state not in FINAL]
    decided = [head.id for head in own if head.state in FINAL]
    asked = request.query_params.get("earlier", "")
    begin = min(int(asked), len(decided)) if re.fullmatch("[0-9]{1,9}", asked) else 0
    end = begin + views.MAX_DECIDED
    shown_now = [] if begin else waiting
    several = runtime.proposals.several([*shown_now, *decided[begin:end]])
    rows = [
        {**view, "status": views.listed(view), "verdicts": views.verdicts(view)}
        for view in runtime.review.views(several)
    ]
    return render(
        request,
        runtime,
        "proposals.html",
        waiting=rows[: len(shown_now)],
        decided=rows[len(shown_now) :],
        num_later=begin,
        num_earlier=max(0, len(decided) - end),
        next=end,
        has_policy=runtime.policy is not None,
    )


def _proposal(request: Request, runtime: Runtime, proposal_id: str, caller: Caller) -> Response:
    is_whole = request.query_params.get("timeline") == "whole"
    filed = shown(runtime.proposals, proposal_id, caller)
    view = runtime.review.view(filed)
    diff = diff_of(filed, runtime, seen=partial(may_see, runtime, caller))
    approvers = {a.key_id: a.name for a in runtime.proposals.need_policy().approvers.list}
    with runtime.state.read() as tx:
        calls = tx.monitors_of([filed.proposal.adapter_name])[filed.proposal.adapter_name]
        entries, num_entries = tx.audit_of(
            proposal_id, limit=None if is_whole else views.MAX_ENTRIES
        )
    return render(
        request,
        runtime,
        "proposal.html",
        view=view,
        status=views.listed(view),
        is_decided=filed.proposal.state in FINAL,
        gates=views.gate_rows(view),
        named=items.named,
        verdicts=views.verdicts(view),
        diff=diff,
        clusters=views.cluster_rows(diff["behaviour"]),
        modules=views.module_rows(diff["weights"]),
        shape=shape_in_words(config_from(view["provenance"])),
        timeline=views.timeline([dict(e.__dict__) for e in entries], proposal_id, names=approvers),
        num_earlier=num_entries - len(entries),
        candidate=_playable(view, caller),
        # What it was taught since is not in this candidate.
        least=views.least_shift(calls[: len(filed.provenance["learning"])]),
        signers={one["key_id"]: one["name"] for one in view["approvals"]},
        policy=runtime.policy,
        card=model_card(view, diff, base=runtime.base.name),
        act=partial(views.act, view),
    )


def _playable(view: dict[str, Any], caller: Caller) -> str | None:
    """Returns the name by which this caller can ask the candidate, if they can."""
    name = caller.label(view["adapter"])
    return f"{name}@{view['candidate_digest']}" if view["candidate"] and ":" not in name else None


def _line(request: Request, runtime: Runtime, caller: Caller) -> Response:
    seen = partial(may_see, runtime, caller)
    revisions = runtime.releases.list()
    for revision in revisions:
        revision["domains"] = sorted(domain for domain in revision["bank"] if seen(domain))
        revision["others"] = len(revision["bank"]) - len(revision["domains"])
    standing = {
        "state_version": runtime.state_version(),
        "policy_digest": runtime.policy.digest if runtime.policy else None,
    }
    return render(
        request,
        runtime,
        "line.html",
        revisions=revisions[::-1],
        drift=runtime.drift.report(seen),
        needed=runtime.policy.rollback.k if runtime.policy else None,
        waiting=runtime.waiting.list(Action.ROLLBACK),
        act=partial(views.act, standing),
        policy=runtime.policy,
    )


def _my_key(request: Request, runtime: Runtime) -> Response:
    with runtime.state.read() as tx:
        keys = [row for row in tx.list_keys() if row.role != "server"]
    known = {row.key_id: views.key_standing(row.name, row.role, row.revoked_at) for row in keys}
    policy = runtime.policy
    return render(request, runtime, "my_key.html", keys=keys, known=known, policy=policy)
