"""Routes of proposals, merging, revisions and rollback."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from fastapi import Path as PathField
from fastapi.responses import PlainTextResponse
from pydantic import Field

from cambium.core.errors import CambiumError, DataError
from cambium.core.nouns import Action, tenant_of
from cambium.serve.access import Asking, Caller, need_all
from cambium.serve.api.bodies import Body
from cambium.serve.diff import diff_of
from cambium.serve.errors import ProposalNotFound
from cambium.serve.evaluating import add_evaluation, evidence_of
from cambium.serve.export import export_revision, zipped
from cambium.serve.model_card import model_card
from cambium.serve.proposal_records import Filed
from cambium.serve.proposals import Proposals
from cambium.serve.runtime import Runtime
from cambium.serve.signed_records import signature_from_json

_MAX_NUMBER = 2**63 - 1  # what the database's integers hold


class SignatureBody(Body):
    """A signature in the contract's shape."""

    key_id: str
    signature: str
    payload: dict[str, Any]


class ProposeBody(Body):
    """Which adapter is to be consolidated into which domain, and what the candidate shall be."""

    adapter_id: str
    domain: str
    kind: Literal["lora", "soft_prompt"] | None = None
    eval_snapshot_ids: list[str] | None = None


class ProposalBody(Body):
    """A proposal by id."""

    proposal_id: str


class LookBody(ProposalBody):
    """One more look; what is not measured by the server cannot be sent in."""

    evals: list[str] | None = None
    interp_report: dict[str, Any] | None = None


class EvaluationBody(Body):
    """An evaluator's signatures over all evidence of a proposal, by each envelope's digest."""

    key_id: str
    signatures: dict[str, str] = Field(min_length=1, max_length=1000)


class RejectBody(Body):
    """Why a proposal is rejected."""

    reason: str = Field(min_length=1, max_length=4000)


class ApprovalBody(SignatureBody):
    """An approver's signature over a proposal's digest; a comment is logged, and not signed."""

    comment: str = Field(default="", max_length=4000)


class WaiverBody(SignatureBody):
    """An approver's signature over a gate's `waiver_target`, and why; the reason is logged."""

    reason: str = Field(default="", max_length=4000)


class RollbackBody(Body):
    """Which revision's bank is to be served again, and who says so."""

    to: int
    signatures: list[SignatureBody] = Field(max_length=64)


class QuarantineBody(Body):
    """Why what a revision brought may never answer again, and who says so."""

    reason: str = Field(min_length=1, max_length=1000)
    signatures: list[SignatureBody] = Field(max_length=64)


def router(runtime: Runtime) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter(tags=["review"])
    _add_proposing(routes, runtime)
    _add_reading(routes, runtime)
    _add_evidence(routes, runtime)
    _add_judging(routes, runtime)
    _add_releasing(routes, runtime)
    _add_one_revision(routes, runtime)
    return routes


def _add_proposing(routes: APIRouter, runtime: Runtime) -> None:
    review, proposals = runtime.review, runtime.proposals

    @routes.post("/adapters/propose_consolidation", status_code=202)
    async def propose(body: ProposeBody, caller: Asking) -> dict[str, Any]:
        if body.eval_snapshot_ids:
            raise DataError("eval_snapshot_ids are not offered: gates draw their own fresh items",
                            mend="leave eval_snapshot_ids out")  # fmt: skip
        name = caller.own(body.adapter_id)
        filed = await asyncio.to_thread(review.propose, name, body.domain, body.kind)
        return {"proposal_id": filed.proposal.id, "state": filed.proposal.state}

    @routes.get("/proposals")
    async def list_proposals(caller: Asking) -> dict[str, Any]:
        def views() -> list[dict[str, Any]]:
            return review.views([f for f in proposals.all() if is_shown(f, caller)])

        return {"proposals": await asyncio.to_thread(views)}

    @routes.get("/proposals/{proposal_id}")
    async def get_proposal(proposal_id: str, caller: Asking) -> dict[str, Any]:
        return await asyncio.to_thread(lambda: review.view(shown(proposals, proposal_id, caller)))

    @routes.get("/proposals/{proposal_id}/diff")
    async def get_diff(proposal_id: str, caller: Asking) -> dict[str, Any]:
        return await asyncio.to_thread(
            lambda: diff_of(
                shown(proposals, proposal_id, caller),
                runtime,
                seen=partial(may_see, runtime, caller),
            )
        )


