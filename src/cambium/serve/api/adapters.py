"""Routes of ephemeral adapters and learning."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import APIRouter, Response
from pydantic import Field

from cambium.core.errors import DataError
from cambium.learn.examples import parse_example
from cambium.models.lora import ALL_LINEAR, LoraConfig
from cambium.serve.access import Asking, Caller
from cambium.serve.adapter_states import AdapterState
from cambium.serve.api.bodies import Body
from cambium.serve.bounds import LearnCall, check_domain, check_name
from cambium.serve.ephemeral import EphemeralAdapters
from cambium.serve.errors import AdapterNotFound
from cambium.serve.export import export_files, zipped
from cambium.serve.names import parse_model_name
from cambium.serve.replaying import replay_adapter, replay_candidate
from cambium.serve.runtime import Runtime
from cambium.serve.store.records import AdapterRecord

DEFAULT_TTL_S = 24 * 3600
# Words that say the opposite of what a text in this field means.
_NO = frozenset({"no", "false", "none", "null", "0", "off"})


class LoraBody(Body):
    """Rank, scale and targets, named as in PEFT."""

    r: int = 8
    lora_alpha: int | None = None
    target_modules: list[str] | str = ALL_LINEAR


class CreateBody(Body):
    """What an ephemeral adapter is for and how long it lives."""

    task_id: str
    lora_cfg: LoraBody = LoraBody()
    safety_scope: str = "text"
    ttl_s: int = DEFAULT_TTL_S
    domain: str | None = None


class LearnBody(Body):
    """Examples and how to learn from them."""

    adapter_id: str
    examples: list[dict[str, Any]]
    loss: str = "task"
    steps: int = 8
    lr: float | None = None
    replay_keys: list[str] | None = None
    consent: str | bool | None = None
    source: str | None = Field(default=None, max_length=400)


def router(runtime: Runtime) -> APIRouter:
    """Returns the routes; learning runs in a thread, so answers go on."""
    routes = APIRouter(tags=["adapters"])
    adapters = runtime.adapters

    @routes.post("/adapters/ephemeral", status_code=201)
    async def create(body: CreateBody, caller: Asking) -> dict[str, Any]:
        record = await asyncio.to_thread(_create, runtime, body, caller)
        return {
            "adapter_id": body.task_id,
            "digest": record.digest,
            "state": record.state,
            "expires_at": (record.expires_at or 0) // 1000,
        }

    @routes.post("/learn/step")
    async def learn_step(body: LearnBody, caller: Asking) -> dict[str, Any]:
        within = copy_context()  # so that what is learned belongs to this request's trace
        # Not among the threads of the other calls, which would wait until lessons are over.
        return await runtime.lesson_turns.run(
            lambda: within.run(_learn, adapters, body, caller),
            adapter=caller.own(body.adapter_id),
            tenant=caller.tenant,
        )

    @routes.post("/adapters/{name}/replay")
    async def replay_learning(name: str, caller: Asking) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        work = partial(runtime.at_length, _replay, runtime, name, caller)
        return await loop.run_in_executor(runtime.slow_threads, work)

    @routes.get("/adapters")
    async def list_adapters(caller: Asking) -> dict[str, Any]:
        records = await asyncio.to_thread(adapters.list)
        return {"adapters": [adapter_view(a, caller) for a in records if caller.sees(a.tenant)]}

    @routes.get("/adapters/{name}")
    async def get_adapter(name: str, caller: Asking) -> dict[str, Any]:
        return await asyncio.to_thread(_get, runtime, name, caller)

    @routes.get("/adapters/{name}/export")
    async def export(name: str, caller: Asking) -> Response:
        content = await asyncio.to_thread(_export, runtime, name, caller)
        return Response(content, media_type="application/zip")

    @routes.get("/model-signing-key")
    async def model_signing_key() -> dict[str, Any]:
        return await asyncio.to_thread(runtime.model_signer.vouched, runtime.identity.key)

    @routes.delete("/adapters/{name}")
    async def delete_adapter(name: str, caller: Asking) -> dict[str, Any]:
        return adapter_view(await asyncio.to_thread(adapters.delete, caller.own(name)), caller)

    @routes.delete("/adapters/{name}/examples")
    async def withdraw(name: str, caller: Asking, source: str | None = None) -> dict[str, Any]:
        gone = await asyncio.to_thread(adapters.withdraw, caller.own(name), source)
        await asyncio.to_thread(runtime.review.end_withdrawn)
        return {"adapter_id": name, "forgotten": gone}

    return routes


def adapter_view(record: AdapterRecord, caller: Caller) -> dict[str, Any]:
    """Returns an adapter as the API shows it."""
    return {
        "adapter_id": caller.label(record.name),
        "tenant": record.tenant,
        "digest": record.digest,
        "state": record.state,
        "domain": record.domain,
        "safety_scope": record.scope,
        "parent_revision": record.parent_revision,
        "steps": record.steps,
        "created_at": record.created_at // 1000,
        "expires_at": record.expires_at // 1000 if record.expires_at else None,
        "monitors": record.detail.get("monitors", {}),
    }


def _get(runtime: Runtime, model: str, caller: Caller) -> dict[str, Any]:
    """Returns an adapter as it now stands, or as its frozen version `name@digest`."""
    asked, _, digest = model.partition("@")
    name = caller.own(asked)
    record = runtime.adapters.get(name)
    with runtime.state.read() as tx:
        versions = tx.list_versions(name)
    served = {str(entry.adapter) for entry in runtime.bank.revision.bank}
    listed = [
        {
            "digest": version.digest,
            "state": AdapterState.STABLE
            if f"{name}@{version.digest}" in served
            else AdapterState.FROZEN,
            "created_at": version.created_at // 1000,
        }
        for version in versions
    ]
    view = {
        **adapter_view(record, caller),
        "versions": listed,
        "traffic": runtime.traffic.progress(name),
        "replay": runtime.adapters.replay_view(name),
    }
    if not digest or digest == record.digest:
        return view
    found = next((version for version in listed if version["digest"] == digest), None)
    if found is None:
        raise AdapterNotFound(f"no kept version is {model[:160]!r}", mend="see GET /adapters/NAME")
    return {**view, **found, "expires_at": None}


def _export(runtime: Runtime, model: str, caller: Caller) -> bytes:
    return zipped(export_files(runtime, *_named(model, caller)))


def _named(model: str, caller: Caller) -> tuple[str, str | None]:
    """Returns the state's name of the adapter, and which version."""
    asked, at, version = model.partition("@")
    name = caller.own(asked)
    _, digest = parse_model_name(f"{asked.rpartition(':')[2]}{at}{version}")
    return name, digest


