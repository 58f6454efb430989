from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import TYPE_CHECKING

import pytest
from tests.policies import policy_text

from cambium.core.canonical import digest_bytes
from cambium.core.errors import (
    AttestationRefused,
    DigestMismatch,
    IllegalTransition,
    NotMergeable,
    ThresholdNotMet,
    TrustError,
)
from cambium.core.nouns import Action, Revision, Signature
from cambium.lifecycle.proposal import Merged, Proposal, advance
from cambium.lifecycle.publish import (
    PublishOrder,
    authorise_genesis,
    authorise_merge,
    authorise_rollback,
)
from cambium.trust.acts import sign_act
from cambium.trust.keys import generate_key
from cambium.trust.policy import parse_policy

if TYPE_CHECKING:
    from .conftest import World


def merge(world: World, proposal: Proposal, **changes: object) -> PublishOrder:
    arguments: dict[str, object] = {
        "situation": world.situation,
        "evidence": world.evidence(proposal),
        "router_digest": world.router,
    }
    return authorise_merge(proposal, **(arguments | changes))  # type: ignore[arg-type]


def blocked(world: World, proposal: Proposal, **changes: object) -> list[str]:
    with pytest.raises(NotMergeable) as caught:
        merge(world, proposal, **changes)
    found = caught.value.detail["blockers"]
    assert isinstance(found, list)
    assert found
    return [str(line).partition(":")[0] for line in found]


def test_genesis_is_the_bare_base(world: World) -> None:
    order = authorise_genesis(base_digest=world.head.base_digest, policy=None, now=5)
    revision = order.revision
    assert (revision.number, revision.kind, revision.bank) == (1, "genesis", ())
    assert (revision.policy_digest, revision.attestation, revision.parent) == ("", "none", None)
    with pytest.raises(DigestMismatch):
        authorise_genesis(base_digest="base", policy=None, now=5)


def test_a_complete_proposal_becomes_the_next_revision(world: World) -> None:
    proposal = world.mergeable()
    order = merge(world, proposal)
    revision = order.revision
    assert (revision.number, revision.kind, revision.of) == (2, "merge", None)
    assert (revision.parent, revision.base_digest) == (world.head.digest, world.head.base_digest)
    assert revision.proposal_digest == proposal.proposal_digest
    assert revision.policy_digest == world.policy.digest
    assert revision.attestation == "software-dev"
    (entry,) = revision.bank
    assert (entry.domain, entry.router_digest) == ("code", world.router)
    assert (entry.adapter.name, entry.adapter.digest) == ("learner", world.candidate)
    assert order.signatures == proposal.approvals
    assert order.attestation == world.attestation


def test_a_merge_replaces_its_domain_and_keeps_the_others(world: World) -> None:
    first = merge(world, world.mergeable()).revision
    entry = replace(first.bank[0], domain="law")
    stale = replace(first.bank[0], router_digest=digest_bytes(b"old"))
    later = replace(world, head=replace(first, bank=(stale, entry)))
    bank = merge(later, later.mergeable()).revision.bank
    assert [e.domain for e in bank] == ["code", "law"]
    assert bank[0].router_digest == world.router
    assert bank[1] == entry


def test_every_unfinished_state_is_blocked(world: World) -> None:
    assert "quorum" in blocked(world, world.awaiting())
    assert blocked(world, world.approve(world.awaiting(), 0)) == ["quorum"]
    merged = advance(world.mergeable(), Merged(), policy=world.policy)
    assert blocked(world, merged) == ["state"]
    for proposal in (world.propose(), world.checking()):
        assert "evidence" in blocked(world, proposal, evidence=[])
    # A store that says so without a single look is not taken at its word.
    lied = replace(world.mergeable(), looks=())
    assert "evidence" in blocked(world, lied, evidence=[])


def test_evidence_attestation_and_router_are_checked_again(world: World) -> None:
    proposal = world.mergeable()
    assert blocked(world, proposal, evidence=world.evidence(proposal)[1:]) == ["evidence"]
    another = replace(world.situation, server=world.keys[0].public_key)
    assert blocked(world, proposal, situation=another) == ["attestation", "evidence"]
    assert blocked(world, proposal, router_digest="") == ["router"]
    bare = replace(world.situation, attestation=None)
    assert blocked(world, proposal, situation=bare) == ["attestation"]


def test_forged_approvals_in_the_store_do_not_merge(world: World) -> None:
    proposal = world.mergeable()
    good, other = proposal.approvals
    forged: list[tuple[Signature, ...]] = [
        (good, replace(other, signature="00" * 64)),
        (good, replace(other, act=replace(other.act, expires=other.act.expires + 1))),
        (good, good),
        (good, replace(good, key_id=other.key_id)),
        (),
    ]
    for approvals in forged:
        assert blocked(world, replace(proposal, approvals=approvals)) == ["quorum"]


def test_only_counted_signatures_are_in_the_order(world: World) -> None:
    proposal = world.mergeable()
    padded = replace(proposal, approvals=(*proposal.approvals, proposal.approvals[0]))
    assert merge(world, padded).signatures == proposal.approvals


