from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from tests.policies import make_policy, policy_text

from cambium.core.canonical import digest_bytes
from cambium.core.errors import (
    DigestMismatch,
    PolicyInvalid,
    ReplayDetected,
    SignatureInvalid,
    ThresholdNotMet,
)
from cambium.core.nouns import Action, SignedAct
from cambium.lifecycle.policy_change import authorise_policy, hand_over_target, widenings
from cambium.trust.acts import sign_act
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.policy import SignedPolicy, parse_policy, sign_policy

NOW = 50_000
ROOT = generate_key()


def changed(world: Any, **changes: str) -> bytes:
    """Returns the text of the world's policy, one version on, with single lines changed."""
    text = policy_text(world.keys)
    for name, value in {"version": "2", **changes}.items():
        text, found = re.subn(rf"(?m)^{name} = .+$", f"{name} = {value}", text, count=1)
        assert found, name
    return text.encode()


def change(world: Any, toml: bytes, keys: list[SigningKey] | None = None, **more: Any) -> Any:
    situation = replace(world.situation, **more.pop("situation", {}))
    root, at = more.pop("root", ROOT), more.pop("at", situation.state_version)
    fields: dict[str, Any] = {
        "action": Action.WIDEN_SCOPE, "target": digest_bytes(toml),
        "state_version": situation.state_version, "expires": NOW + 60,
        "policy": world.policy.digest, **more,
    }  # fmt: skip
    signed = sign_policy(root, toml, state_version=at)
    signatures = [sign_act(key, SignedAct(**fields)) for key in keys or []]
    return authorise_policy(signed, signatures, situation=situation, root_public=ROOT.public_key)


def test_the_root_alone_can_be_stricter(world: Any) -> None:
    for changes in ({}, {"k": "3"}, {"max_rank": "8"}, {"learn": "false"}, {"threshold": "0.1"}):
        toml = changed(world, **changes)
        policy, wider, counted = change(world, toml)
        assert (policy, wider, counted) == (parse_policy(toml), (), ())


def test_whoever_widens_needs_the_approvers_too(world: Any) -> None:
    toml = changed(world, max_rank="64")
    for size in range(world.policy.approvers.k):
        for group in combinations(world.keys, size):
            with pytest.raises(ThresholdNotMet):
                change(world, toml, list(group))
    for group in combinations(world.keys, world.policy.approvers.k):
        policy, wider, counted = change(world, toml, list(group))
        assert policy.learning.max_rank == 64
        assert wider == ("learning.max_rank: 16 -> 64",)
        assert {s.key_id for s in counted} == {key.key_id for key in group}
    with pytest.raises(ThresholdNotMet):
        change(world, toml, [world.keys[0], world.keys[0], ROOT, generate_key()])


@pytest.mark.parametrize(
    "field",
    [
        {"action": Action.POLICY},
        {"target": digest_bytes(b"other")},
        {"state_version": 2},
        {"expires": NOW},
        {"policy": digest_bytes(b"other")},
        {"domain_tag": "other"},
    ],
)
def test_approvers_say_yes_to_exactly_this(world: Any, field: dict[str, Any]) -> None:
    toml = changed(world, max_rank="64")
    with pytest.raises(ThresholdNotMet):
        change(world, toml, world.keys, **field)


def test_an_older_text_does_not_come_back(world: Any) -> None:
    for at in (0, world.state_version - 1, world.state_version + 1):
        with pytest.raises(ReplayDetected):
            change(world, changed(world), at=at)
    for version in ("1",):
        with pytest.raises(PolicyInvalid, match="version"):
            change(world, changed(world, version=version), world.keys)


def test_nobody_but_the_root_signs_policies(world: Any) -> None:
    for root in (generate_key(), world.keys[0]):
        with pytest.raises(SignatureInvalid):
            change(world, changed(world), world.keys, root=root)
    signed = sign_policy(ROOT, changed(world), state_version=world.state_version)
    other = SignedPolicy(toml=changed(world, max_rank="64"), signature=signed.signature)
    with pytest.raises(DigestMismatch):
        authorise_policy(other, [], situation=world.situation, root_public=ROOT.public_key)


def test_a_revoked_key_is_neither_counted_nor_listed(world: Any) -> None:
    gone, second, third = world.keys
    revoked = {"revoked_keys": frozenset({gone.key_id})}
    with pytest.raises(PolicyInvalid, match="revoked"):
        change(world, changed(world), world.keys, situation=revoked)
    toml = _with_new_person(changed(world, max_rank="64"), gone, generate_key())
    with pytest.raises(ThresholdNotMet):
        change(world, toml, [gone, second], situation=revoked)
    assert change(world, toml, [second, third], situation=revoked)[1]