def _add_reading(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get("/proposals/{proposal_id}/card")
    async def card(proposal_id: str, caller: Asking) -> PlainTextResponse:
        def text() -> str:
            filed = shown(runtime.proposals, proposal_id, caller)
            view = runtime.review.view(filed)
            diff = diff_of(filed, runtime, seen=partial(may_see, runtime, caller))
            return model_card(view, diff, base=runtime.base.name)

        return PlainTextResponse(await asyncio.to_thread(text), media_type="text/markdown")


def _add_evidence(routes: APIRouter, runtime: Runtime) -> None:
    proposals = runtime.proposals

    @routes.get("/proposals/{proposal_id}/evidence")
    async def evidence(proposal_id: str, caller: Asking) -> dict[str, Any]:
        await asyncio.to_thread(shown, proposals, proposal_id, caller)
        return await asyncio.to_thread(evidence_of, proposals, proposal_id)

    @routes.post("/proposals/{proposal_id}/evidence")
    async def evaluate(proposal_id: str, body: EvaluationBody, caller: Asking) -> dict[str, Any]:
        await asyncio.to_thread(shown, proposals, proposal_id, caller)
        work = partial(add_evaluation, deciding=runtime.deciding)
        return await asyncio.to_thread(work, proposals, proposal_id, body.key_id, body.signatures)


def _add_judging(routes: APIRouter, runtime: Runtime) -> None:
    review = runtime.review

    @routes.post("/gates/align_review")
    async def look_again(body: LookBody, caller: Asking) -> dict[str, Any]:
        if body.evals or body.interp_report:
            raise DataError(
                "a look measures the policy's gates; evals and reports cannot be sent in",
                mend="send proposal_id alone",
            )
        await asyncio.to_thread(shown, runtime.proposals, body.proposal_id, caller)
        loop = asyncio.get_running_loop()
        work = partial(runtime.at_length, review.look_again, body.proposal_id)
        filed = await loop.run_in_executor(runtime.slow_threads, work)
        view = await asyncio.to_thread(review.view, filed)
        verdicts = {gate["verdict"] for gate in view["gates"]}
        overall = next((v for v in ("error", "fail", "missing") if v in verdicts), "pass")
        return {"proposal_id": body.proposal_id, "verdict": overall, "evidence": view["gates"]}

    @routes.post("/proposals/{proposal_id}/diff", status_code=202)
    async def ask_for_diff(proposal_id: str, caller: Asking) -> dict[str, Any]:
        await asyncio.to_thread(shown, runtime.proposals, proposal_id, caller)
        filed = await asyncio.to_thread(review.ask_for_diff, proposal_id, by=caller.name)
        found = await asyncio.to_thread(review.describer.found, filed)
        return {"proposal_id": proposal_id, "behaviour": found}

    @routes.post("/proposals/{proposal_id}/approvals")
    async def approve(proposal_id: str, body: ApprovalBody, caller: Asking) -> dict[str, Any]:
        fields = body.model_dump()
        comment = fields.pop("comment").strip()
        signature = signature_from_json(fields)
        try:
            filed = await asyncio.to_thread(review.approve, proposal_id, signature, comment=comment)
        except CambiumError:
            # Only a good signature says that another tenant's proposal is there.
            await asyncio.to_thread(shown, runtime.proposals, proposal_id, caller)
            raise
        return await asyncio.to_thread(review.view, filed)

    @routes.post("/proposals/{proposal_id}/waivers")
    async def waive(proposal_id: str, body: WaiverBody, caller: Asking) -> dict[str, Any]:
        fields = body.model_dump()
        reason = fields.pop("reason")
        signature = signature_from_json(fields)
        try:
            filed = await asyncio.to_thread(review.waive, proposal_id, signature, reason=reason)
        except CambiumError:
            await asyncio.to_thread(shown, runtime.proposals, proposal_id, caller)
            raise
        return await asyncio.to_thread(review.view, filed)

    @routes.post("/proposals/{proposal_id}/reject")
    async def reject(proposal_id: str, body: RejectBody, caller: Asking) -> dict[str, Any]:
        await asyncio.to_thread(shown, runtime.proposals, proposal_id, caller)
        filed = await asyncio.to_thread(review.reject, proposal_id, body.reason, by=caller.name)
        return await asyncio.to_thread(review.view, filed)


def _add_releasing(routes: APIRouter, runtime: Runtime) -> None:
    releases = runtime.releases

    @routes.post("/adapters/merge")
    async def merge(body: ProposalBody, caller: Asking) -> dict[str, Any]:
        await asyncio.to_thread(shown, runtime.proposals, body.proposal_id, caller)
        return await asyncio.to_thread(releases.merge, body.proposal_id)

    @routes.get("/revisions")
    async def revisions(caller: Asking) -> dict[str, Any]:
        found = await asyncio.to_thread(releases.list)
        for revision in found:
            revision["bank"] = {
                domain: entry for domain, entry in revision["bank"].items()
                if may_see(runtime, caller, domain)
            }  # fmt: skip
        return {
            "revisions": found,
            "state_version": await asyncio.to_thread(runtime.state_version),
            "policy_digest": runtime.policy.digest if runtime.policy else None,
        }

    @routes.get("/drift")
    async def drift(caller: Asking) -> dict[str, Any]:
        seen = partial(may_see, runtime, caller)
        return await asyncio.to_thread(runtime.drift.report, seen)

    @routes.get("/drift.svg")
    async def drawn(caller: Asking) -> Response:
        seen = partial(may_see, runtime, caller)
        svg = await asyncio.to_thread(runtime.drift.drawn, seen)
        # Domains are names that callers chose; whatever a drawing says, it runs nothing.
        policy = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(svg, media_type="image/svg+xml", headers=policy)

    @routes.post("/signatures")
    async def wait(body: SignatureBody) -> dict[str, Any]:
        signature = signature_from_json(body.model_dump())
        return await asyncio.to_thread(runtime.waiting.add, signature)

    @routes.get("/signatures")
    async def waiting() -> dict[str, Any]:
        listed = await asyncio.to_thread(
            lambda: [a for kind in (Action.ROLLBACK, Action.REVIVE)
                     for a in runtime.waiting.list(kind)]
        )  # fmt: skip
        return {"signatures": listed}

    @routes.post("/revisions/rollback")
    async def rollback(body: RollbackBody) -> dict[str, Any]:
        signatures = [signature_from_json(s.model_dump()) for s in body.signatures]
        return await asyncio.to_thread(releases.rollback, body.to, signatures)


def _add_one_revision(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get("/revisions/{number}/export")
    async def export(
        number: Annotated[int, PathField(ge=0, le=_MAX_NUMBER)], caller: Asking
    ) -> Response:
        content = await asyncio.to_thread(_exported, runtime, number, caller)
        return Response(content, media_type="application/zip")

    @routes.post("/revisions/{number}/quarantine")
    async def quarantine(number: int, body: QuarantineBody) -> dict[str, Any]:
        signatures = [signature_from_json(s.model_dump()) for s in body.signatures]
        return await asyncio.to_thread(runtime.releases.quarantine, number, body.reason, signatures)


def _exported(runtime: Runtime, number: int, caller: Caller) -> bytes:
    with runtime.state.read() as tx:
        manifest: dict[str, Any] = tx.get_revision(number).manifest
    if not all(may_see(runtime, caller, domain) for domain in manifest["bank"]):
        need_all(caller)  # the signature is over all of it, so no part can be left out
    return zipped(export_revision(runtime, number))


def may_see(runtime: Runtime, caller: Caller, domain: str) -> bool:
    """Returns whether a domain's adapters are shown to this caller."""
    policy = runtime.policy
    return caller.sees_all or policy is None or policy.may_use(domain, caller.tenant)


def is_shown(filed: Filed, caller: Caller) -> bool:
    """Returns whether a proposal is shown to this caller."""
    return caller.sees(tenant_of(filed.proposal.adapter_name))


def shown(proposals: Proposals, proposal_id: str, caller: Caller) -> Filed:
    """Returns a proposal that its caller may see; another tenant's is not there."""
    filed = proposals.get(proposal_id)
    if not is_shown(filed, caller):
        # In the words for an id that nobody has.
        raise ProposalNotFound(
            f"no proposal has the id {proposal_id!r:.100}", mend="list the proposals"
        )
    return filed
