from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from tests.looked import blockers

from cambium.core.canonical import digest_bytes
from cambium.core.errors import AttestationRefused, ThresholdNotMet
from cambium.core.nouns import Action, Signature, SignedAct
from cambium.lifecycle.kill import Killed, Standing, authorise_kill, authorise_revival
from cambium.lifecycle.publish import authorise_rollback
from cambium.lifecycle.situation import Counting
from cambium.trust.acts import MAX_LIFETIME_S, sign_act
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.quorum import Approver

NOW = 50_000
STATE, POLICY = digest_bytes(b"a revision"), digest_bytes(b"policy")
KEYS = [generate_key() for _ in range(4)]
PEOPLE = [Approver(name=f"p{i}", public=key.public_key) for i, key in enumerate(KEYS)]


def act(action: Action = Action.KILL, **changes: Any) -> SignedAct:
    fields: dict[str, Any] = {"target": STATE, "state_version": 5, "expires": NOW + 60,
                              "policy": POLICY, **changes}  # fmt: skip
    return SignedAct(action=action, **fields)


def kill(*signatures: Signature, now: int = NOW, **changes: Any) -> Killed:
    fields: dict[str, Any] = {"people": PEOPLE, "targets": {STATE}, "versions": range(3, 8),
                              "policies": {POLICY}, **changes}  # fmt: skip
    return authorise_kill("smoke", signatures, standing=Standing(**fields), now=now)


def test_any_one_key_kills_and_is_named() -> None:
    for key, person in zip(KEYS, PEOPLE, strict=True):
        killed = kill(sign_act(key, act()))
        assert (killed.name, killed.reason) == (person.name, "smoke")
    for version in range(3, 8):  # whatever happened since the last revival
        assert kill(sign_act(KEYS[0], act(state_version=version)))
    stranger = sign_act(generate_key(), act())
    assert kill(stranger, sign_act(KEYS[2], act())).name == "p2"


@pytest.mark.parametrize(
    "changes",
    [
        {"action": Action.REVIVE},
        {"action": Action.APPROVE},
        {"target": digest_bytes(b"another state")},
        {"state_version": 2},
        {"state_version": 8},
        {"policy": digest_bytes(b"another policy")},
        {"expires": NOW},
        {"expires": NOW + MAX_LIFETIME_S + 1},
        {"domain_tag": "other.v1"},
    ],
)
def test_what_does_not_say_exactly_that_kills_nothing(changes: dict[str, Any]) -> None:
    with pytest.raises(ThresholdNotMet) as refused:
        kill(sign_act(KEYS[0], act(**changes)))
    assert refused.value.detail["need"] == 1 and refused.value.detail["refused"]


def test_strangers_and_forgers_kill_nothing() -> None:
    good = sign_act(KEYS[0], act())
    forged = [
        sign_act(generate_key(), act()),
        replace(good, key_id=KEYS[1].key_id),
        replace(good, signature="00" * 64),
        replace(good, act=act(expires=NOW + 61)),
    ]
    for signature in forged:
        with pytest.raises(ThresholdNotMet):
            kill(signature)
    with pytest.raises(ThresholdNotMet):
        kill(*forged)
    with pytest.raises(ThresholdNotMet):
        kill()
    with pytest.raises(ThresholdNotMet):
        kill(good, people=PEOPLE[1:])  # a revoked key is not among the people


KILLED = kill(sign_act(KEYS[3], act()))


def revive(world: Any, keys: list[SigningKey], **changes: Any) -> Any:
    fields: dict[str, Any] = {"target": KILLED.digest, "state_version": 6,
                              "policy": world.policy.digest, **changes}  # fmt: skip
    revoked = fields.pop("revoked", frozenset())
    action = fields.pop("action", Action.REVIVE)
    signatures = [sign_act(key, act(action, **fields)) for key in keys]
    counting = Counting(policy=world.policy, state_version=6, now=NOW, revoked_keys=revoked)
    return authorise_revival(KILLED, signatures, counting=counting)


def test_every_quorum_revives_and_no_smaller_group_does(world: Any) -> None:
    for group in combinations(world.keys, world.policy.approvers.k):
        assert len(revive(world, list(group))) == world.policy.approvers.k
    for size in range(world.policy.approvers.k):
        for group in combinations(world.keys, size):
            with pytest.raises(ThresholdNotMet):
                revive(world, list(group))
    with pytest.raises(ThresholdNotMet):
        revive(world, [world.keys[0]] * 3)
    with pytest.raises(ThresholdNotMet):
        revive(world, [KEYS[3], world.keys[0]])  # who killed may not revive by that alone
    with pytest.raises(ThresholdNotMet):
        revive(world, world.keys[:2], revoked=frozenset({world.keys[0].key_id}))


@pytest.mark.parametrize(
    "changes",
    [{"target": STATE}, {"state_version": 5}, {"state_version": 7}, {"action": Action.KILL},
     {"policy": POLICY}, {"expires": NOW}],
)  # fmt: skip
def test_a_revival_signs_this_kill_now(world: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ThresholdNotMet):
        revive(world, world.keys, **changes)


def test_nothing_is_merged_or_rolled_back_while_killed(world: Any) -> None:
    proposal = world.mergeable()
    assert blockers(proposal, world.situation) == ()
    killed = replace(world.situation, killed=True)
    assert blockers(proposal, killed) == ("attestation: the kill switch was pulled",)
    with pytest.raises(AttestationRefused, match="kill switch"):
        authorise_rollback(
            world.head, situation=replace(killed, head=replace(world.head, number=9)), signatures=[]
        )


def test_a_key_that_has_expired_kills_nothing() -> None:
    people = [replace(PEOPLE[0], expires=NOW), *PEOPLE[1:]]
    with pytest.raises(ThresholdNotMet):
        kill(sign_act(KEYS[0], act()), people=people)
    assert kill(sign_act(KEYS[0], act()), people=[replace(PEOPLE[0], expires=NOW + 1)])
