from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policies import make_policy

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
from cambium.lifecycle.gates import standing
from cambium.lifecycle.proposal import (
    COMPLETE,
    FINAL,
    Approved,
    Broke,
    Event,
    Frozen,
    LookTaken,
    Merged,
    ParentMoved,
    Proposal,
    Rejected,
    advance,
)
from cambium.trust.acts import sign_act
from cambium.trust.keys import generate_key

if TYPE_CHECKING:
    from .conftest import World

S = ProposalState


def test_the_straight_way(world: World) -> None:
    proposal = world.checking()
    assert proposal.state == S.CHECKING
    first = advance(proposal, world.look(proposal), policy=world.policy)
    assert (first.state, first.proposal_digest) == (S.CHECKING, None)
    second = advance(first, world.look(first), policy=world.policy)
    assert second.state == S.AWAITING_APPROVAL
    third = world.approve(second, 2)
    assert third.state == S.AWAITING_APPROVAL
    fourth = world.approve(third, 0)
    assert fourth.state == S.MERGEABLE
    assert fourth.proposal_digest == second.proposal_digest is not None
    merged = advance(fourth, Merged(), policy=world.policy)
    assert merged.state == S.MERGED


def test_the_digest_covers_what_the_contract_names(world: World) -> None:
    proposal = world.awaiting()
    changes: list[dict[str, object]] = [
        {"candidate_digest": digest_bytes(b"x")},
        {"parent_revision": 9},
        {"domain": "law"},
        {"provenance_digest": digest_bytes(b"x")},
        {"policy_digest": digest_bytes(b"x")},
        {"evidence_root": digest_bytes(b"x")},
        {"waivers": (world.waiver(proposal, "retention", 0),)},
    ]
    digests = {replace(proposal, **change).proposal_digest for change in changes}
    assert len(digests | {proposal.proposal_digest}) == 8


def test_harm_shown_rejects_at_once_and_says_where(world: World) -> None:
    proposal = world.checking()
    event = world.look(proposal, alignment=world.failing("alignment", (-3.0, -1.0)))
    rejected = advance(proposal, event, policy=world.policy)
    assert rejected.state == S.REJECTED
    assert rejected.reason is not None
    assert rejected.reason.startswith("gate alignment: even the upper bound -1")


def test_a_doubtful_gate_resets_and_is_refused_when_looks_run_out(world: World) -> None:
    proposal = world.checking()
    for _ in range(3):
        proposal = advance(
            proposal,
            world.look(proposal, domain_gain=world.failing("domain_gain")),
            policy=world.policy,
        )
        assert proposal.state == S.CHECKING
    proposal = advance(
        proposal,
        world.look(proposal, domain_gain=world.failing("domain_gain")),
        policy=world.policy,
    )
    assert proposal.state == S.REJECTED
    assert "gate domain_gain" in str(proposal.reason)


def test_errors_are_no_looks_but_end_with_the_other_gates_looks(world: World) -> None:
    error = Verdict(gate="retention", outcome=Outcome.ERROR, why="no anchors")
    proposal = world.checking()
    for number in range(5):
        assert proposal.state == S.CHECKING, number
        proposal = advance(proposal, world.look(proposal, retention=error), policy=world.policy)
    assert proposal.state == S.REJECTED
    assert "gate retention: no looks are left" in str(proposal.reason)


def test_an_errored_look_can_be_taken_again(world: World) -> None:
    error = Verdict(gate="retention", outcome=Outcome.ERROR, why="timed out")
    proposal = world.checking()
    proposal = advance(proposal, world.look(proposal, retention=error), policy=world.policy)
    for _ in range(2):
        assert proposal.state == S.CHECKING
        proposal = advance(proposal, world.look(proposal), policy=world.policy)
    assert proposal.state == S.AWAITING_APPROVAL


def test_a_further_look_voids_approvals_and_moves_the_digest(world: World) -> None:
    before = world.mergeable()
    after = advance(before, world.look(before), policy=world.policy)
    assert (after.state, after.approvals) == (S.AWAITING_APPROVAL, ())
    assert after.proposal_digest != before.proposal_digest
    old = Approved(signature=before.approvals[0])
    with pytest.raises(DigestMismatch):
        advance(after, old, policy=world.policy)


def test_a_further_look_can_turn_the_verdict(world: World) -> None:
    before = world.mergeable()
    event = world.look(before, alignment=world.failing("alignment"))
    assert advance(before, event, policy=world.policy).state == S.CHECKING


def test_no_sixth_look(world: World) -> None:
    proposal = world.awaiting()
    for _ in range(3):
        proposal = advance(proposal, world.look(proposal), policy=world.policy)
    assert proposal.state == S.AWAITING_APPROVAL
    with pytest.raises(IllegalTransition, match="no looks are left"):
        advance(proposal, world.look(proposal), policy=world.policy)


