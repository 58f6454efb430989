"""The playground: one prompt side by side on base, stable, an adapter and a candidate."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import Field

from cambium.core.nouns import ProposalState, tenant_of
from cambium.models.sampling import SamplingConfig
from cambium.serve.access import Asking, Caller
from cambium.serve.api.bodies import Body
from cambium.serve.api.review import shown
from cambium.serve.comparing import MAX_ARMS, MAX_TOKENS, Arm, compare
from cambium.serve.dashboard.rendering import render
from cambium.serve.diff import documents_of
from cambium.serve.errors import NotFound, RateLimited
from cambium.serve.runtime import Runtime

# From how many nats on a token is coloured, and more strongly coloured.
STEPS = (0.2, 1.0, 3.0)
NUM_CANDIDATES = 20
MAX_ASKING = 8
MAX_SEED = 2**31 - 1
OPENING_WORDS = 8


class PlaygroundBody(Body):
    """What is to be continued, by whom; the first model is what the others are held to.

    A temperature of 0 takes the likeliest token each time, and then the seed says nothing.
    """

    prompt: str
    models: list[str] = Field(min_length=1, max_length=MAX_ARMS)
    max_tokens: int = Field(default=48, ge=1, le=MAX_TOKENS)
    temperature: float = Field(default=0, ge=0, le=2)
    seed: int = Field(default=0, ge=0, le=MAX_SEED)


def router(runtime: Runtime) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter(tags=["pages"], default_response_class=HTMLResponse)
    asking: set[str] = set()

    @routes.get("/playground")
    async def playground(
        request: Request, caller: Asking, model: str = "stable", of: str = ""
    ) -> Response:
        names = await asyncio.to_thread(_names, runtime, caller)
        opening = await asyncio.to_thread(_opening, runtime, of, caller)
        chosen = ["base", model, "", ""]
        return _page(request, runtime, names=names, chosen=chosen, **opening)

    @routes.post("/playground")
    async def answer(request: Request, body: PlaygroundBody, caller: Asking) -> Response:
        me = f"{caller.tenant}/{caller.name}"
        if me in asking or len(asking) >= MAX_ASKING:
            raise RateLimited("the playground is busy with an earlier prompt",
                              mend="wait for it", detail={"retry_after_s": 10})  # fmt: skip
        loop = asyncio.get_running_loop()
        sampling = SamplingConfig(temperature=body.temperature, seed=body.seed)
        names = await asyncio.to_thread(_names, runtime, caller)
        asking.add(me)
        try:
            # Behind whoever measures: generation for customers does not wait for this.
            arms = await loop.run_in_executor(
                runtime.measuring_thread,
                lambda: compare(runtime, caller, models=body.models, prompt=body.prompt,
                                max_tokens=body.max_tokens, sampling=sampling),
            )  # fmt: skip
        finally:
            asking.discard(me)
        chosen = [*body.models, "", "", ""][:MAX_ARMS]
        return _page(request, runtime, names=names, chosen=chosen, prompt=body.prompt,
                     temperature=body.temperature, seed=body.seed,
                     arms=[_shown(arm) for arm in arms])  # fmt: skip

    return routes


def _page(request: Request, runtime: Runtime, **fields: Any) -> Response:
    plain: dict[str, Any] = {"prompt": "", "arms": [], "max_tokens": MAX_TOKENS, "temperature": 0,
                             "seed": 0, "max_seed": MAX_SEED, "opening_of": None}  # fmt: skip
    return render(request, runtime, "playground.html", **{**plain, **fields})


def _opening(runtime: Runtime, proposal_id: str, caller: Caller) -> dict[str, Any]:
    """Returns how a document of a proposal begins, one never learned if there is one.

    Only documents that the proposal's own page shows: those whose consent stands.
    """
    try:
        found = documents_of(shown(runtime.proposals, proposal_id, caller), runtime)
    except NotFound:
        return {}
    for document in sorted(found, key=lambda one: not one["kept"]):
        words = document["text"].split()[:OPENING_WORDS]
        if words:
            return {"prompt": " ".join(words),
                    "opening_of": {"proposal": proposal_id, "kept": document["kept"]}}  # fmt: skip
    return {}


def _names(runtime: Runtime, caller: Caller) -> list[tuple[str, str]]:
    """Returns what can be asked, each with what a person calls it."""
    found = [(entry.id, entry.id) for entry in runtime.answering.models(caller)]
    newest = [
        head.id
        for head, adapter in runtime.proposals.heads()[::-1]
        if head.state is not ProposalState.CONSOLIDATING
        and caller.sees(tenant_of(adapter))
        # Another tenant's adapter answers to nobody else.
        and ":" not in caller.label(adapter)
    ]
    candidates = [f.proposal for f in runtime.proposals.several(newest[:NUM_CANDIDATES])]
    return found + [
        (f"{caller.label(p.adapter_name)}@{p.candidate_digest}",
         f"{p.domain}: {p.state.replace('_', ' ')}, candidate of {p.id}")
        for p in candidates if p.candidate_digest
    ]  # fmt: skip


def _shown(arm: Arm) -> dict[str, Any]:
    tokens = [
        {"text": t.text, "own": t.own, "first": t.first, "step": _step(t.difference)}
        for t in arm.tokens
    ]
    return {"model": arm.model, "adapter": arm.adapter, "request_id": arm.request_id,
            "tokens": tokens}  # fmt: skip


def _step(difference: float) -> str:
    """Returns how strongly a token is coloured: `same`, `more1` to `more3`, `less1` to `less3`."""
    size = sum(abs(difference) >= step for step in STEPS)
    return "same" if size == 0 else f"{'more' if difference > 0 else 'less'}{size}"
