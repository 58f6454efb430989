from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.looked import blockers
from tests.policies import make_policy

from cambium.core.nouns import ProposalState
from cambium.lifecycle.proposal import Merged, Rejected, advance
from cambium.lifecycle.situation import Situation

if TYPE_CHECKING:
    from .conftest import World


def codes(found: tuple[str, ...]) -> list[str]:
    return [line.partition(":")[0] for line in found]


def test_nothing_blocks_a_complete_proposal(world: World) -> None:
    assert blockers(world.mergeable(), world.situation) == ()


def test_a_fresh_proposal_lacks_everything(world: World) -> None:
    situation = replace(world.situation, attestation=None)
    assert codes(blockers(world.propose(), situation)) == [
        "gate domain_gain",
        "gate retention",
        "gate alignment",
        "gate alignment_drift",
        "gate alignment_writing",
        "gate power_seeking",
        "gate integrity",
        "attestation",
        "quorum",
    ]


def test_blockers_say_how_far_it_is(world: World) -> None:
    looked = advance(checking := world.checking(), world.look(checking), policy=world.policy)
    assert "gate retention: 1 of 2 passes in a row" in blockers(looked, world.situation)
    once = world.approve(world.awaiting(), 0)
    assert blockers(once, world.situation) == ("quorum: 1 of 2 approvals",)


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"state_version": 4}, "quorum", "signed at state version 3"),
        ({"now": 50_600}, "quorum", "expired"),
        ({"attestation": None}, "attestation", "nothing was attested"),
    ],
)
def test_a_changed_situation_blocks(
    world: World, change: dict[str, object], code: str, says: str
) -> None:
    found = blockers(world.mergeable(), replace(world.situation, **change))
    line = next(line for line in found if line.startswith(code))
    assert says in line


def test_the_attestation_must_be_accepted_and_fresh(world: World) -> None:
    proposal, result = world.mergeable(), world.attestation
    for attestation in (
        replace(result, label="tdx"),
        replace(result, expires_at=world.now),
        replace(result, issued_at=world.now + 1),
    ):
        found = blockers(proposal, replace(world.situation, attestation=attestation))
        assert codes(found) == ["attestation"]


def test_production_takes_no_software_whatever_its_list_says(world: World) -> None:
    """The text of such a policy is refused; even one made past the parser does not merge."""
    policy = replace(world.policy, profile="production")
    situation: Situation = replace(world.situation, policy=policy)
    assert "attestation" in codes(blockers(world.mergeable(), situation))


def test_another_head_policy_or_domain_blocks(world: World) -> None:
    proposal = world.mergeable()
    head = replace(world.head, number=2)
    assert codes(blockers(proposal, replace(world.situation, head=head))) == ["parent"]
    same_number = replace(world.head, created_at=1)
    assert codes(blockers(proposal, replace(world.situation, head=same_number))) == ["parent"]
    narrow = make_policy(world.keys, allowed='["law"]')
    found = codes(blockers(proposal, replace(world.situation, policy=narrow)))
    assert found == ["policy", "domain", "quorum"]


def test_a_revoked_key_does_not_count(world: World) -> None:
    revoked = frozenset({world.keys[0].key_id})
    found = blockers(world.mergeable(), replace(world.situation, revoked_keys=revoked))
    assert found == ("quorum: 1 of 2 approvals",)
    others = world.approve(world.mergeable(), 2)
    assert blockers(others, replace(world.situation, revoked_keys=revoked)) == ()


def test_a_final_state_says_only_that(world: World) -> None:
    merged = advance(world.mergeable(), Merged(), policy=world.policy)
    assert blockers(merged, world.situation) == ("state: merged",)
    rejected = advance(world.mergeable(), Rejected(reason="smells"), policy=world.policy)
    assert blockers(rejected, world.situation) == ("state: rejected, smells",)


def test_a_stored_state_that_lags_blocks(world: World) -> None:
    lagging = replace(world.mergeable(), state=ProposalState.AWAITING_APPROVAL)
    assert blockers(lagging, world.situation) == ("state: awaiting_approval",)
