from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from cambium.core.canonical import digest_bytes
from cambium.core.errors import PolicyInvalid, ThresholdNotMet
from cambium.core.nouns import Action, SignedAct
from cambium.lifecycle.revoke import authorise_revocation
from cambium.trust.acts import sign_act
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.quorum import Approver

NOW = 50_000
ROOT = generate_key()


def revoke(world: Any, lost: SigningKey, keys: list[SigningKey], **changes: Any) -> Any:
    revoked = changes.pop("revoked", frozenset())
    fields: dict[str, Any] = {
        "action": Action.REVOKE, "target": lost.public_key.digest, "state_version": 3,
        "expires": NOW + 60, "policy": world.policy.digest, **changes,
    }  # fmt: skip
    return authorise_revocation(
        lost.public_key,
        [sign_act(key, SignedAct(**fields)) for key in keys],
        situation=replace(world.situation, revoked_keys=revoked),
        root=Approver(name="root", public=ROOT.public_key),
    )


def test_the_root_alone_revokes_any_key(world: Any) -> None:
    for lost in (*world.keys, generate_key()):
        assert len(revoke(world, lost, [ROOT])) == 1


def test_approvers_revoke_together_and_never_with_the_key_itself(world: Any) -> None:
    lost, *others = world.keys
    assert len(revoke(world, lost, others)) == world.policy.approvers.k
    for size in range(world.policy.approvers.k):
        for group in combinations(others, size):
            with pytest.raises(ThresholdNotMet):
                revoke(world, lost, [*group, lost])
    operator = generate_key()
    for group in combinations(world.keys, world.policy.approvers.k):
        assert revoke(world, operator, list(group))


def test_where_no_quorum_is_left_only_the_root_can(world: Any) -> None:
    lost, gone, last = world.keys
    revoked = frozenset({gone.key_id})
    with pytest.raises(PolicyInvalid):
        revoke(world, lost, [gone, last], revoked=revoked)
    assert revoke(world, lost, [ROOT], revoked=revoked)


@pytest.mark.parametrize(
    "changes",
    [
        {"action": Action.APPROVE},
        {"target": digest_bytes(b"another key")},
        {"state_version": 2},
        {"expires": NOW},
        {"policy": digest_bytes(b"another policy")},
        {"domain_tag": "other"},
    ],
)
def test_it_signs_exactly_this_revocation_now(world: Any, changes: dict[str, Any]) -> None:
    for keys in ([ROOT], world.keys[1:]):
        with pytest.raises(ThresholdNotMet):
            revoke(world, world.keys[0], keys, **changes)
