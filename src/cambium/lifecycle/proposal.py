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
FROZEN = frozenset(
    {ProposalState.CHECKING, ProposalState.AWAITING_APPROVAL, ProposalState.MERGEABLE}
)
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
        restarts: how often looks were begun anew: a parent had moved, or evidence was void.
        waivers: signatures that let single gates not count; k of them for a gate do.
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
    restarts: int = 0
    waivers: tuple[Waived, ...] = ()

    def waiver_target(self, gate: str) -> str:
        """Returns what is signed to waive one gate, for these bytes against this parent."""
        return digest_json({"proposal": self.id, "candidate": self.candidate_digest,
                            "parent": self.parent_digest, "gate": gate})  # fmt: skip

    def waived(self, k: int) -> frozenset[str]:
        """Returns the gates that `k` distinct keys have waived."""
        signed = {(waiver.gate, waiver.signature.key_id) for waiver in self.waivers}
        gates = [gate for gate, _ in signed]
        return frozenset(gate for gate in gates if gates.count(gate) >= k)

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
                "waivers": sorted([w.gate, w.signature.key_id] for w in self.waivers),
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
class Waived:
    """One approver's verified signature over `Proposal.waiver_target` of a gate."""

    gate: str
    signature: Signature


@dataclass(frozen=True, kw_only=True)
class ParentMoved:
    """Another revision is the head now; `domain_changed` if it serves this domain differently."""

    revision: int
    digest: str
    domain_changed: bool


@dataclass(frozen=True, kw_only=True)
class EvidenceVoid:
    """What signed the evidence counts no more (`evidence.is_void`); it is all looked at again."""


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


Event = (
    Frozen | LookTaken | Approved | Waived | ParentMoved | EvidenceVoid | Rejected | Broke | Merged
)
# In which states an event may come, where not in every open one, and if only under the policy
# that the proposal was made under.
_TAKEN: dict[type[Event], tuple[frozenset[ProposalState], bool]] = {
    Frozen: (frozenset({ProposalState.CONSOLIDATING}), False),
    LookTaken: (FROZEN, True),
    Approved: (frozenset({ProposalState.AWAITING_APPROVAL, ProposalState.MERGEABLE}), True),
    Waived: (FROZEN, True),
    EvidenceVoid: (FROZEN, False),
    Merged: (frozenset({ProposalState.MERGEABLE}), True),
}


def advance(proposal: Proposal, event: Event, *, policy: Policy) -> Proposal:
    """Returns the proposal after `event`; the given one never changes.

    consolidating -Frozen-> checking -LookTaken-> checking, awaiting_approval or rejected;
    awaiting_approval -Approved-> mergeable at the policy's k; mergeable -Merged-> merged.
    A further look or waiver voids the approvals. `ParentMoved` sends any open proposal back to
    checking, or to consolidating where its own domain changed: a candidate is only ever made from
    the weights that it will replace. `EvidenceVoid` has the same bytes looked at from the start.

    Raises:
        IllegalTransition: the state does not allow the event, or the event contradicts itself.
        DigestMismatch: the event is about other bytes or another policy.
        KeyUnknown: the approval's key is not in the policy.
        DuplicateSigner: the key approved this already.
    """
    if proposal.state in FINAL:
        raise _illegal(proposal, event, "that state is final")
    states, held = _TAKEN.get(type(event), (frozenset[ProposalState](), False))
    if states and proposal.state not in states:
        raise _illegal(proposal, event, f"it must be {' or '.join(sorted(states))}")
    if held and policy.digest != proposal.policy_digest:
        raise DigestMismatch("the policy has changed since this was proposed",
                             mend="propose it again under the policy in force")  # fmt: skip
    match event:
        case Frozen():
            return _freeze(proposal, event)
        case LookTaken():
            return _look(proposal, event, policy)
        case Approved():
            return _approve(proposal, event, policy)
        case Waived():
            return _waive(proposal, event, policy)
        case ParentMoved():
            return _restart(proposal, event)
        case EvidenceVoid():
            return _look_anew(proposal)
        case Rejected(reason=reason):
            return _close(proposal, event, ProposalState.REJECTED, reason)
        case Broke(reason=reason):
            return _close(proposal, event, ProposalState.FAILED, reason)
        case Merged():
            return _merge(proposal, event, policy)


def standings(proposal: Proposal, policy: Policy) -> tuple[GateStanding, ...]:
    """Returns where every gate of the policy stands, in the policy's order."""
    verdicts = [verdict for look in proposal.looks for verdict in look]
    waived = proposal.waived(policy.approvers.k)
    return tuple(standing(s, verdicts, waived=s.name in waived) for s in policy.gates)


def _freeze(proposal: Proposal, event: Frozen) -> Proposal:
    if not is_digest(event.candidate_digest):
        raise _illegal(proposal, event, "the candidate has no digest")
    return replace(proposal, state=ProposalState.CHECKING, candidate_digest=event.candidate_digest)


