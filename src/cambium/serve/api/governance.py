"""Routes of keys, policy, audit log, traces, liveness and metrics."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from cambium.core.errors import DataError
from cambium.serve.access import Asking, Caller, need_all
from cambium.serve.api.bodies import Body
from cambium.serve.api.review import SignatureBody
from cambium.serve.errors import TraceNotFound
from cambium.serve.identity import successions
from cambium.serve.log_head import prove_entry, prove_growth
from cambium.serve.policy_change import Change
from cambium.serve.request_log import page_of
from cambium.serve.revocation import enrol_key, revoke_key
from cambium.serve.runtime import Runtime
from cambium.serve.signed_records import signature_from_json
from cambium.serve.store.records import TraceRow
from cambium.trust.audit import REQUESTS
from cambium.trust.keys import PublicKey
from cambium.trust.policy import SignedPolicy

MAX_ENTRIES = 1000
_MAX_SEQ = 2**63 - 1  # what the database's integers hold


Lane = Literal["lifecycle", "requests"]


class ProofQuery(BaseModel):
    """Which proof: of an entry in a log of some size, or of how a log has grown."""

    model_config = ConfigDict(extra="forbid")
    lane: Lane = "lifecycle"
    seq: int | None = Field(default=None, ge=1, le=_MAX_SEQ)
    size: int | None = Field(default=None, ge=1, le=_MAX_SEQ)
    first: int | None = Field(default=None, ge=0, le=_MAX_SEQ)
    second: int | None = Field(default=None, ge=0, le=_MAX_SEQ)


class KeyBody(Body):
    """A public key and whose it is; it can do nothing until a policy lists it."""

    name: str = Field(min_length=1, max_length=64)
    public: str


class PolicyBody(Body):
    """A policy's text, the root's signature over it, and the approvers' where it widens.

    With `root`, the public key that signed it becomes the root; the one in office signs that too.
    """

    toml: str
    signature: SignatureBody
    root: str | None = None
    signatures: list[SignatureBody] = Field(default=[], max_length=64)


class RevokeBody(Body):
    """Why a key is taken out of service, and who says so."""

    reason: str = Field(min_length=1, max_length=1000)
    signatures: list[SignatureBody] = Field(max_length=64)


def router(runtime: Runtime) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter(tags=["governance"])
    _add_trust(routes, runtime)
    _add_watching(routes, runtime)
    return routes


def _add_trust(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get("/keys")
    async def keys() -> dict[str, Any]:
        return {"keys": await asyncio.to_thread(_keys, runtime)}

    @routes.post("/keys", status_code=201)
    async def enrol(body: KeyBody) -> dict[str, Any]:
        public = PublicKey(raw=body.public)
        row = await asyncio.to_thread(enrol_key, runtime.proposals, body.name, public)
        return dict(row.__dict__)

    @routes.post("/keys/{key_id}/revoke")
    async def revoke(key_id: str, body: RevokeBody) -> dict[str, Any]:
        signatures = [signature_from_json(s.model_dump()) for s in body.signatures]
        return await asyncio.to_thread(
            revoke_key,
            runtime.proposals,
            key_id,
            body.reason,
            signatures,
            published=runtime.published,
            deciding=runtime.deciding,
        )

    @routes.get("/policy")
    async def policy(caller: Asking) -> dict[str, Any]:
        return await asyncio.to_thread(_policy, runtime, caller)

    @routes.post("/policy")
    async def change(body: PolicyBody) -> dict[str, Any]:
        signed = SignedPolicy(
            toml=body.toml.encode(), signature=signature_from_json(body.signature.model_dump())
        )
        signatures = [signature_from_json(s.model_dump()) for s in body.signatures]
        new_root = PublicKey(raw=body.root) if body.root is not None else None
        asked = Change(signed=signed, signatures=signatures, new_root=new_root)
        return await asyncio.to_thread(runtime.change_policy, asked)

    @routes.get("/audit")
    async def audit(
        caller: Asking,
        since: Annotated[int, Query(ge=0, le=_MAX_SEQ)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_ENTRIES)] = MAX_ENTRIES,
        lane: Lane = "lifecycle",
    ) -> dict[str, Any]:
        need_all(caller)
        entries = _requests if lane == REQUESTS else _entries
        return {"entries": await asyncio.to_thread(entries, runtime, since, limit)}

    @routes.get("/audit/checkpoint")
    async def checkpoint(lane: Lane = "lifecycle") -> dict[str, Any]:
        return await asyncio.to_thread(runtime.checkpoint, lane)

    @routes.get("/audit/successions")
    async def changes() -> dict[str, Any]:
        return {"successions": await asyncio.to_thread(_successions, runtime)}

    @routes.get("/audit/proof")
    async def proof(asked: Annotated[ProofQuery, Query()]) -> dict[str, Any]:
        return await asyncio.to_thread(_proof, runtime, asked)


def _add_watching(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get("/traces/{request_id}")
    async def trace(request_id: str, caller: Asking) -> dict[str, Any]:
        return await asyncio.to_thread(_trace, runtime, request_id, caller)

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @routes.get("/readyz")
    async def readyz(response: Response) -> dict[str, Any]:
        killed, why = runtime.kill.killed is not None, runtime.deciding.why_not_current()
        response.status_code = 503 if killed or why else 200
        status = "killed" if killed else "not current" if why else "ready"
        told: dict[str, Any] = {"status": status, "why": why or None}
        # What is served and what waits are not for everybody who finds the port.
        if not runtime.tokens.demanded:
            told |= {
                "revision": runtime.revision,
                "base": runtime.base.digest,
                "policy": runtime.policy.digest if runtime.policy else None,
                "jobs": [] if why else list(runtime.jobs.pending),
            }
        return told

    @routes.get("/metrics")
    async def metrics() -> PlainTextResponse:
        text = await asyncio.to_thread(runtime.metrics.exposition)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def seen_trace(runtime: Runtime, request_id: str, caller: Caller) -> TraceRow:
    """Returns a trace that its caller may see.

    Raises:
        TraceNotFound: no answer had this id, or another tenant's.
    """
    row = runtime.traces.get(request_id)
    if not caller.sees(row.tenant):
        raise TraceNotFound(
            f"no answered request has the id {request_id!r:.100}",
            mend="use the x-cambium-request-id of an answer",
        )
    return row


def _trace(runtime: Runtime, request_id: str, caller: Caller) -> dict[str, Any]:
    row = seen_trace(runtime, request_id, caller)
    with runtime.state.read() as tx:
        leaves = tx.request_leaves([request_id]).get(request_id)
    return {"at": row.at, **row.record, "leaves": leaves or []}


def _keys(runtime: Runtime) -> list[dict[str, Any]]:
    with runtime.state.read() as tx:
        return [dict(row.__dict__) for row in tx.list_keys()]


def _policy(runtime: Runtime, caller: Caller) -> dict[str, Any]:
    with runtime.state.read() as tx:
        version, row = tx.state_version(), tx.active_policy()
    if runtime.policy is None or row is None:
        return {
            "signed": False,
            "why": "this state has no signed policy; run `cambium init`",
            "state_version": version,
            "learning": dict(runtime.adapters.bounds.__dict__),
        }
    if not caller.sees_all:
        mine = {
            d: owner for d, owner in runtime.policy.domains.owners.items() if owner == caller.tenant
        }
        allowed = [
            d for d in runtime.policy.domains.allowed if runtime.policy.may_use(d, caller.tenant)
        ]
        return {
            "signed": True,
            "digest": runtime.policy.digest,
            "policy_digest": runtime.policy.digest,
            "state_version": version,
            "attestation": runtime.identity.attestation_label,
            "learning": runtime.policy.content["learning"],
            "gates": runtime.policy.content["gates"],
            "domains": {"allowed": allowed, "owners": mine},
        }
    return {
        "signed": True,
        "digest": runtime.policy.digest,
        "attestation": runtime.identity.attestation_label,
        "state_version": version,
        "policy_digest": runtime.policy.digest,
        "toml": row.toml,
        **runtime.policy.content,
        "left_to_the_server": runtime.rules.left_to_the_server,
    }


def _proof(runtime: Runtime, asked: ProofQuery) -> dict[str, Any]:
    with runtime.state.read() as tx:
        tree = tx.request_tree if asked.lane == REQUESTS else tx.audit_tree
        whole = tree.size()
        if asked.seq is not None and asked.first is None and asked.second is None:
            return prove_entry(tree, asked.seq, asked.size or whole)
        if asked.first is not None and asked.seq is None and asked.size is None:
            second = whole if asked.second is None else asked.second
            return prove_growth(tree, asked.first, second)
    raise DataError(
        "ask for one proof: an entry's or the log's growth",
        mend="send seq and size, or first and second",
    )


def _successions(runtime: Runtime) -> list[dict[str, Any]]:
    """Returns how each former key of the server made way for the next."""
    with runtime.state.read() as tx:
        return successions(tx)


def _requests(runtime: Runtime, since: int, limit: int) -> list[dict[str, Any]]:
    with runtime.state.read() as tx:
        return page_of(tx, since=since, limit=limit)


def _entries(runtime: Runtime, since: int, limit: int) -> list[dict[str, Any]]:
    with runtime.state.read() as tx:
        return [dict(entry.__dict__) for entry in tx.audit_entries(since=since, limit=limit)]