def test_where_no_quorum_is_left_the_root_puts_others_in_their_place(world: Any) -> None:
    gone, lost, _ = world.keys
    toml = _with_new_person(changed(world), gone, generate_key())
    toml = _with_new_person(toml, lost, generate_key())
    revoked = {"revoked_keys": frozenset({gone.key_id, lost.key_id})}
    _, wider, counted = change(world, toml, situation=revoked)
    assert len(wider) == 2 and counted == ()
    # That, and nothing else.
    more = toml.replace(b"max_rank = 16", b"max_rank = 64")
    with pytest.raises(PolicyInvalid):
        change(world, more, situation=revoked)


def _with_new_person(toml: bytes, old: SigningKey, new: SigningKey) -> bytes:
    found = toml.replace(old.public_key.raw.encode(), new.public_key.raw.encode())
    assert found != toml
    return found


def found(world: Any, **changes: str) -> list[str]:
    old, new = make_policy(world.keys), make_policy(world.keys, **changes)
    return [path.partition(":")[0] for path in widenings(old.content, new.content)]


def test_the_same_policy_widens_nothing(world: Any) -> None:
    assert found(world) == []
    assert found(world, version="9", metric='"renamed"') == []


LOOSER = [
    ("k", "1", "approvers.k"),
    ("profile", '"development"', None),
    ("then", '"base"', "kill.then"),
    ("allowed", '["*", "law"]', None),
    ("owners", '{ law = "acme" }', None),
    ("accept", '["software-dev", "tdx"]', "attestation.accept.tdx"),
    ("names", '["text", "tools"]', "scopes.names.tools"),
    ("tenants", '["default", "acme"]', "traffic.tenants.acme"),
    ("threshold", "-0.5", "gates.domain_gain.threshold"),
    ("passes_required", "1", "gates.domain_gain.passes_required"),
    ("confidence", "0.6", "gates.domain_gain.confidence"),
    ("min_novelty", "0.0", "traffic.min_novelty"),
    ("monitor_margin_nats", "1.0", "learning.monitor_margin_nats"),
    ("max_relative_change", "9.0", "learning.max_relative_change"),
    ("replay_tokens", "200000", "learning.replay_tokens"),
    ("max_ttl_s", "99999999", "learning.max_ttl_s"),
]


@pytest.mark.parametrize(("field", "value", "path"), LOOSER)
def test_what_is_looser_widens(world: Any, field: str, value: str, path: str | None) -> None:
    assert found(world, **{field: value}) == ([path] if path else [])


def test_every_number_widens_in_one_direction_and_no_more(world: Any) -> None:
    """Each number moved a little up and a little down: exactly one of the two widens."""
    text = policy_text(world.keys)
    old, tried = parse_policy(text.encode()), 0
    for match in re.finditer(r"(?m)^(\w+) = (-?[\d.]+)$", text):
        name, value = match[1], float(match[2])
        if name in ("version", "max_items"):
            continue
        both = []
        for factor in (0.9, 1.1) if value else ():
            moved = value * factor if "." in match[2] else value + (1 if factor > 1 else -1)
            number = f"{moved:.6f}" if "." in match[2] else f"{moved:.0f}"
            other = f"{text[: match.start(2)]}{number}{text[match.end(2) :]}"
            try:
                new = parse_policy(other.encode())
            except PolicyInvalid:
                continue  # out of its range: nobody can put it in force
            both.append(list(widenings(old.content, new.content)))
        assert len(both) < 2 or sorted(map(bool, both)) == [False, True], (name, both)
        tried += len(both) == 2
    assert tried > 20


def test_what_is_gone_is_stricter_but_for_owners_and_gates(world: Any) -> None:
    old = make_policy(world.keys, owners='{ law = "acme" }', allowed='["law", "code"]').content
    new = make_policy(world.keys, allowed='["law"]').content
    assert list(widenings(old, new)) == ["domains.owners.law: acme -> not there"]
    moved = make_policy(world.keys, owners='{ law = "globex" }', allowed='["law"]').content
    assert list(widenings(old, moved)) == ["domains.owners.law: acme -> globex"]
    anything = make_policy(world.keys, owners='{ law = "acme" }').content
    assert list(widenings(old, anything)) == ["domains.allowed.*: not there -> True"]
    gates = [gate for gate in new["gates"] if gate["name"] != "integrity"]  # type: ignore[union-attr,attr-defined]
    fewer = list(widenings(new, {**new, "gates": gates}))
    assert fewer and all(path.startswith("gates.integrity.") for path in fewer)
    assert list(widenings({**new, "gates": gates}, new)) == []


def test_a_production_state_does_not_quietly_become_a_development_one(world: Any) -> None:
    production = make_policy(world.keys, profile='"production"', accept="[]").content
    development = make_policy(world.keys).content
    assert list(widenings(development, production)) == []
    assert len(list(widenings(production, development))) == 2


