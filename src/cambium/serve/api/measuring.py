"""The route by which evals ask a model: likelihoods and texts, many at once, of any revision."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from cambium.core.errors import DataError
from cambium.evals.subject import Generation
from cambium.serve.access import Asking, Caller
from cambium.serve.api.bodies import Body
from cambium.serve.runtime import Runtime

MAX_ITEMS = 4096
MAX_NEW_TOKENS = 4096
# A context and its continuation.
Pair = Annotated[list[str], Field(min_length=2, max_length=2)]


class GenerationBody(Body):
    """One text to be written; see `cambium.evals.subject.Generation`."""

    prompt: str
    max_tokens: int = Field(ge=1, le=MAX_NEW_TOKENS)
    until: list[str] = Field(default_factory=list, max_length=16)
    temperature: float = Field(default=0.0, ge=0, le=2)
    seed: int = Field(default=0, ge=0, lt=2**63)


class MeasureBody(Body):
    """A model and exactly one kind of question about it."""

    model: str
    loglikelihood: Annotated[list[Pair], Field(max_length=MAX_ITEMS)] | None = None
    loglikelihood_rolling: Annotated[list[str], Field(max_length=MAX_ITEMS)] | None = None
    generate: Annotated[list[GenerationBody], Field(max_length=MAX_ITEMS)] | None = None


def router(runtime: Runtime) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter(tags=["evals"])

    @routes.post("/measurements")
    async def measure(body: MeasureBody, caller: Asking) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(runtime.slow_threads, _measured, runtime, body, caller)

    return routes


def _measured(runtime: Runtime, body: MeasureBody, caller: Caller) -> dict[str, Any]:
    asked = [n for n in ("loglikelihood", "loglikelihood_rolling", "generate")
             if getattr(body, n) is not None]  # fmt: skip
    if len(asked) != 1:
        raise DataError("a measurement asks exactly one kind of question",
                        mend="send loglikelihood, loglikelihood_rolling or generate")  # fmt: skip
    subject = runtime.subjects.open(body.model, caller=caller)
    results: list[Any]
    if body.loglikelihood is not None:
        pairs = [(context, continuation) for context, continuation in body.loglikelihood]
        results = [asdict(found) for found in subject.loglikelihood(pairs)]
    elif body.loglikelihood_rolling is not None:
        found = subject.loglikelihood_rolling(body.loglikelihood_rolling)
        results = [asdict(likelihood) for likelihood in found]
    else:
        wanted = [Generation(**{**g.model_dump(), "until": tuple(g.until)})
                  for g in body.generate or ()]  # fmt: skip
        results = list(subject.generate(wanted))
    return {"model": body.model, "digest": subject.digest, "results": results}