def _replay(runtime: Runtime, model: str, caller: Caller) -> dict[str, Any]:
    name, digest = _named(model, caller)
    if digest is None or digest == runtime.adapters.current_digest(name):
        calls = replay_adapter(runtime.adapters, runtime.state, name)
    else:
        checker = runtime.review.checker
        calls = [replay_candidate(checker, runtime.adapters, runtime.state, name, digest)]
    return {
        "adapter_id": model,
        "ok": all(call.ok for call in calls),
        "calls": [{**asdict(call), "ok": call.ok} for call in calls],
    }


def _create(runtime: Runtime, body: CreateBody, caller: Caller) -> AdapterRecord:
    runtime.check_scope(body.safety_scope)
    check_name(body.task_id, taken=runtime.encoder.name)
    if body.domain is not None:
        check_domain(body.domain, policy=runtime.policy, tenant=caller.tenant)
    targets = body.lora_cfg.target_modules
    config = LoraConfig(
        r=body.lora_cfg.r,
        lora_alpha=body.lora_cfg.lora_alpha
        if body.lora_cfg.lora_alpha is not None
        else 2 * body.lora_cfg.r,
        target_modules=(targets,) if isinstance(targets, str) else tuple(sorted(set(targets))),
    )
    return runtime.adapters.create(
        caller.own(body.task_id),
        config,
        scope=body.safety_scope,
        ttl_s=body.ttl_s,
        domain=body.domain,
    )


def _learn(adapters: EphemeralAdapters, body: LearnBody, caller: Caller) -> dict[str, Any]:
    consent = "given" if body.consent is True else (str(body.consent or "").strip() or None)
    if consent and consent.casefold() in _NO:
        raise DataError(f"consent is {consent!r}", mend="leave it out, or send true or whose it is")
    call = LearnCall(
        examples=[parse_example(e) for e in body.examples],
        loss=body.loss,
        steps=body.steps,
        lr=body.lr,
        consent=consent,
        source=body.source or None,
        replay_keys=body.replay_keys or (),
    )
    before, after, result = adapters.learn(caller.own(body.adapter_id), call)
    return {
        "adapter_id": body.adapter_id,
        "digest_before": before.digest,
        "digest_after": after.digest,
        "loss_before": result.loss_before,
        "loss_after": result.loss_after,
        "losses": list(result.losses),
        "steps": len(result.losses),
        "state": after.state,
        "monitors": after.detail["monitors"],
        "seconds": round(result.seconds, 4),
    }
