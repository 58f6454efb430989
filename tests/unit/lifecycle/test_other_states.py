"""The same people, the same policy but for the state it names, and everything else alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.policies import make_policy

from cambium.core.canonical import digest_bytes
from cambium.core.errors import NotMergeable, ThresholdNotMet
from cambium.core.nouns import Action
from cambium.lifecycle.kill import Killed, Standing, authorise_kill, authorise_revival
from cambium.lifecycle.publish import authorise_merge, authorise_rollback
from cambium.lifecycle.revoke import authorise_quarantine, authorise_revocation
from cambium.trust.quorum import Approver

if TYPE_CHECKING:
    from .conftest import World

Act = Callable[["World", "World"], object]


def approve(signed: World, used: World) -> object:
    proposal = used.awaiting()
    digest = proposal.proposal_digest
    proposal = replace(
        used.approve(proposal, 0, 1), approvals=tuple(signed.sign(i, digest) for i in (0, 1))
    )
    return authorise_merge(
        proposal,
        situation=used.situation,
        evidence=used.evidence(proposal),
        router_digest=used.router,
    )


def roll_back(signed: World, used: World) -> object:
    head = replace(used.head, number=4)
    signatures = [signed.sign(i, used.head.digest, Action.ROLLBACK) for i in (0, 1)]
    situation = replace(used.situation, head=head)
    return authorise_rollback(used.head, situation=situation, signatures=signatures)


def kill(signed: World, used: World) -> object:
    person = Approver(name="one", public=used.keys[0].public_key)
    standing = Standing(
        people=[person],
        targets={used.head.digest},
        versions=range(used.state_version + 1),
        policies={used.policy.digest},
    )
    signature = signed.sign(0, used.head.digest, Action.KILL)
    return authorise_kill("reason", [signature], standing=standing, now=used.now)


def revive(signed: World, used: World) -> object:
    killed = Killed(reason="x", name="one", signature=signed.sign(0, "kill", Action.KILL))
    return authorise_revival(
        killed,
        [signed.sign(i, killed.digest, Action.REVIVE) for i in (0, 1)],
        counting=used.situation,
    )


def revoke(signed: World, used: World) -> object:
    lost, *others = used.keys
    signatures = [signed.sign(i, lost.public_key.digest, Action.REVOKE) for i in (1, 2)]
    assert [s.key_id for s in signatures] == [key.key_id for key in others]
    root = Approver(name="root", public=used.server.public_key)
    return authorise_revocation(
        lost.public_key, signatures, situation=used.situation, root=root
    )  # fmt: skip


def quarantine(signed: World, used: World) -> object:
    bank = approve(used, used).revision.bank  # type: ignore[attr-defined]
    bad = replace(used.head, number=2, bank=bank)
    signatures = [signed.sign(i, bad.digest, Action.REVOKE) for i in (0, 1)]
    return authorise_quarantine(bad, signatures, before=used.head, situation=used.situation)


@pytest.mark.parametrize("act", [approve, roll_back, kill, revive, revoke, quarantine])
def test_what_is_signed_for_one_state_does_nothing_to_another(world: World, act: Act) -> None:
    text = f'"{digest_bytes(b"another").removeprefix("sha256:")[:32]}"'
    other = replace(world.fresh(), policy=make_policy(world.keys, state=text))
    assert other.state_version == world.state_version
    for state in (world, other):
        assert act(state, state)
    for signed, used in ((world, other), (other, world)):
        with pytest.raises((ThresholdNotMet, NotMergeable)) as caught:
            act(signed, used)
        assert "policy" in caught.value.message or "another state" in caught.value.message