def test_an_order_is_made_nowhere_else(world: World) -> None:
    order = merge(world, world.mergeable())
    fields = {
        "revision": order.revision,
        "reason": "because",
        "signatures": order.signatures,
        "attestation": order.attestation,
    }
    with pytest.raises(TrustError):
        PublishOrder(**fields, mint=object())
    with pytest.raises(TypeError):
        PublishOrder(**fields)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="mint"):
        replace(order, reason="edited")
    with pytest.raises(FrozenInstanceError):
        order.reason = "edited"  # type: ignore[misc]


def rollback(world: World, to: Revision, *indices: int, head: Revision) -> PublishOrder:
    signatures = [world.sign(index, to.digest, Action.ROLLBACK) for index in indices]
    situation = replace(world.situation, head=head)
    return authorise_rollback(to, situation=situation, signatures=signatures)


def test_a_rollback_is_a_new_higher_revision(world: World) -> None:
    merged = merge(world, world.mergeable()).revision
    order = rollback(world, world.head, 0, 2, head=merged)
    revision = order.revision
    assert (revision.number, revision.kind, revision.of) == (3, "rollback", 1)
    assert (revision.bank, revision.parent) == (world.head.bank, merged.digest)
    assert (revision.attestation, revision.proposal_digest) == ("software-dev", None)
    again = rollback(world, merged, 0, 1, head=revision).revision
    assert (again.number, again.of, again.bank) == (4, 2, merged.bank)
    of_a_rollback = rollback(world, revision, 0, 1, head=again).revision
    assert (of_a_rollback.of, of_a_rollback.bank) == (3, ())


def test_a_rollback_goes_back(world: World) -> None:
    merged = merge(world, world.mergeable()).revision
    for to in (merged, replace(merged, number=9)):
        with pytest.raises(IllegalTransition):
            rollback(world, to, 0, 1, head=merged)


def test_a_rollback_needs_its_own_quorum(world: World) -> None:
    merged = merge(world, world.mergeable()).revision
    situation, digest = replace(world.situation, head=merged), world.head.digest
    good = world.sign(0, digest, Action.ROLLBACK)
    unfit = [
        [],
        [good],
        [good, good],
        [good, world.sign(1, digest)],
        [good, world.sign(1, merged.digest, Action.ROLLBACK)],
        [good, replace(world.sign(1, digest, Action.ROLLBACK), signature="00" * 64)],
        [good, sign_act(world.server, good.act)],
        [good, sign_act(world.keys[1], replace(good.act, state_version=2))],
        [good, sign_act(world.keys[1], replace(good.act, expires=world.now))],
    ]
    for signatures in unfit:
        with pytest.raises(ThresholdNotMet, match="of 2 signatures"):
            authorise_rollback(world.head, situation=situation, signatures=signatures)
    revoked = replace(situation, revoked_keys=frozenset({world.keys[1].key_id}))
    pair = [good, world.sign(1, digest, Action.ROLLBACK)]
    with pytest.raises(ThresholdNotMet):
        authorise_rollback(world.head, situation=revoked, signatures=pair)
    junk = [*unfit[3], *pair]
    order = authorise_rollback(world.head, situation=situation, signatures=junk)
    assert order.signatures == tuple(pair)


def test_a_rollback_needs_an_attestation_and_the_same_base(world: World) -> None:
    merged = merge(world, world.mergeable()).revision
    bare = replace(world, attestation=None)
    with pytest.raises(AttestationRefused):
        rollback(bare, world.head, 0, 1, head=merged)
    other = replace(world.head, base_digest=digest_bytes(b"other base"))
    with pytest.raises(DigestMismatch):
        rollback(world, other, 0, 1, head=merged)


def test_an_emergency_key_rolls_back_alone_and_only_if_the_policy_names_it(world: World) -> None:
    merged = merge(world, world.mergeable()).revision
    first, operator = world.keys[0], generate_key()
    people = (
        f'operators = [{{ name = "night", public = "{operator.public_key.raw}", expires = 0 }}]'
    )
    for key in (first, operator):
        text = policy_text(world.keys).replace("operators = [\n\n]", people)
        assert people in text
        bare = replace(world, policy=parse_policy(text.encode()), keys=[key, *world.keys[1:]])
        text = text.replace("emergency = []", f'emergency = ["{key.public_key.raw}"]')
        named = replace(bare, policy=parse_policy(text.encode()))
        order = rollback(named, world.head, 0, head=merged)
        assert order.revision.of == 1 and order.reason.endswith("by an emergency key")
        with pytest.raises(ThresholdNotMet):
            rollback(bare, world.head, 0, head=merged)
        with pytest.raises(ThresholdNotMet):  # another approver alone cannot
            rollback(named, world.head, 1, head=merged)
        assert rollback(named, world.head, 1, 2, head=merged).reason == "rollback to revision 1"
        gone = replace(named.situation, head=merged, revoked_keys=frozenset({key.key_id}))
        signed = [named.sign(0, world.head.digest, Action.ROLLBACK)]
        with pytest.raises(ThresholdNotMet):
            authorise_rollback(world.head, situation=gone, signatures=signed)
        barred = replace(named.situation, head=replace(world.head, number=5),
                         quarantined=merged.adapters)  # fmt: skip
        signed = [named.sign(0, merged.digest, Action.ROLLBACK)]
        with pytest.raises(IllegalTransition, match="quarantine"):
            authorise_rollback(merged, situation=barred, signatures=signed)
