"""What stands between a proposal and its merge, in words a person can act on."""

from __future__ import annotations

from cambium.core.nouns import Action, ProposalState, tenant_of
from cambium.lifecycle.proposal import FINAL, Proposal, standings
from cambium.lifecycle.situation import Situation
from cambium.trust.quorum import QuorumResult


def blockers(proposal: Proposal, situation: Situation) -> tuple[str, ...]:
    """Returns every reason why the proposal cannot be merged, but for what its evidence says.

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
    for name in sorted(proposal.waived(policy.approvers.k)):
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
    if result.label not in policy.attestation.accept:
        return f"{result.label!r} is not accepted by the policy"
    if policy.profile == "production" and (result.debug or not result.hardware_rooted):
        return f"{result.label!r} is not rooted in hardware, which production demands"
    if not result.issued_at <= situation.now < result.expires_at:
        return "the result is not fresh"
    if not result.signatures:
        return "no attester's key is here to sign the result"
    return situation.lacks(result.envelope(), policy.attesters, "attesters")[0]
