"""The only place that makes an order to publish; whoever serves takes nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import final

from cambium.core.canonical import is_digest
from cambium.core.errors import (
    AttestationRefused,
    DigestMismatch,
    IllegalTransition,
    NotMergeable,
    TrustError,
)
from cambium.core.nouns import Action, AdapterRef, BankEntry, Revision, Signature
from cambium.lifecycle.blockers import (
    Situation,
    blockers,
    find_attestation_refusal,
    merge_quorum,
)
from cambium.lifecycle.evidence import check_evidence
from cambium.lifecycle.proposal import Proposal
from cambium.trust.acts import Expectation
from cambium.trust.attestation import AttestationResult
from cambium.trust.keys import PublicKey
from cambium.trust.policy import Policy
from cambium.trust.quorum import need_quorum

NOT_ATTESTED = "none"
FIRST_REVISION = 1
_MINT = object()


@final
@dataclass(frozen=True, kw_only=True)
class PublishOrder:
    """Permission to serve `revision`; only the functions of this module construct one.

    The token keeps an order from being made, or copied with changes, by mistake or by a shortcut
    in a review; it is no barrier against code that runs in the process and means harm.
    """

    revision: Revision
    reason: str
    signatures: tuple[Signature, ...]
    attestation: AttestationResult | None
    mint: InitVar[object]

    def __post_init__(self, mint: object) -> None:
        if mint is not _MINT:
            raise TrustError("only cambium.lifecycle.publish makes a publish order",
                             mend="ask for authorisation")  # fmt: skip


def authorise_genesis(*, base_digest: str, policy: Policy | None, now: int) -> PublishOrder:
    """Returns the order for the first revision: the bare base and an empty bank.

    It needs no signature, since it changes nothing. `now` is in seconds since 1970, UTC.

    Raises:
        DigestMismatch: `base_digest` is no digest.
    """
    if not is_digest(base_digest):
        raise DigestMismatch("the base has no digest", mend="hash the base's files")
    revision = Revision(
        number=FIRST_REVISION,
        kind="genesis",
        base_digest=base_digest,
        bank=(),
        policy_digest=policy.digest if policy else "",
        created_at=now,
        attestation=NOT_ATTESTED,
    )
    return PublishOrder(
        revision=revision, reason="genesis", signatures=(), attestation=None, mint=_MINT
    )


def authorise_merge(
    proposal: Proposal,
    *,
    situation: Situation,
    evidence: Sequence[dict[str, object]],
    server_public: PublicKey,
    router_digest: str,
) -> PublishOrder:
    """Returns the order to serve the candidate in its domain, after checking everything again.

    Args:
        evidence: every envelope of every look, in order.
        server_public: the key that signed the evidence.
        router_digest: of the router's data for the domain, which the revision names.

    Raises:
        NotMergeable: `detail["blockers"]` lists every reason.
    """
    found = list(blockers(proposal, situation))
    try:
        check_evidence(
            proposal, envelopes=evidence, policy=situation.policy, server_public=server_public
        )
    except TrustError as error:
        found.append(f"evidence: {error.message}")
    if not is_digest(router_digest):
        found.append("router: it has no digest")
    attestation, candidate = situation.attestation, proposal.candidate_digest
    if found or attestation is None or candidate is None:
        raise NotMergeable(f"proposal {proposal.id} cannot be merged: {'; '.join(found)}",
                           mend="clear what blocks it", detail={"blockers": found})  # fmt: skip
    entry = BankEntry(
        domain=proposal.domain,
        adapter=AdapterRef(name=proposal.adapter_name, digest=candidate),
        router_digest=router_digest,
    )
    others = [e for e in situation.head.bank if e.domain != proposal.domain]
    revision = _next_revision(
        situation,
        attestation,
        kind="merge",
        bank=tuple(sorted([*others, entry], key=lambda e: e.domain)),
        proposal_digest=proposal.proposal_digest,
    )
    return PublishOrder(
        revision=revision,
        reason=f"merge of proposal {proposal.id}",
        signatures=merge_quorum(proposal, situation).signatures,
        attestation=attestation,
        mint=_MINT,
    )


def authorise_rollback(
    to: Revision, *, situation: Situation, signatures: Sequence[Signature]
) -> PublishOrder:
    """Returns the order to serve the bank of `to` again, as a new and higher revision.

    The signatures' target is `to.digest`. The caller has verified that the server signed `to`.

    Raises:
        IllegalTransition: `to` is the head itself, or above it.
        DigestMismatch: `to` is of another base.
        AttestationRefused: the attestation does not do under the policy.
        ThresholdNotMet: fewer than `rollback_k` distinct valid signatures; `detail["refused"]`.
        PolicyInvalid: the policy's quorum cannot be.
    """
    head, policy = situation.head, situation.policy
    if to.number >= head.number:
        raise IllegalTransition(f"revision {to.number} is no earlier revision than {head.number}",
                                mend="name an earlier revision")  # fmt: skip
    if to.base_digest != head.base_digest:
        raise DigestMismatch("that revision is of another base", mend="serve that base")
    attestation, refusal = situation.attestation, find_attestation_refusal(situation)
    if attestation is None or refusal:
        raise AttestationRefused(f"no rollback: {refusal}", mend="attest again")
    counted = need_quorum(
        [s for s in signatures if s.key_id not in situation.revoked_keys],
        approvers=policy.approvers,
        expectation=Expectation(action=Action.ROLLBACK, target=to.digest,
                                state_version=situation.state_version, policy=policy.digest),
        k=policy.rollback_k,
        now=situation.now,
    )  # fmt: skip
    revision = _next_revision(situation, attestation, kind="rollback", bank=to.bank, of=to.number)
    return PublishOrder(
        revision=revision,
        reason=f"rollback to revision {to.number}",
        signatures=counted,
        attestation=attestation,
        mint=_MINT,
    )


def _next_revision(
    situation: Situation,
    attestation: AttestationResult,
    *,
    kind: str,
    bank: tuple[BankEntry, ...],
    of: int | None = None,
    proposal_digest: str | None = None,
) -> Revision:
    head = situation.head
    return Revision(
        number=head.number + 1,
        kind=kind,
        base_digest=head.base_digest,
        bank=bank,
        policy_digest=situation.policy.digest,
        created_at=situation.now,
        attestation=attestation.label,
        parent=head.digest,
        of=of,
        proposal_digest=proposal_digest,
    )
