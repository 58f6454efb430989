from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cambium.core.canonical import digest_bytes
from cambium.core.errors import DigestMismatch, SignatureInvalid
from cambium.core.evidence import Outcome, Verdict
from cambium.lifecycle.evidence import check_evidence, evidence_root, look_statements
from cambium.lifecycle.proposal import Proposal, advance
from cambium.trust.dsse import seal
from cambium.trust.keys import generate_key

if TYPE_CHECKING:
    from .conftest import World


def check(world: World, proposal: Proposal, envelopes: list[dict[str, object]]) -> None:
    check_evidence(proposal, envelopes=envelopes, situation=world.situation)


def rooted(proposal: Proposal, envelopes: list[dict[str, object]]) -> Proposal:
    """The proposal as somebody who can write the store, but not sign, would leave it."""
    return replace(proposal, evidence_root=evidence_root(envelopes))


def test_evidence_of_every_look_is_kept_and_verifies(world: World) -> None:
    proposal = world.awaiting()
    envelopes = world.evidence(proposal)
    assert len(envelopes) == 2 * len(world.policy.gates)
    check(world, proposal, envelopes)


def test_an_errored_look_is_evidence_too(world: World) -> None:
    error = Verdict(gate="retention", outcome=Outcome.ERROR, why="no anchors")
    proposal = world.checking()
    proposal = advance(proposal, world.look(proposal, retention=error), policy=world.policy)
    check(world, proposal, world.evidence(proposal))


def test_missing_added_and_reordered_envelopes_are_refused(world: World) -> None:
    proposal = world.awaiting()
    whole = world.evidence(proposal)
    tried = 0
    for index in range(len(whole)):
        others = [
            whole[:index] + whole[index + 1 :],
            [*whole, whole[index]],
            [*whole[index:], *whole[:index]] if index else [],
        ]
        for envelopes in others:
            for version in (proposal, rooted(proposal, envelopes)):
                with pytest.raises(DigestMismatch):
                    check(world, version, envelopes)
                tried += 1
    assert tried == 6 * len(whole)


def test_a_root_is_needed(world: World) -> None:
    with pytest.raises(DigestMismatch):
        check(world, world.checking(), [])
    proposal = world.awaiting()
    other = replace(proposal, evidence_root=digest_bytes(b"another root"))
    with pytest.raises(DigestMismatch, match="root"):
        check(world, other, world.evidence(proposal))


def test_evidence_signed_by_another_key_is_refused(world: World) -> None:
    proposal = world.awaiting()
    forger = generate_key()
    forged = [
        seal(forger, statement)
        for look, verdicts in enumerate(proposal.looks)
        for statement in look_statements(proposal, verdicts, look=look, policy=world.policy)
    ]
    with pytest.raises(SignatureInvalid):
        check(world, rooted(proposal, forged), forged)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "p2"},
        {"domain": "law"},
        {"candidate_digest": digest_bytes(b"x")},
        {"parent_revision": 4},
        {"parent_digest": digest_bytes(b"x")},
        {"policy_digest": digest_bytes(b"x")},
        {"adapter_name": "other"},
    ],
)
def test_evidence_of_another_proposal_is_refused(world: World, change: dict[str, object]) -> None:
    proposal = world.awaiting()
    with pytest.raises(DigestMismatch):
        check(world, replace(proposal, **change), world.evidence(proposal))


def test_an_edited_verdict_is_refused(world: World) -> None:
    proposal = world.awaiting()
    first = proposal.looks[0]
    edited = (replace(first[0], why="edited"), *first[1:])
    with pytest.raises(DigestMismatch):
        check(world, replace(proposal, looks=(edited, proposal.looks[1])), world.evidence(proposal))


def test_a_lowered_bar_is_refused(world: World) -> None:
    proposal = world.awaiting()
    gates = (replace(world.policy.gates[0], threshold=-9.0), *world.policy.gates[1:])
    lowered = replace(world, policy=replace(world.policy, gates=gates))
    with pytest.raises(DigestMismatch):
        check(lowered, proposal, world.evidence(proposal))


def test_statements_need_a_candidate_and_declared_gates(world: World) -> None:
    with pytest.raises(DigestMismatch):
        look_statements(world.propose(), [], look=0, policy=world.policy)
    odd = Verdict(gate="astrology", outcome=Outcome.PASS, why="stars")
    with pytest.raises(DigestMismatch):
        look_statements(world.checking(), [odd], look=0, policy=world.policy)
