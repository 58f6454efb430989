"""What a quorum takes out of service is never served again, whatever happens afterwards."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cambium.core.canonical import digest_bytes
from cambium.core.errors import CambiumError, IllegalTransition, NotMergeable, ThresholdNotMet
from cambium.core.nouns import Action, Revision
from cambium.lifecycle.proposal import Frozen, advance
from cambium.lifecycle.publish import authorise_merge, authorise_rollback
from cambium.lifecycle.revoke import authorise_quarantine

if TYPE_CHECKING:
    from .conftest import World

NONE: frozenset[str] = frozenset()


def merge(world: World, name: str, domain: str, barred: frozenset[str] = NONE) -> Revision:
    world = replace(world, candidate=digest_bytes(name.encode()))
    frozen = Frozen(candidate_digest=world.candidate)
    proposal = advance(world.propose(domain=domain), frozen, policy=world.policy)
    for _ in range(2):
        proposal = advance(proposal, world.look(proposal), policy=world.policy)
    proposal = world.approve(proposal, 0, 1)
    looks = world.evidence(proposal)
    return authorise_merge(
        proposal,
        situation=replace(world.situation, quarantined=barred),
        evidence=looks,
        router_digest=world.router,
    ).revision


def rollback(world: World, to: Revision, barred: frozenset[str] = NONE) -> Revision:
    situation = replace(world.situation, quarantined=barred)
    signatures = [world.sign(i, to.digest, Action.ROLLBACK) for i in (0, 1)]
    return authorise_rollback(to, situation=situation, signatures=signatures).revision


def quarantine(
    world: World,
    line: list[Revision],
    index: int,
    people: tuple[int, ...] = (0, 1),
    action: Action = Action.REVOKE,
) -> frozenset[str]:
    signed = [world.sign(i, line[index].digest, action) for i in people]
    before = line[index - 1] if index else None
    brought, counted = authorise_quarantine(
        line[index], signed, before=before, situation=replace(world.situation, head=line[-1])
    )
    assert {s.key_id for s in counted} == {world.keys[i].key_id for i in people}
    return brought


def three(world: World) -> list[Revision]:
    """A bare base, a merge, another merge onto it, and the base again."""
    line = [world.head]
    for name, domain in (("first", "code"), ("second", "law")):
        line.append(merge(replace(world, head=line[-1]), name, domain))
    return [*line, rollback(replace(world, head=line[-1]), line[0])]


def test_it_bars_what_the_revision_brought_and_nothing_else(world: World) -> None:
    line = three(world)
    barred = quarantine(world, line, 1)
    assert barred == {digest_bytes(b"first")}
    served = replace(world, head=line[-1])
    # Neither the revision itself nor what was merged onto it.
    for index in (1, 2):
        with pytest.raises(IllegalTransition, match="quarantine"):
            rollback(served, line[index], barred)
        assert rollback(served, line[index]).bank == line[index].bank
    with pytest.raises(NotMergeable, match="quarantine"):
        merge(served, "first", "another domain", barred)
    assert merge(served, "second", "law", barred).adapters == {digest_bytes(b"second")}
    assert rollback(replace(world, head=line[2]), line[0], barred).bank == ()


def test_only_k_approvers_over_exactly_this_revision_can(world: World) -> None:
    line = three(world)
    for size in range(world.policy.approvers.k):
        for people in combinations(range(3), size):
            with pytest.raises(ThresholdNotMet):
                quarantine(world, line, 1, people)
    for people in combinations(range(3), world.policy.approvers.k):
        assert quarantine(world, line, 1, people)
    with pytest.raises(ThresholdNotMet):
        quarantine(world, line, 1, action=Action.ROLLBACK)
    others = [world.sign(i, line[2].digest, Action.REVOKE) for i in (0, 1)]
    situation = replace(world.situation, head=line[-1])
    with pytest.raises(ThresholdNotMet):
        authorise_quarantine(line[1], others, before=line[0], situation=situation)


def test_what_is_served_and_the_base_stay(world: World) -> None:
    line = three(world)
    for index in (1, 2):  # both are part of what revision 3 serves
        with pytest.raises(IllegalTransition, match="roll back first"):
            quarantine(world, line[:3], index)
    for index in (0, 3):
        with pytest.raises(IllegalTransition, match="nothing new"):
            quarantine(world, line, index)


ACTS = st.lists(
    st.tuples(st.sampled_from(["merge", "rollback", "quarantine"]), st.integers(0, 5)), max_size=14
)


def test_no_order_of_acts_serves_what_is_in_quarantine(world: World) -> None:
    """And the bare base can always be gone back to."""
    seen: set[str] = set()

    @settings(max_examples=25, deadline=None)
    @given(ACTS)
    @example([("merge", 1), ("rollback", 0), ("quarantine", 1), ("merge", 1), ("rollback", 1)])
    def walk(acts: list[tuple[str, int]]) -> None:
        line, barred = [world.head], NONE
        for act, number in acts:
            now = replace(world, head=line[-1])
            try:
                if act == "merge":
                    line.append(merge(now, f"adapter {number % 3}", f"d{number % 2}", barred))
                elif act == "rollback":
                    line.append(rollback(now, line[number % len(line)], barred))
                else:
                    barred |= quarantine(now, line, number % len(line))
                seen.add(act)
            except CambiumError as error:
                seen.add(f"no {act}: {error.code}")
            assert not line[-1].adapters & barred
        if len(line) > 1:
            assert rollback(replace(world, head=line[-1]), line[0], barred).bank == ()

    walk()
    # The walk went everywhere, else it shows nothing.
    assert {"merge", "rollback", "quarantine", "no merge: not_mergeable"} <= seen
    assert "no rollback: illegal_transition" in seen