def test_a_look_lacks_no_gate_and_repeats_none(world: World) -> None:
    proposal = world.checking()
    event = world.look(proposal)
    for verdicts in (event.verdicts[1:], (*event.verdicts, event.verdicts[0]), ()):
        with pytest.raises(IllegalTransition, match="exactly one verdict"):
            advance(proposal, replace(event, verdicts=verdicts), policy=world.policy)


def test_a_verdict_says_no_more_than_was_measured(world: World) -> None:
    proposal = world.checking()
    failing = world.failing("alignment", (-3.0, -1.0))
    for forged in (
        replace(failing, outcome=Outcome.PASS),
        replace(failing, decisive=False),
        replace(failing, outcome=Outcome.PASS, decisive=False, measurement=None),
    ):
        with pytest.raises(IllegalTransition, match="did not measure"):
            advance(proposal, world.look(proposal, alignment=forged), policy=world.policy)


def test_a_look_on_used_items_is_refused(world: World) -> None:
    proposal = world.checking()
    event = world.look(proposal)
    proposal = advance(proposal, event, policy=world.policy)
    with pytest.raises(IllegalTransition, match="did not measure"):
        advance(proposal, event, policy=world.policy)


def test_a_look_at_other_bytes_is_refused(world: World) -> None:
    proposal = world.checking()
    other = replace(world, candidate=digest_bytes(b"other bytes"))
    with pytest.raises(DigestMismatch, match="other bytes"):
        advance(proposal, other.look(proposal), policy=world.policy)


def test_an_approval_is_for_this_digest_by_a_known_key_once(world: World) -> None:
    proposal = world.awaiting()
    digest = proposal.proposal_digest
    for signature, error in (
        (world.sign(0, digest_bytes(b"other")), DigestMismatch),
        (world.sign(0, digest, Action.ROLLBACK), DigestMismatch),
        (sign_act(generate_key(), world.sign(0, digest).act), KeyUnknown),
    ):
        with pytest.raises(error):
            advance(proposal, Approved(signature=signature), policy=world.policy)
    once = world.approve(proposal, 0)
    with pytest.raises(DuplicateSigner):
        world.approve(once, 0)
    assert world.approve(once, 1).state == S.MERGEABLE


def test_stale_approvals_give_way_to_new_ones(world: World) -> None:
    stale = world.mergeable()
    later = replace(world, state_version=world.state_version + 1)
    once = later.approve(stale, 0)
    assert (once.state, len(once.approvals)) == (S.AWAITING_APPROVAL, 1)
    assert later.approve(once, 1).state == S.MERGEABLE
    with pytest.raises(DuplicateSigner):
        later.approve(once, 0)


def test_a_moved_parent_drops_what_was_found_against_the_old_one(world: World) -> None:
    for proposal in (world.propose(), world.checking(), world.awaiting(), world.mergeable()):
        moved = advance(proposal, _moved(2, domain_changed=False), policy=world.policy)
        frozen = proposal.candidate_digest is not None
        assert moved == replace(
            world.checking() if frozen else world.propose(),
            parent_revision=2,
            parent_digest=digest_bytes(b"2"),
            restarts=int(bool(proposal.looks)),
        )


def test_a_changed_domain_drops_the_candidate_too(world: World) -> None:
    for proposal in (world.propose(), world.checking(), world.awaiting(), world.mergeable()):
        moved = advance(proposal, _moved(2, domain_changed=True), policy=world.policy)
        assert moved == replace(
            world.propose(),
            parent_revision=2,
            parent_digest=digest_bytes(b"2"),
            restarts=int(bool(proposal.looks)),
        )


def _moved(number: int, *, domain_changed: bool) -> ParentMoved:
    return ParentMoved(
        revision=number, digest=digest_bytes(b"%d" % number), domain_changed=domain_changed
    )


@pytest.mark.parametrize(
    ("revision", "digest"), [(1, digest_bytes(b"2")), (0, digest_bytes(b"2")), (2, "")]
)
def test_a_parent_only_moves_up(world: World, revision: int, digest: str) -> None:
    with pytest.raises(IllegalTransition):
        advance(
            world.checking(),
            ParentMoved(revision=revision, digest=digest, domain_changed=True),
            policy=world.policy,
        )


def test_another_policy_cannot_judge_or_approve(world: World) -> None:
    other = make_policy(world.keys, version="2")
    proposal, awaiting = world.checking(), world.awaiting()
    for old, event in (
        (proposal, world.look(proposal)),
        (awaiting, Approved(signature=world.sign(0, awaiting.proposal_digest))),
        (world.mergeable(), Merged()),
    ):
        with pytest.raises(DigestMismatch, match="policy"):
            advance(old, event, policy=other)


def test_a_stored_state_is_not_taken_at_its_word(world: World) -> None:
    for edited in (
        replace(world.checking(), state=S.MERGEABLE),
        replace(world.awaiting(), state=S.MERGEABLE),
        replace(world.mergeable(), looks=()),
    ):
        with pytest.raises(IllegalTransition, match="incomplete"):
            advance(edited, Merged(), policy=world.policy)


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_a_rejection_needs_a_reason(world: World, reason: str) -> None:
    with pytest.raises(IllegalTransition, match="reason"):
        advance(world.checking(), Rejected(reason=reason), policy=world.policy)


