"""A proposal and the one function that moves it: events in, the next proposal out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cambium.core.canonical import digest_json, is_digest
from cambium.core.errors import DigestMismatch, DuplicateSigner, IllegalTransition, KeyUnknown
from cambium.core.evidence import Verdict
from cambium.core.nouns import DOMAIN_TAG, Action, ProposalState, Signature
from cambium.lifecycle.gates import COUNTED, GateStanding, judge, standing, used_items
from cambium.trust.policy import Policy

FINAL = frozenset({ProposalState.MERGED, ProposalState.REJECTED, ProposalState.FAILED})
COMPLETE = frozenset(
    {ProposalState.AWAITING_APPROVAL, ProposalState.MERGEABLE, ProposalState.MERGED}
)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A candidate on its way into one domain of the bank.

    Args:
        source_digest: of the ephemeral adapter when it was proposed.
        parent_revision, parent_digest: the revision that consolidation starts from.
        provenance_digest: of the record of the data that was learned.
        candidate_digest: None until frozen.
        looks: the verdicts of every look, one for each gate of the policy.
        evidence_root: over all envelopes of all looks; see `evidence.evidence_root`.
        reason: why it was rejected or failed.
    """

    id: str
    adapter_name: str
    source_digest: str
    domain: str
    parent_revision: int
    parent_digest: str
    policy_digest: str
    provenance_digest: str
    state: ProposalState = ProposalState.CONSOLIDATING
    candidate_digest: str | None = None
    looks: tuple[tuple[Verdict, ...], ...] = ()
    evidence_root: str | None = None
    approvals: tuple[Signature, ...] = ()
    reason: str | None = None

    @property
    def proposal_digest(self) -> str | None:
        """Returns what approvers sign; None until the evidence is complete."""
        if self.state not in COMPLETE or not self.candidate_digest or not self.evidence_root:
            return None
        return digest_json(
            {
                "candidate": self.candidate_digest,
                "parent_revision": self.parent_revision,
                "domain": self.domain,
                "provenance": self.provenance_digest,
                "policy": self.policy_digest,
                "evidence_root": self.evidence_root,
            }
        )


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Consolidation ended; these bytes are the candidate."""

    candidate_digest: str


@dataclass(frozen=True, kw_only=True)
class LookTaken:
    """Every gate was asked once; the root covers this look's envelopes and all earlier ones."""

    verdicts: tuple[Verdict, ...]
    evidence_root: str


@dataclass(frozen=True, kw_only=True)
class Approved:
    """A signature that the caller has verified (`cambium.trust.acts.check_act`)."""

    signature: Signature


@dataclass(frozen=True, kw_only=True)
class ParentMoved:
    """Another revision is the head now; `domain_changed` if it serves this domain differently."""

    revision: int
    digest: str
    domain_changed: bool


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A reviewer said no."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Broke:
    """The work on it broke; nothing was decided."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The order from `publish.authorise_merge` was carried out."""


Event = Frozen | LookTaken | Approved | ParentMoved | Rejected | Broke | Merged


def advance(proposal: Proposal, event: Event, *, policy: Policy) -> Proposal:
    """Returns the proposal after `event`; the given one never changes.

    consolidating -Frozen-> checking -LookTaken-> checking, awaiting_approval or rejected;
    awaiting_approval -Approved-> mergeable at the policy's k; mergeable -Merged-> merged.
    A further look voids the approvals. `ParentMoved` sends any open proposal back to checking, or
    to consolidating where its own domain changed: a candidate is only ever made from the weights
    that it will replace.

    Raises:
        IllegalTransition: the state does not allow the event, or the event contradicts itself.
        DigestMismatch: the event is about other bytes or another policy.
        KeyUnknown: the approval's key is not in the policy.
        DuplicateSigner: the key approved this already.
    """
    if proposal.state in FINAL:
        raise _illegal(proposal, event, "that state is final")
    match event:
        case Frozen():
            return _freeze(proposal, event)
        case LookTaken():
            return _look(proposal, event, policy)
        case Approved():
            return _approve(proposal, event, policy)
        case ParentMoved():
            return _restart(proposal, event)
        case Rejected(reason=reason):
            return _close(proposal, event, ProposalState.REJECTED, reason)
        case Broke(reason=reason):
            return _close(proposal, event, ProposalState.FAILED, reason)
        case Merged():
            return _merge(proposal, event, policy)


def standings(proposal: Proposal, policy: Policy) -> tuple[GateStanding, ...]:
    """Returns where every gate of the policy stands, in the policy's order."""
    verdicts = [verdict for look in proposal.looks for verdict in look]
    return tuple(standing(spec, verdicts) for spec in policy.gates)


def _freeze(proposal: Proposal, event: Frozen) -> Proposal:
    _require_state(proposal, event, {ProposalState.CONSOLIDATING})
    if not is_digest(event.candidate_digest):
        raise _illegal(proposal, event, "the candidate has no digest")
    return replace(proposal, state=ProposalState.CHECKING, candidate_digest=event.candidate_digest)


