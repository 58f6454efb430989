"""The routes by which evals ask of any model: likelihoods and texts, many at once, and weights."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from cambium.core.errors import DataError
from cambium.evals.local_subject import LocalSubject
from cambium.evals.subject import Generation
from cambium.models.breaking_off import breakable
from cambium.models.weight_diff import weights_by_domain
from cambium.serve.access import Asking, Caller
from cambium.serve.api.bodies import Body
from cambium.serve.errors import TooLarge
from cambium.serve.runtime import Runtime

MAX_ITEMS = 4096
MAX_NEW_TOKENS = 4096
MAX_CHARS = 8_000_000
MAX_WRITTEN = 2**18
ITEMS_AT_ONCE = 128
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
        return await loop.run_in_executor(
            runtime.measuring_thread, _measured, runtime, body, caller
        )

    @routes.get("/weights")
    async def weights(a: str, b: str, caller: Asking) -> dict[str, Any]:
        return await asyncio.to_thread(_weighed, runtime, a, b, caller)

    return routes


def _weighed(runtime: Runtime, a: str, b: str, caller: Caller) -> dict[str, Any]:
    stacks = [runtime.subjects.stacks(name, caller=caller) for name in (a, b)]
    return {"a": a, "b": b, "parts": weights_by_domain(runtime.base, *stacks)}


def _measured(runtime: Runtime, body: MeasureBody, caller: Caller) -> dict[str, Any]:
    asked = [n for n in ("loglikelihood", "loglikelihood_rolling", "generate")
             if getattr(body, n) is not None]  # fmt: skip
    if len(asked) != 1:
        raise DataError("a measurement asks exactly one kind of question",
                        mend="send loglikelihood, loglikelihood_rolling or generate")  # fmt: skip
    _check_size(body)
    subject = runtime.subjects.open(body.model, caller=caller)
    items: list[Any] = getattr(body, asked[0])
    results: list[Any] = []
    check = partial(runtime.subjects.check, body.model)
    with breakable(check):  # a kill and a stop end what is under way, not only what comes after
        for at in range(0, len(items), ITEMS_AT_ONCE):
            check()
            results += _answers(subject, asked[0], items[at : at + ITEMS_AT_ONCE])
        check()
    return {"model": body.model, "digest": subject.digest, "results": results}


def _answers(subject: LocalSubject, question: str, items: list[Any]) -> list[Any]:
    if question == "loglikelihood":
        pairs = [(context, continuation) for context, continuation in items]
        return [asdict(found) for found in subject.loglikelihood(pairs)]
    if question == "loglikelihood_rolling":
        return [asdict(found) for found in subject.loglikelihood_rolling(items)]
    wanted = [Generation(**{**g.model_dump(), "until": tuple(g.until)}) for g in items]
    return list(subject.generate(wanted))


def _check_size(body: MeasureBody) -> None:
    """Refuses what would hold the one measuring thread for long.

    Raises:
        TooLarge: more characters to read, or tokens to write, than one call may ask for.
    """
    read = sum(len(text) for pair in body.loglikelihood or () for text in pair)
    read += sum(map(len, body.loglikelihood_rolling or ()))
    read += sum(len(g.prompt) for g in body.generate or ())
    written = sum(g.max_tokens for g in body.generate or ())
    if read > MAX_CHARS or written > MAX_WRITTEN:
        raise TooLarge(
            f"{read} characters to read and {written} tokens to write; {MAX_CHARS} and "
            f"{MAX_WRITTEN} are allowed in a call",
            mend="ask in several calls",
        )