CHOICES = st.sampled_from(
    ["freeze", "look", "doubt", "harm", "error", "approve 0", "approve 1", "approve 2", "moved",
     "merge", "merge", "reject", "break", "stale approval", "wrong approval"]
)  # fmt: skip


def make_event(world: World, proposal: Proposal, choice: str) -> Event:
    """The event as an honest or a careless caller would send it in any state."""
    digest = proposal.proposal_digest or digest_bytes(b"nothing")
    error = Verdict(gate="alignment", outcome=Outcome.ERROR, why="timed out")
    target = (
        proposal
        if proposal.candidate_digest
        else replace(proposal, candidate_digest=world.candidate)
    )
    match choice.split():
        case ["freeze"]:
            return Frozen(candidate_digest=world.candidate)
        case ["look"]:
            return world.look(target)
        case ["doubt"]:
            return world.look(target, retention=world.failing("retention"))
        case ["harm"]:
            return world.look(target, alignment=world.failing("alignment", (-3.0, -2.0)))
        case ["error"]:
            return world.look(target, alignment=error)
        case ["approve", index]:
            return Approved(signature=world.sign(int(index), digest))
        case ["stale", _]:
            return Approved(signature=replace(world, state_version=1).sign(0, digest))
        case ["wrong", _]:
            return Approved(signature=world.sign(0, digest_bytes(b"wrong")))
        case ["moved"]:
            number = proposal.parent_revision + 1
            return _moved(number, domain_changed=number % 2 == 0)
        case ["reject"]:
            return Rejected(reason="not good")
        case ["break"]:
            return Broke(reason="disk")
        case _:
            return Merged()


def check_invariants(world: World, before: Proposal, event: Event, after: Proposal) -> None:
    assert before.state not in FINAL, "final states are final"
    assert isinstance(after.state, ProposalState)
    assert (after.state in COMPLETE) == (after.proposal_digest is not None)
    if after.state in COMPLETE:
        verdicts = [verdict for look in after.looks for verdict in look]
        assert all(standing(spec, verdicts).done for spec in world.policy.gates)
    if after.state in (S.MERGEABLE, S.MERGED):
        keys = {a.key_id for a in after.approvals if a.act.target == after.proposal_digest}
        assert len(keys) >= world.policy.approvers.k
    if after.state == S.MERGED:
        assert before.state == S.MERGEABLE
        assert isinstance(event, Merged)
    if isinstance(event, LookTaken | ParentMoved):
        assert after.approvals == ()
    if after.state == S.CONSOLIDATING:
        assert after.candidate_digest is None
        assert after.looks == ()


def test_no_order_of_events_reaches_merged_without_everything(world: World) -> None:
    straight = ["freeze", "look", "look", "approve 0", "approve 1"]
    reached: set[ProposalState] = set()

    @settings(max_examples=200)
    @given(choices=st.lists(CHOICES, min_size=1, max_size=14), prepared=st.integers(0, 5))
    def walk(choices: list[str], prepared: int) -> None:
        proposal = world.propose()
        for choice in [*straight[:prepared], *choices]:
            event = make_event(world, proposal, choice)
            before = proposal
            try:
                proposal = advance(proposal, event, policy=world.policy)
            except CambiumError:
                continue
            check_invariants(world, before, event, proposal)
            reached.add(proposal.state)

    walk()
    assert reached == set(ProposalState), "the walks must get everywhere to show anything"


def test_final_states_take_no_event(world: World) -> None:
    merged = advance(world.mergeable(), Merged(), policy=world.policy)
    rejected = advance(world.checking(), Rejected(reason="no"), policy=world.policy)
    failed = advance(world.checking(), Broke(reason="disk"), policy=world.policy)
    assert {p.state for p in (merged, rejected, failed)} == FINAL
    choices = ["freeze", "look", "approve 2", "moved", "merge", "reject", "break"]
    for final in (merged, rejected, failed):
        for choice in choices:
            with pytest.raises(IllegalTransition, match="final"):
                advance(final, make_event(world, final, choice), policy=world.policy)


LEGAL = {
    S.CONSOLIDATING: {"freeze", "moved", "reject", "break"},
    S.CHECKING: {"look", "moved", "reject", "break"},
    S.AWAITING_APPROVAL: {"look", "approve 2", "moved", "reject", "break"},
    S.MERGEABLE: {"look", "approve 2", "moved", "merge", "reject", "break"},
}


def test_each_state_takes_exactly_its_events(world: World) -> None:
    starts = (world.propose(), world.checking(), world.awaiting(), world.mergeable())
    for proposal in starts:
        taken = set()
        for choice in ["freeze", "look", "approve 2", "moved", "merge", "reject", "break"]:
            try:
                advance(proposal, make_event(world, proposal, choice), policy=world.policy)
            except IllegalTransition:
                continue
            taken.add(choice)
        assert taken == LEGAL[proposal.state]
