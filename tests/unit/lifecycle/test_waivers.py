"""A waiver lets one gate not count: signed by k, over these bytes, where the policy allows it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.looked import blockers

from cambium.core.canonical import digest_bytes
from cambium.core.errors import (
    CambiumError,
    DigestMismatch,
    DuplicateSigner,
    IllegalTransition,
    KeyUnknown,
)
from cambium.core.evidence import Outcome, Verdict
from cambium.core.nouns import Action, ProposalState
from cambium.lifecycle.proposal import ParentMoved, Proposal, Waived, advance, standings
from cambium.trust.keys import generate_key

if TYPE_CHECKING:
    from .conftest import World

S = ProposalState
ERROR = Verdict(gate="retention", outcome=Outcome.ERROR, why="the pool is dry")


def _doubtful(world: World) -> Proposal:
    """Every gate has passed twice, but retention could never be measured."""
    proposal = world.checking()
    for _ in range(2):
        proposal = advance(proposal, world.look(proposal, retention=ERROR), policy=world.policy)
    assert proposal.state is S.CHECKING
    return proposal


def _waived(world: World, proposal: Proposal, *people: int, gate: str = "retention") -> Proposal:
    for person in people:
        proposal = advance(proposal, world.waiver(proposal, gate, person), policy=world.policy)
    return proposal


def test_k_waivers_let_the_gate_not_count_and_fewer_do_not(world: World) -> None:
    one = _waived(world, _doubtful(world), 0)
    assert (one.state, one.waived(world.policy.approvers.k)) == (S.CHECKING, frozenset())
    assert any(b.startswith("gate retention") for b in blockers(one, world.situation))
    two = _waived(world, one, 1)
    assert (two.state, two.waived(world.policy.approvers.k)) == (S.AWAITING_APPROVAL, {"retention"})
    gate = next(g for g in standings(two, world.policy) if g.gate == "retention")
    assert (gate.done, gate.outcome, gate.why) == (True, Outcome.ERROR, "waived")
    approved = world.approve(two, 0, 1)
    assert approved.state is S.MERGEABLE
    assert blockers(approved, world.situation) == ()


def test_a_waived_gate_no_longer_refuses(world: World) -> None:
    harm = world.failing("retention", (-9.0, -8.0))
    assert harm.decisive
    for people, state in (((0, 1), S.CHECKING), ((0,), S.REJECTED)):
        proposal = _waived(world, world.checking(), *people)
        looked = advance(proposal, world.look(proposal, retention=harm), policy=world.policy)
        assert looked.state is state


def test_a_waiver_voids_approvals_and_moves_the_digest(world: World) -> None:
    before = world.mergeable()
    after = _waived(world, before, 2)
    assert (after.state, after.approvals) == (S.AWAITING_APPROVAL, ())
    assert after.proposal_digest != before.proposal_digest


def test_no_gate_is_waived_that_the_policy_does_not_let_go(world: World) -> None:
    proposal = world.checking()
    for gate in (
        "alignment",
        "alignment_drift",
        "alignment_writing",
        "power_seeking",
        "integrity",
        "no such gate",
    ):
        with pytest.raises(IllegalTransition, match="lets nobody waive"):
            _waived(world, proposal, 0, gate=gate)


def test_one_person_counts_once_and_strangers_never(world: World) -> None:
    proposal = _waived(world, world.checking(), 0)
    with pytest.raises(DuplicateSigner):
        _waived(world, proposal, 0)
    stranger = replace(world, keys=[generate_key()])
    with pytest.raises(KeyUnknown):
        _waived(stranger, world.checking(), 0)


@pytest.mark.parametrize("what", ["action", "gate", "candidate", "parent", "proposal"])
def test_a_signature_for_anything_else_waives_nothing(world: World, what: str) -> None:
    proposal = world.checking()
    changed: dict[str, dict[str, Any]] = {
        "candidate": {"candidate_digest": digest_bytes(b"other")},
        "parent": {"parent_digest": digest_bytes(b"other")},
        "proposal": {"id": "p2"},
    }
    other = replace(proposal, **changed.get(what, {}))
    target = other.waiver_target("domain_gain" if what == "gate" else "retention")
    action = Action.APPROVE if what == "action" else Action.WAIVE_GATE
    event = Waived(gate="retention", signature=world.sign(0, target, action))
    with pytest.raises(DigestMismatch):
        advance(proposal, event, policy=world.policy)


def test_a_moved_parent_takes_waivers_along(world: World) -> None:
    moved = ParentMoved(revision=2, digest=digest_bytes(b"2"), domain_changed=False)
    after = advance(_waived(world, _doubtful(world), 0, 1), moved, policy=world.policy)
    assert (after.waivers, after.state, after.restarts) == ((), S.CHECKING, 1)


def test_a_waiver_is_verified_again_at_the_merge(world: World) -> None:
    approved = world.approve(_waived(world, _doubtful(world), 0, 1), 0, 1)
    forged = replace(approved.waivers[0].signature, signature="00" * 64)
    broken = replace(approved, waivers=(replace(approved.waivers[0], signature=forged),
                                        approved.waivers[1]))  # fmt: skip
    assert "gate retention: 1 of 2 waivers still hold" in blockers(broken, world.situation)
    gone = replace(world.situation, revoked_keys=frozenset({world.keys[1].key_id}))
    assert "gate retention: 1 of 2 waivers still hold" in blockers(approved, gone)


def test_what_is_final_or_not_frozen_takes_no_waiver(world: World) -> None:
    with pytest.raises(IllegalTransition):
        _waived(world, world.propose(), 0)
    merged = replace(world.mergeable(), state=S.MERGED)
    with pytest.raises(CambiumError):
        _waived(world, merged, 0)


def test_renewing_stale_waivers_never_rejects(world: World) -> None:
    """After another act both must sign again; between the two, nothing is decided."""
    proposal = _waived(world, world.checking(), 0, 1)
    for _ in range(2):
        harm = world.failing("retention", (-9.0, -8.0))
        event = world.look(proposal, retention=harm)
        proposal = advance(proposal, event, policy=world.policy)
    assert proposal.state is S.AWAITING_APPROVAL
    later = replace(world, state_version=world.state_version + 1)
    once = _waived(later, proposal, 0)
    assert once.state is S.AWAITING_APPROVAL
    both = later.approve(once, 0, 1)
    assert "gate retention: 1 of 2 waivers still hold" in blockers(both, later.situation)
    twice = later.approve(_waived(later, once, 1), 0, 1)
    assert blockers(twice, later.situation) == ()


def test_waivers_alone_are_no_evidence(world: World) -> None:
    """A policy may let every gate go; without a look there is still nothing to approve."""
    gates = tuple(replace(spec, waivable=True) for spec in world.policy.gates)
    lax = replace(world, policy=replace(world.policy, gates=gates))
    proposal = lax.checking()
    for gate in gates:
        proposal = _waived(lax, proposal, 0, 1, gate=gate.name)
    assert proposal.state is S.CHECKING
