"""The only place that makes an order to publish; whoever serves takes nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, replace
from functools import partial
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
from cambium.lifecycle.blockers import blockers, find_attestation_refusal, merge_quorum
from cambium.lifecycle.evidence import check_evidence
from cambium.lifecycle.proposal import Proposal
from cambium.lifecycle.situation import Situation
from cambium.trust.attestation import AttestationResult
from cambium.trust.policy import Policy
from cambium.trust.quorum import met

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
    revision = Revision(number=FIRST_REVISION, kind="genesis", base_digest=base_digest, bank=(),
                        policy_digest=policy.digest if policy else "", created_at=now,
                        attestation=NOT_ATTESTED)  # fmt: skip
    return PublishOrder(
        revision=revision, reason="genesis", signatures=(), attestation=None, mint=_MINT
    )


def authorise_merge(
    proposal: Proposal,
    *,
    situation: Situation,
    evidence: Sequence[dict[str, object]],
    router_digest: str,
) -> PublishOrder:
    """Returns the order to serve the candidate in its domain, after checking everything again.

    Args:
        evidence: every envelope of every look, in order.
        router_digest: of the router's data for the domain, which the revision names.

    Raises:
        NotMergeable: `detail["blockers"]` lists every reason.
    """
    found = list(blockers(proposal, situation))
    try:
        check_evidence(proposal, envelopes=evidence, situation=situation)
    except TrustError as error:
        found.append(f"evidence: {error.message}")
    if not is_digest(router_digest):
        found.append("router: it has no digest")
    candidate = proposal.candidate_digest
    if found or candidate is None:
        raise NotMergeable(f"proposal {proposal.id} cannot be merged: {'; '.join(found)}",
                           mend="clear what blocks it", detail={"blockers": found})  # fmt: skip
    entry = BankEntry(
        domain=proposal.domain,
        adapter=AdapterRef(name=proposal.adapter_name, digest=candidate),
        router_digest=router_digest,
    )
    others = [e for e in situation.head.bank if e.domain != proposal.domain]
    bank = tuple(sorted([*others, entry], key=lambda e: e.domain))
    revision = _next_revision(situation, kind="merge", bank=bank, of=None,
                              proposal_digest=proposal.proposal_digest)  # fmt: skip
    return PublishOrder(
        revision=revision,
        reason=f"merge of proposal {proposal.id}",
        signatures=merge_quorum(proposal, situation).signatures,
        attestation=situation.attestation,
        mint=_MINT,
    )


def authorise_rollback(
    to: Revision, *, situation: Situation, signatures: Sequence[Signature]
) -> PublishOrder:
    """Returns the order to serve the bank of `to` again, as a new and higher revision.

    The signatures' target is `to.digest`. The caller has verified that the server signed `to`.

    Raises:
        IllegalTransition: `to` is the head itself or above it, or holds what is in quarantine.
        DigestMismatch: `to` is of another base.
        AttestationRefused: the attestation does not do under the policy.
        ThresholdNotMet: fewer than `rollback_k` distinct valid signatures, and no emergency key's;
            `detail["refused"]`.
        PolicyInvalid: the policy's quorum cannot be.
    """
    head, policy = situation.head, situation.policy
    if to.number >= head.number:
        raise IllegalTransition(f"revision {to.number} is no earlier revision than {head.number}",
                                mend="name an earlier revision")  # fmt: skip
    if to.base_digest != head.base_digest:
        raise DigestMismatch("that revision is of another base", mend="serve that base")
    if refusal := find_attestation_refusal(situation):
        raise AttestationRefused(f"no rollback: {refusal}", mend="attest again")
    asked = partial(situation.count, signatures, action=Action.ROLLBACK, target=to.digest)
    found, alone = asked(k=policy.rollback.k), False
    if policy.emergency and not found.met:
        one = asked(k=1, people=policy.emergency)
        found, alone = (one, True) if one.met else (found, False)
    counted = met(found, Action.ROLLBACK)
    revision = _next_revision(situation, kind="rollback", bank=to.bank, of=to.number,
                              proposal_digest=None)  # fmt: skip
    return PublishOrder(
        revision=revision,
        reason=f"rollback to revision {to.number}" + ", by an emergency key" * alone,
        signatures=counted,
        attestation=situation.attestation,
        mint=_MINT,
    )


def _next_revision(
    situation: Situation,
    *,
    kind: str,
    bank: tuple[BankEntry, ...],
    of: int | None,
    proposal_digest: str | None,
) -> Revision:
    head, attestation = situation.head, situation.attestation
    if any(entry.adapter.digest in situation.quarantined for entry in bank):
        raise IllegalTransition("it would serve an adapter that is in quarantine",
                                mend="name a revision without it")  # fmt: skip
    return replace(head, number=head.number + 1, kind=kind, bank=bank, parent=head.digest, of=of,
                   policy_digest=situation.policy.digest, created_at=situation.now,
                   attestation=attestation.label if attestation else NOT_ATTESTED,
                   proposal_digest=proposal_digest)  # fmt: skip