def test_a_key_that_counts_longer_widens(world: Any) -> None:
    text = policy_text(world.keys)

    def with_expiry(expires: int) -> Any:
        return parse_policy(text.replace("expires = 0", f"expires = {expires}", 1).encode()).content

    for was, now, wider in (
        (0, 9, False),
        (9, 8, False),
        (9, 9, False),
        (8, 9, True),
        (9, 0, True),
    ):
        assert bool(list(widenings(with_expiry(was), with_expiry(now)))) == wider, (was, now)


@pytest.mark.parametrize("name", ["version", "metric", "max_items", "production", "nothing", "k"])
def test_a_name_that_means_something_elsewhere_hides_nothing(world: Any, name: str) -> None:
    assert found(world, tenants=f'["default", "{name}"]') == [f"traffic.tenants.{name}"]
    assert found(world, names=f'["text", "{name}"]') == [f"scopes.names.{name}"]
    assert found(world, accept=f'["software-dev", "{name}"]') == [f"attestation.accept.{name}"]
    old = make_policy(world.keys, owners=f'{{ {name} = "acme" }}').content
    for owner in (name, "globex"):
        new = make_policy(world.keys, owners=f'{{ {name} = "{owner}" }}').content
        assert len(list(widenings(old, new))) == 1


def test_a_policy_that_nobody_could_act_under_is_refused(world: Any) -> None:
    toml = changed(world).replace(b"expires = 0", f"expires = {NOW}".encode())
    with pytest.raises(PolicyInvalid, match="still count"):
        change(world, toml, world.keys)
    two_left = changed(world).replace(b"expires = 0", f"expires = {NOW}".encode(), 1)
    assert change(world, two_left)[1] == ()


def test_who_may_kill_never_changes_quietly(world: Any) -> None:
    text = policy_text(world.keys)
    person = f'{{ name = "op", public = "{generate_key().public_key.raw}", expires = 0 }}'
    with_one = parse_policy(text.replace("operators = [", f"operators = [{person}", 1).encode())
    without = parse_policy(text.encode())
    for old, new in ((with_one, without), (without, with_one)):
        assert len(list(widenings(old.content, new.content))) == 1


def hand_over(world: Any, toml: bytes, **changes: Any) -> Any:
    """Puts a new root in place of `ROOT`, each step of it as it should be but for the changes."""
    situation = world.situation
    new = changes.get("new", NEW_ROOT)
    at = changes.get("at", situation.state_version)
    act = SignedAct(
        action=changes.get("action", Action.POLICY),
        target=changes.get("target", hand_over_target(toml, NEW_ROOT.public_key)),
        state_version=changes.get("version", situation.state_version),
        expires=changes.get("expires", NOW + 60),
        policy=world.policy.digest,
    )
    signatures = [sign_act(key, act) for key in changes.get("keys", [ROOT])]
    return authorise_policy(
        sign_policy(changes.get("signer", NEW_ROOT), toml, state_version=at),
        signatures,
        situation=situation,
        root_public=ROOT.public_key,
        new_root=new.public_key,
    )


NEW_ROOT = generate_key()


def test_the_root_changes_hands_where_both_sign(world: Any) -> None:
    toml = changed(world)
    policy, wider, counted = hand_over(world, toml)
    assert (policy, wider) == (parse_policy(toml), ())
    assert [s.key_id for s in counted] == [ROOT.key_id]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"keys": []}, ThresholdNotMet),  # only the new one
        ({"keys": [NEW_ROOT]}, ThresholdNotMet),
        ({"signer": ROOT}, SignatureInvalid),  # only the old one
        ({"new": generate_key()}, SignatureInvalid),  # another than the one that signed
        ({"version": 2}, ThresholdNotMet),
        ({"at": 2}, ReplayDetected),
        ({"expires": NOW}, ThresholdNotMet),
        ({"action": Action.WIDEN_SCOPE}, ThresholdNotMet),
        ({"target": hand_over_target(b"another text", NEW_ROOT.public_key)}, ThresholdNotMet),
    ],
)
def test_neither_root_alone_and_nothing_old_changes_it(
    world: Any, changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        hand_over(world, changed(world), **changes)


def test_what_the_old_root_signed_for_one_key_is_for_no_other(world: Any) -> None:
    toml, thief = changed(world), generate_key()
    with pytest.raises(ThresholdNotMet):
        hand_over(world, toml, new=thief, signer=thief)
    mine = hand_over_target(toml, thief.public_key)
    assert hand_over(world, toml, new=thief, signer=thief, target=mine)


def test_a_new_root_widens_no_more_than_the_old_one_could(world: Any) -> None:
    with pytest.raises(ThresholdNotMet, match="widen_scope"):
        hand_over(world, changed(world, max_rank="64"))


def test_a_policy_is_for_one_state(world: Any) -> None:
    for state in ("1" * 32, "0" * 31 + "1"):
        with pytest.raises(PolicyInvalid, match="another state"):
            change(world, changed(world, state=f'"{state}"'), world.keys)
    assert change(world, changed(world, state=f'"{"0" * 32}"'))