def _look(proposal: Proposal, event: LookTaken, policy: Policy) -> Proposal:
    open_states = {
        ProposalState.CHECKING,
        ProposalState.AWAITING_APPROVAL,
        ProposalState.MERGEABLE,
    }
    _require_state(proposal, event, open_states)
    _require_policy(proposal, policy)
    _check_look(proposal, event, policy)
    looked = replace(
        proposal,
        looks=(*proposal.looks, event.verdicts),
        evidence_root=event.evidence_root,
        approvals=(),
    )
    found = standings(looked, policy)
    if refused := [f"gate {gate.gate}: {gate.why}" for gate in found if gate.refused]:
        return replace(looked, state=ProposalState.REJECTED, reason="; ".join(refused))
    if all(gate.done for gate in found):
        return replace(looked, state=ProposalState.AWAITING_APPROVAL)
    # Looks are taken of all gates together, so the first gate to spend its looks ends them all.
    if any(gate.looks >= spec.max_looks for gate, spec in zip(found, policy.gates, strict=True)):
        unfinished = next(gate for gate in found if not gate.done)
        reason = f"gate {unfinished.gate}: no looks are left; {unfinished.why}"
        return replace(looked, state=ProposalState.REJECTED, reason=reason)
    return replace(looked, state=ProposalState.CHECKING)


def _check_look(proposal: Proposal, event: LookTaken, policy: Policy) -> None:
    """Refuses a look that lacks a gate, is about other bytes, or says more than it measured."""
    specs = {spec.name: spec for spec in policy.gates}
    if sorted(verdict.gate for verdict in event.verdicts) != sorted(specs):
        raise _illegal(proposal, event, "a look has exactly one verdict for each gate")
    if not is_digest(event.evidence_root):
        raise _illegal(proposal, event, "the evidence has no root")
    spent = [
        gate.gate
        for gate in standings(proposal, policy)
        if gate.looks >= specs[gate.gate].max_looks
    ]
    if spent:
        raise _illegal(proposal, event, f"no looks are left for {', '.join(spent)}")
    for verdict in event.verdicts:
        if verdict.outcome not in COUNTED:
            continue
        used = used_items(verdict.gate, proposal.looks)
        if verdict != judge(specs[verdict.gate], verdict.measurement, used=used):
            raise _illegal(proposal, event, f"gate {verdict.gate} did not measure what it says")
        subject = verdict.measurement.subject if verdict.measurement else {}
        if subject.get("candidate") != proposal.candidate_digest:
            raise DigestMismatch(f"gate {verdict.gate} measured other bytes than the candidate",
                                 mend="measure the frozen candidate")  # fmt: skip


def _approve(proposal: Proposal, event: Approved, policy: Policy) -> Proposal:
    _require_state(proposal, event, {ProposalState.AWAITING_APPROVAL, ProposalState.MERGEABLE})
    _require_policy(proposal, policy)
    act, key_id = event.signature.act, event.signature.key_id
    if key_id not in {approver.key_id for approver in policy.approvers}:
        raise KeyUnknown(f"{key_id} is not an approver of this policy", mend="ask an approver")
    wanted = (DOMAIN_TAG, Action.APPROVE, proposal.proposal_digest, policy.digest)
    if (act.domain_tag, act.action, act.target, act.policy) != wanted:
        raise DigestMismatch("the approval is for something else than this proposal",
                             mend="sign the proposal's digest as it is now")  # fmt: skip
    # Signatures for an earlier state version are worth nothing any more, so the same people may
    # sign again.
    valid = [a for a in proposal.approvals if a.act.state_version >= act.state_version]
    if any(a.key_id == key_id for a in valid):
        raise DuplicateSigner(f"{key_id} approved this already", mend="ask another approver")
    approvals = (*valid, event.signature)
    met = len(approvals) >= policy.k
    state = ProposalState.MERGEABLE if met else ProposalState.AWAITING_APPROVAL
    return replace(proposal, state=state, approvals=approvals)


def _restart(proposal: Proposal, event: ParentMoved) -> Proposal:
    """Drops what was found against the old parent; everything is looked at again.

    If the new head serves this domain with other weights, the candidate goes too: consolidated
    from weights that it would no longer replace, it could undo what was merged meanwhile.
    """
    if event.revision <= proposal.parent_revision or not is_digest(event.digest):
        raise _illegal(proposal, event, "the head only ever moves to a higher revision")
    candidate = None if event.domain_changed else proposal.candidate_digest
    return replace(
        proposal,
        state=ProposalState.CHECKING if candidate else ProposalState.CONSOLIDATING,
        parent_revision=event.revision,
        parent_digest=event.digest,
        candidate_digest=candidate,
        looks=(),
        evidence_root=None,
        approvals=(),
    )


def _close(proposal: Proposal, event: Event, state: ProposalState, reason: str) -> Proposal:
    if not reason.strip():
        raise _illegal(proposal, event, "a reason is needed")
    return replace(proposal, state=state, reason=reason)


def _merge(proposal: Proposal, event: Merged, policy: Policy) -> Proposal:
    _require_state(proposal, event, {ProposalState.MERGEABLE})
    _require_policy(proposal, policy)
    # The state says so already; a stored state is not taken at its word.
    signers = {approval.key_id for approval in proposal.approvals}
    if len(signers) < policy.k or not all(gate.done for gate in standings(proposal, policy)):
        raise _illegal(proposal, event, "its gates or approvals are incomplete")
    return replace(proposal, state=ProposalState.MERGED)


def _require_state(proposal: Proposal, event: Event, states: set[ProposalState]) -> None:
    if proposal.state not in states:
        raise _illegal(proposal, event, f"it must be {' or '.join(sorted(states))}")


def _require_policy(proposal: Proposal, policy: Policy) -> None:
    if policy.digest != proposal.policy_digest:
        raise DigestMismatch("the policy has changed since this was proposed",
                             mend="propose it again under the policy in force")  # fmt: skip


def _illegal(proposal: Proposal, event: Event, why: str) -> IllegalTransition:
    return IllegalTransition(
        f"proposal {proposal.id} is {proposal.state} and cannot take {type(event).__name__}: {why}",
        mend="look at the proposal as it is now",
    )
