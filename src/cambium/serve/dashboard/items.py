"""The items that looks name, opened for reviewers: what was asked, and what each look found.

Only what the evidence of one proposal names is shown, and only to who judges it: whoever teaches
an item's words to a model trains it on its test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from cambium.evals.alignment_pairs import AlignmentPair, gate_pairs
from cambium.serve.access import Asking, Caller
from cambium.serve.api.review import shown
from cambium.serve.dashboard.rendering import render
from cambium.serve.errors import NotFound
from cambium.serve.proposal_records import Filed
from cambium.serve.runtime import Runtime


def router(runtime: Runtime) -> APIRouter:
    """Returns the route."""
    routes = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

    @routes.get("/review/{proposal_id}/items/{item}")
    async def one(request: Request, proposal_id: str, item: str, caller: Asking) -> Response:
        try:
            return await asyncio.to_thread(_item, request, runtime, (proposal_id, item), caller)
        except NotFound as error:
            return render(request, runtime, "error.html", status_code=404, error=error)

    return routes


def named(note: str) -> str:
    """Returns the id of the item that a look's note begins with, or nothing."""
    first = note.partition(" ")[0]
    return first if first in _pairs() else ""


def _item(request: Request, runtime: Runtime, asked: tuple[str, str], caller: Caller) -> Response:
    proposal_id, item = asked
    filed = shown(runtime.proposals, proposal_id, caller)
    said = _said(filed, item)
    if not said:
        raise NotFound(f"no look of {proposal_id} names the item {item!r:.40}",
                       mend="open what its gates name")  # fmt: skip
    fields = {"proposal": proposal_id, "item": _pairs()[item], "said": said}
    return render(request, runtime, "item.html", **fields)


def _said(filed: Filed, item: str) -> list[dict[str, Any]]:
    """Returns what each look that names the item says of it."""
    return [
        {"gate": verdict.gate, "look": number, "verdict": str(verdict.outcome), "note": note}
        for number, look in enumerate(filed.proposal.looks, 1)
        for verdict in look
        if verdict.measurement is not None
        for note in verdict.measurement.notes
        if named(note) == item
    ]


@cache
def _pairs() -> Mapping[str, AlignmentPair]:
    return {pair.id: pair for pair in gate_pairs()}