def _look(proposal: Proposal, event: LookTaken, policy: Policy) -> Proposal:
    _check_look(proposal, event, policy)
    looked = replace(
        proposal,
        looks=(*proposal.looks, event.verdicts),
        evidence_root=event.evidence_root,
        approvals=(),
    )
    return _settle(looked, policy)


def _settle(looked: Proposal, policy: Policy) -> Proposal:
    """Returns the proposal in the state that its looks and waivers put it in."""
    found = standings(looked, policy)
    if refused := [f"gate {gate.gate}: {gate.why}" for gate in found if gate.refused]:
        return replace(looked, state=ProposalState.REJECTED, reason="; ".join(refused))
    if looked.looks and all(gate.done for gate in found):
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
    target = proposal.proposal_digest or ""
    key_id = _check_signer(event.signature, Action.APPROVE, target, policy)
    act = event.signature.act
    # Signatures for an earlier state version are worth nothing any more, so the same people may
    # sign again.
    valid = [a for a in proposal.approvals if a.act.state_version >= act.state_version]
    if any(a.key_id == key_id for a in valid):
        raise DuplicateSigner(f"{key_id} approved this already", mend="ask another approver")
    approvals = (*valid, event.signature)
    met = len(approvals) >= policy.approvers.k
    state = ProposalState.MERGEABLE if met else ProposalState.AWAITING_APPROVAL
    return replace(proposal, state=state, approvals=approvals)


def _waive(proposal: Proposal, event: Waived, policy: Policy) -> Proposal:
    if event.gate not in {spec.name for spec in policy.gates if spec.waivable}:
        raise _illegal(proposal, event, f"the policy lets nobody waive {event.gate[:80]!r}")
    target = proposal.waiver_target(event.gate)
    key_id = _check_signer(event.signature, Action.WAIVE_GATE, target, policy)
    if event in proposal.waivers:
        raise DuplicateSigner(f"{key_id} waived this already", mend="ask another approver")
    # A stale one stays until its signer renews it: it blocks the merge, and decides nothing else.
    others = [w for w in proposal.waivers if (w.gate, w.signature.key_id) != (event.gate, key_id)]
    return _settle(replace(proposal, waivers=(*others, event), approvals=()), policy)


def _check_signer(signature: Signature, action: Action, target: str, policy: Policy) -> str:
    """Returns the signer's key id, where it is an approver's and over exactly this."""
    act, key_id = signature.act, signature.key_id
    if key_id not in {approver.key_id for approver in policy.approvers.list}:
        raise KeyUnknown(f"{key_id} is not an approver of this policy", mend="ask an approver")
    if (act.domain_tag, act.action, act.target, act.policy) != (
        DOMAIN_TAG, action, target, policy.digest,
    ):  # fmt: skip
        raise DigestMismatch("the signature is for something else than this proposal",
                             mend="sign the proposal's digest as it is now")  # fmt: skip
    return key_id


def _restart(proposal: Proposal, event: ParentMoved) -> Proposal:
    """Drops what was found against the old parent; everything is looked at again.

    If the new head serves this domain with other weights, the candidate goes too: consolidated
    from weights that it would no longer replace, it could undo what was merged meanwhile.
    """
    if event.revision <= proposal.parent_revision or not is_digest(event.digest):
        raise _illegal(proposal, event, "the head only ever moves to a higher revision")
    candidate = None if event.domain_changed else proposal.candidate_digest
    return replace(
        _look_anew(proposal),
        state=ProposalState.CHECKING if candidate else ProposalState.CONSOLIDATING,
        parent_revision=event.revision,
        parent_digest=event.digest,
        candidate_digest=candidate,
    )


def _look_anew(proposal: Proposal) -> Proposal:
    """Drops all looks and what rests on them; the ledger is charged for the next series."""
    restarts = proposal.restarts + bool(proposal.looks)
    return replace(proposal, state=ProposalState.CHECKING, looks=(), evidence_root=None,
                   approvals=(), waivers=(), restarts=restarts)  # fmt: skip


def _close(proposal: Proposal, event: Event, state: ProposalState, reason: str) -> Proposal:
    if not reason.strip():
        raise _illegal(proposal, event, "a reason is needed")
    return replace(proposal, state=state, reason=reason)


def _merge(proposal: Proposal, event: Merged, policy: Policy) -> Proposal:
    # The state says so already; a stored state is not taken at its word.
    signers = {approval.key_id for approval in proposal.approvals}
    if len(signers) < policy.approvers.k or not all(
        gate.done for gate in standings(proposal, policy)
    ):
        raise _illegal(proposal, event, "its gates or approvals are incomplete")
    return replace(proposal, state=ProposalState.MERGED)


def _illegal(proposal: Proposal, event: Event, why: str) -> IllegalTransition:
    return IllegalTransition(
        f"proposal {proposal.id} is {proposal.state} and cannot take {type(event).__name__}: {why}",
        mend="look at the proposal as it is now",
    )
