"""The alpha ledger: each series of looks costs what its rule may err, under one policy."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import pytest

from cambium.core.canonical import digest_bytes
from cambium.core.evidence import GateSpec, rule_passes
from cambium.lifecycle.ledger import find_overdraft, series_cost, spent
from cambium.lifecycle.proposal import ParentMoved, advance
from cambium.trust.policy import Ledger

if TYPE_CHECKING:
    from .conftest import World


@pytest.mark.parametrize(("needed", "most"), [(1, 1), (2, 3), (3, 5), (1, 4), (5, 5)])
def test_a_rules_error_is_the_sum_over_all_ways_to_pass(needed: int, most: int) -> None:
    for chance in (0.0, 0.05, 0.3, 1.0):
        total = 0.0
        for looks in product((0, 1), repeat=most):
            run, done = 0, False
            for look in looks:
                run = run + 1 if look else 0
                done = done or run == needed
            total += done * chance ** sum(looks) * (1 - chance) ** (most - sum(looks))
        found = rule_passes(chance, passes_required=needed, max_looks=most)
        assert found == pytest.approx(total, abs=1e-12)


def test_a_gate_costs_what_its_rule_lets_through_at_its_threshold() -> None:
    spec = GateSpec(name="g", metric="m", threshold=-0.1, passes_required=3, max_looks=5,
                    confidence=0.95)  # fmt: skip
    assert spec.rule_alpha == pytest.approx(0.05**3 * (1 + 2 * 0.95))


def test_looks_are_paid_by_the_series_and_a_moved_parent_begins_another(world: World) -> None:
    cost = series_cost(world.policy)
    assert cost == max(spec.rule_alpha for spec in world.policy.gates) > 0
    fresh = world.checking()
    assert spent([fresh], world.policy) == 0
    looked = advance(fresh, world.look(fresh), policy=world.policy)
    assert spent([fresh, looked], world.policy) == cost
    twice = advance(looked, world.look(looked), policy=world.policy)
    assert spent([twice], world.policy) == cost
    event = ParentMoved(revision=2, digest=digest_bytes(b"2"), domain_changed=False)
    moved = advance(twice, event, policy=world.policy)
    assert spent([moved], world.policy) == cost
    again = advance(moved, world.look(moved), policy=world.policy)
    assert spent([again], world.policy) == 2 * cost


def test_a_spent_ledger_begins_no_series_and_a_new_policy_a_new_line(world: World) -> None:
    fresh = world.checking()
    looked = advance(fresh, world.look(fresh), policy=world.policy)
    cost = series_cost(world.policy)
    room = replace(world.policy, ledger=Ledger(alpha=2 * cost))
    full = replace(world.policy, ledger=Ledger(alpha=1.9 * cost))
    assert find_overdraft([replace(looked, policy_digest=room.digest)], room) == ""
    charged = replace(looked, policy_digest=full.digest)
    assert "alpha ledger is spent" in find_overdraft([charged], full)
    elsewhere = replace(looked, policy_digest=digest_bytes(b"an earlier policy"))
    assert find_overdraft([elsewhere], full) == ""
