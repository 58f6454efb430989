"""What stands between a proposal and its merge, in words a person can act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cambium.core.nouns import Action, ProposalState, Revision, Signature, tenant_of
from cambium.lifecycle.proposal import FINAL, Proposal, standings
from cambium.trust.acts import Expectation
from cambium.trust.attestation import AttestationResult
from cambium.trust.policy import Policy
from cambium.trust.quorum import Approver, QuorumResult, count_quorum


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What holds at the moment of deciding; `now` is in seconds since 1970, UTC.

    Args:
        attestation: None when nothing was attested, which blocks.
        revoked_keys: ids of keys that no longer count, whatever the policy lists.
        quarantined: digests of adapters that no revision may serve again.
    """

    head: Revision
    policy: Policy
    state_version: int
    attestation: AttestationResult | None
    now: int
    revoked_keys: frozenset[str] = frozenset()
    quarantined: frozenset[str] = frozenset()
    killed: bool = False

    def count(
        self,
        signatures: Sequence[Signature],
        *,
        action: Action,
        target: str,
        k: int | None = None,
        people: Sequence[Approver] | None = None,
    ) -> QuorumResult:
        """Returns who of `people` (the approvers) signed this act as things stand, each verified.

        Raises:
            PolicyInvalid: a quorum of `k` (the policy's) of them cannot be.
        """
        expectation = Expectation(action=action, target=target, policy=self.policy.digest,
                                  state_version=self.state_version)  # fmt: skip
        return count_quorum(
            [s for s in signatures if s.key_id not in self.revoked_keys],
            approvers=self.policy.approvers if people is None else people,
            expectation=expectation,
            k=k or self.policy.k,
            now=self.now,
        )


def blockers(proposal: Proposal, situation: Situation) -> tuple[str, ...]:
    """Returns every reason why the proposal cannot be merged; none means it can.

    Each begins with what kind it is: `state`, `policy`, `parent`, `domain`, `gate NAME`,
    `quarantine`, `attestation` or `quorum`. Every signature is verified again.
    """
    policy = situation.policy
    if proposal.state in FINAL:
        return (f"state: {proposal.state}" + (f", {proposal.reason}" if proposal.reason else ""),)
    found: list[str] = []
    if proposal.policy_digest != policy.digest:
        found.append("policy: it was proposed under another policy than the one in force")
    if (proposal.parent_revision, proposal.parent_digest) != (
        situation.head.number,
        situation.head.digest,
    ):
        found.append(
            f"parent: made from revision {proposal.parent_revision}, "
            f"revision {situation.head.number} is served"
        )
    if not policy.allows_domain(proposal.domain, tenant=tenant_of(proposal.adapter_name)):
        found.append(f"domain: the policy does not list {proposal.domain!r}")
    if proposal.candidate_digest in situation.quarantined:
        found.append("quarantine: the candidate was served before, and taken out of service")
    for gate in standings(proposal, policy):
        if not gate.done:
            found.append(f"gate {gate.gate}: {gate.why}")
    for name in sorted(proposal.waived(policy.k)):
        waiver = waiver_quorum(proposal, name, situation)
        if not waiver.met:
            found.append(f"gate {name}: {len(waiver.signatures)} of {waiver.k} waivers still hold")
    if refusal := find_attestation_refusal(situation):
        found.append(f"attestation: {refusal}")
    quorum = merge_quorum(proposal, situation)
    if not quorum.met:
        refused = "".join(f"; {key_id}: {why}" for key_id, why in quorum.refused)
        found.append(f"quorum: {len(quorum.signatures)} of {quorum.k} approvals{refused}")
    if not found and proposal.state != ProposalState.MERGEABLE:
        found.append(f"state: {proposal.state}")
    return tuple(found)


def merge_quorum(proposal: Proposal, situation: Situation) -> QuorumResult:
    """Returns who approved the proposal as it stands now, each signature verified again."""
    digest = proposal.proposal_digest
    approvals = proposal.approvals if digest else ()
    return situation.count(approvals, action=Action.APPROVE, target=digest or "")


def waiver_quorum(proposal: Proposal, gate: str, situation: Situation) -> QuorumResult:
    """Returns who waived a gate of the proposal as it stands now, each signature verified again."""
    signatures = tuple(w.signature for w in proposal.waivers if w.gate == gate)
    target = proposal.waiver_target(gate)
    return situation.count(signatures, action=Action.WAIVE_GATE, target=target)


def find_attestation_refusal(situation: Situation) -> str:
    """Returns why the attestation does not do under the policy in force, or nothing."""
    result, policy = situation.attestation, situation.policy
    if situation.killed:
        return "the kill switch was pulled"
    if result is None:
        return "nothing was attested"
    if result.label not in policy.attestation:
        return f"{result.label!r} is not accepted by the policy"
    if policy.profile == "production" and (result.debug or not result.hardware_rooted):
        return f"{result.label!r} is not rooted in hardware, which production demands"
    if not result.issued_at <= situation.now < result.expires_at:
        return "the result is not fresh"
    return ""
