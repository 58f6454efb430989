"""The routes under /v1."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from cambium.core.errors import CambiumError
from cambium.serve.api.openai.bodies import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    parse,
    read_json,
)
from cambium.serve.api.openai.chat import plan_chat
from cambium.serve.api.openai.completions import plan_completion
from cambium.serve.api.openai.embeddings import embed
from cambium.serve.api.openai.errors import openai_error_response
from cambium.serve.api.openai.plans import Plan
from cambium.serve.api.openai.replies import Arrival, Reply, respond
from cambium.serve.api.openai.runtime import Answerer, ModelEntry, OpenAIRuntime, TraceDraft
from cambium.serve.api.openai.token_texts import TokenTexts
from cambium.serve.errors import ModelNotFound

NO_ADAPTER = "none"  # what x-cambium-adapter says when no language model answered
_Endpoint = Callable[[Request], Awaitable[Response]]


def router(
    runtime: OpenAIRuntime, *, view: Callable[[Request], OpenAIRuntime] | None = None
) -> APIRouter:
    """Returns OpenAI's endpoints over `runtime`.

    Args:
        view: the runtime as whoever sent a request may see it; None shows everybody the whole.

    Every response, errors included, carries `x-cambium-request-id` (`request.state.request_id`
    where a middleware has set it), `x-cambium-revision` and `x-cambium-adapter`.

    Raises:
        ModelError: the base's tokenizer cannot be streamed.
    """
    endpoints = _Endpoints(runtime, view=view or (lambda _: runtime))
    api = APIRouter(prefix="/v1", tags=["openai"])
    for path, method, endpoint in (
        ("/models", "GET", endpoints.models),
        ("/models/{model_id:path}", "GET", endpoints.model),
        ("/chat/completions", "POST", endpoints.chat),
        ("/completions", "POST", endpoints.completions),
        ("/embeddings", "POST", endpoints.embeddings),
    ):
        api.add_api_route(path, _guarded(runtime, endpoint), methods=[method],
                          name=f"openai_{endpoint.__name__}", response_model=None)  # fmt: skip
    return api


class _Endpoints:
    def __init__(self, runtime: OpenAIRuntime, *, view: Callable[[Request], OpenAIRuntime]) -> None:
        self._runtime = runtime
        self._view = view
        self._texts = TokenTexts(runtime.base.tokenizer)

    async def models(self, request: Request) -> Response:
        data = [_listed(entry) for entry in self._entries(request)]
        return JSONResponse({"object": "list", "data": data}, headers=self._plain(request))

    async def model(self, request: Request) -> Response:
        wanted = str(request.path_params["model_id"])
        for entry in self._entries(request):
            if entry.id == wanted:
                return JSONResponse(_listed(entry), headers=self._plain(request))
        raise ModelNotFound(f"no model {wanted[:80]!r}", mend="see GET /v1/models")

    async def chat(self, request: Request) -> Response:
        arrival = _arrival(request)
        body = parse(ChatBody, await read_json(request))
        plan = await run_in_threadpool(plan_chat, self._view(request), self._texts, body)
        return await self._answer(request, plan, arrival)

    async def completions(self, request: Request) -> Response:
        arrival = _arrival(request)
        body = parse(CompletionBody, await read_json(request))
        view = self._view(request)
        plan = await run_in_threadpool(plan_completion, view, self._texts, body)
        return await self._answer(request, plan, arrival)

    async def embeddings(self, request: Request) -> Response:
        arrival = _arrival(request)
        body = parse(EmbeddingBody, await read_json(request))
        answer = await run_in_threadpool(embed, self._runtime.encoder, body)
        revision = self._runtime.revision
        answerer = Answerer(model=body.model, adapter=NO_ADAPTER, adapters=(), revision=revision)
        took_ms = (time.perf_counter() - arrival.at) * 1000
        self._view(request).record(
            TraceDraft(
                request_id=arrival.request_id,
                endpoint="embeddings",
                answerer=answerer,
                prompt_tokens=answer["usage"]["prompt_tokens"],
                completion_tokens=0,
                finish_reasons=(),
                queued_ms=0.0,
                first_token_ms=None,
                total_ms=took_ms,
                params={"num_inputs": len(answer["data"])},
            )
        )
        return JSONResponse(answer, headers=_headers(request, revision, NO_ADAPTER))

    async def _answer(self, request: Request, plan: Plan, arrival: Arrival) -> Response:
        view = self._view(request)
        if plan.lesson is not None:
            view.offer(plan.answerer, plan.lesson, arrival.request_id)
        headers = _headers(request, plan.answerer.revision, plan.answerer.adapter)
        reply = Reply(view, self._texts, plan, arrival)
        return await respond(request, reply, stream=plan.stream, headers=headers)

    def _entries(self, request: Request) -> list[ModelEntry]:
        encoder = ModelEntry(id=self._runtime.encoder.name, created=0, owned_by="encoder")
        return [*self._view(request).models(), encoder]

    def _plain(self, request: Request) -> dict[str, str]:
        return _headers(request, self._runtime.revision, NO_ADAPTER)


def _guarded(runtime: OpenAIRuntime, endpoint: _Endpoint) -> _Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except CambiumError as error:
            headers = _headers(request, runtime.revision, NO_ADAPTER)
            return openai_error_response(error, headers=headers)

    return answer


def _listed(entry: ModelEntry) -> dict[str, object]:
    return {
        "id": entry.id,
        "object": "model",
        "created": entry.created,
        "owned_by": entry.owned_by,
    }


def _arrival(request: Request) -> Arrival:
    return Arrival(request_id=_request_id(request), at=time.perf_counter())


def _request_id(request: Request) -> str:
    if not hasattr(request.state, "request_id"):
        request.state.request_id = f"req-{secrets.token_hex(12)}"
    return str(request.state.request_id)


def _headers(request: Request, revision: int, adapter: str) -> dict[str, str]:
    return {
        "x-cambium-request-id": _request_id(request),
        "x-cambium-revision": str(revision),
        "x-cambium-adapter": adapter,
    }
