"""Evaluators and attesters: whose signatures make evidence and attestation count, and whose not."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.looked import ENVELOPES, blockers, evidence_of
from tests.policies import policy_text

from cambium.core.errors import IllegalTransition, NotMergeable, PolicyInvalid
from cambium.core.nouns import ProposalState
from cambium.lifecycle.evidence import evidence_root, is_void
from cambium.lifecycle.policy_change import widenings
from cambium.lifecycle.proposal import EvidenceVoid, Proposal, advance
from cambium.lifecycle.publish import authorise_merge
from cambium.trust.attestation import AttestationResult
from cambium.trust.dsse import countersign, seal
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.policy import Policy, parse_policy

if TYPE_CHECKING:
    from .conftest import World

NOW = 50_000
KEYS = [generate_key() for _ in range(5)]
OTHERS = [generate_key() for _ in range(5)]
SIZES = [(2, 3), (3, 5)]


def table(name: str, keys: Sequence[SigningKey], k: int, expires: Sequence[int] = ()) -> str:
    ends = [*expires, *[0] * len(keys)]
    people = ", ".join(
        f'{{ name = "{name} {i}", public = "{key.public_key.raw}", expires = {ends[i]} }}'
        for i, key in enumerate(keys)
    )
    return f"\n[{name}]\nk = {k}\nlist = [{people}]\n"


def ruled(world: World, *tables: str) -> Policy:
    return parse_policy((policy_text(world.keys) + "".join(tables)).encode())


def evaluated(world: World, k: int, n: int, signers: Sequence[SigningKey], **changes: Any) -> World:
    """The world where k of n of `KEYS` are evaluators, and these sign every look."""
    policy = ruled(world, table("evaluators", KEYS[:n], k, **changes))
    return replace(world, policy=policy, evaluators=tuple(signers))


def merge(world: World, proposal: Proposal, **changes: Any) -> object:
    return authorise_merge(
        proposal,
        situation=replace(world.situation, **changes),
        evidence=world.evidence(proposal),
        router_digest=world.router,
    )


def refused(world: World, proposal: Proposal, **changes: Any) -> list[str]:
    with pytest.raises(NotMergeable) as caught:
        merge(world, proposal, **changes)
    found = caught.value.detail["blockers"]
    assert found == list(blockers(proposal, replace(world.situation, **changes)))
    return found  # type: ignore[return-value]


@pytest.mark.parametrize(("k", "n"), SIZES)
def test_every_quorum_of_evaluators_merges_and_no_smaller_group(
    world: World, k: int, n: int
) -> None:
    for size in range(n + 1):
        for signers in combinations(KEYS[:n], size):
            given_ = evaluated(world, k, n, signers)
            proposal = given_.mergeable()
            if size >= k:
                assert merge(given_, proposal)
            else:
                assert refused(given_, proposal) == [f"evidence: {size} of {k} evaluators signed"]


@pytest.mark.parametrize(("k", "n"), SIZES)
def test_every_quorum_of_attesters_counts_and_no_smaller_group(
    world: World, attested_by: Any, k: int, n: int
) -> None:
    ruled_ = replace(world, policy=ruled(world, table("attesters", OTHERS[:n], k)))
    proposal = ruled_.mergeable()
    for size in range(n + 1):
        for signers in combinations(OTHERS[:n], size):
            result = attested_by(world.attestation, *signers)
            if size >= k:
                assert merge(ruled_, proposal, attestation=result)
                continue
            (why,) = refused(ruled_, proposal, attestation=result)
            assert why.startswith("attestation: ") and ("no attester" in why or f"of {k}" in why)


def test_a_key_counts_once_however_often_it_signed(world: World, attested_by: Any) -> None:
    twice = evaluated(world, 2, 3, [KEYS[0], KEYS[0], KEYS[0]])
    assert refused(twice, twice.mergeable()) == ["evidence: 1 of 2 evaluators signed"]
    ruled_ = replace(world, policy=ruled(world, table("attesters", OTHERS[:3], 2)))
    result = attested_by(world.attestation, OTHERS[0], OTHERS[0])
    assert refused(ruled_, ruled_.mergeable(), attestation=result) == [
        "attestation: 1 of 2 attesters signed"
    ]


@pytest.mark.parametrize("name", ["evaluators", "attesters"])
def test_no_policy_lists_one_key_twice_or_in_two_roles(world: World, name: str) -> None:
    for keys in ([KEYS[0], KEYS[0]], [KEYS[0], world.keys[0]]):
        with pytest.raises(PolicyInvalid, match="share a key"):
            ruled(world, table(name, keys, 1))
    with pytest.raises(PolicyInvalid, match="share a key"):
        ruled(world, table("evaluators", KEYS[:2], 1), table("attesters", KEYS[1:3], 1))
    for k in (0, 3):
        with pytest.raises(PolicyInvalid):
            ruled(world, table(name, KEYS[:2], k))
    with pytest.raises(PolicyInvalid):
        ruled(world, table(name, [], 1))


def test_nobody_else_evaluates_or_attests(world: World, attested_by: Any) -> None:
    """Approvers, attesters, strangers and the server sign in vain where evaluators are named."""
    strangers = [*world.keys, OTHERS[0], generate_key(), world.server]
    policy = ruled(world, table("evaluators", KEYS[:2], 1), table("attesters", OTHERS[:1], 1))
    named = replace(world, policy=policy, evaluators=tuple(strangers))
    good = attested_by(world.attestation, OTHERS[0])
    proposal = named.mergeable()
    assert refused(named, proposal, attestation=good) == ["evidence: 0 of 1 evaluators signed"]
    wrong = attested_by(world.attestation, *world.keys, KEYS[0], world.server)
    right = replace(named, evaluators=(KEYS[1],))
    assert refused(right, right.mergeable(), attestation=wrong) == [
        "attestation: 0 of 1 attesters signed"
    ]
    assert merge(right, right.mergeable(), attestation=good)


def test_an_expired_or_revoked_evaluator_counts_no_more(world: World) -> None:
    expired = evaluated(world, 1, 2, [KEYS[0]], expires=[NOW])
    assert refused(expired, expired.mergeable()) == [
        "evidence: 0 of 1 evaluators signed; evaluators 0's is expired"
    ]
    still = evaluated(world, 1, 2, [KEYS[0]], expires=[NOW + 1])
    proposal = still.mergeable()
    assert merge(still, proposal)
    # Revoked between the look and the merge.
    gone = frozenset({KEYS[0].key_id})
    assert refused(still, proposal, revoked_keys=gone) == [
        "evidence: 0 of 1 evaluators signed; evaluators 0's is revoked"
    ]


def test_an_expired_or_revoked_attester_counts_no_more(world: World, attested_by: Any) -> None:
    result = attested_by(world.attestation, OTHERS[0])
    ruled_ = replace(world, policy=ruled(world, table("attesters", OTHERS[:1], 1, [NOW])))
    assert "expired" in refused(ruled_, ruled_.mergeable(), attestation=result)[0]
    ruled_ = replace(world, policy=ruled(world, table("attesters", OTHERS[:1], 1)))
    gone = frozenset({OTHERS[0].key_id})
    found = refused(ruled_, ruled_.mergeable(), attestation=result, revoked_keys=gone)
    assert "revoked" in found[0]


def test_forged_evaluations_count_for_nothing(world: World) -> None:
    honest = evaluated(world, 1, 1, [KEYS[0]])
    proposal = honest.mergeable()
    whole = evidence_of(proposal)
    others = evaluated(world, 1, 1, [KEYS[0]])
    elsewhere = evidence_of(others.mergeable())
    forger = generate_key()
    for number, envelope in enumerate(whole):
        borrowed: Any = elsewhere[number - 1]["signatures"]
        named = countersign(forger, {**envelope, "signatures": envelope["signatures"][:1]})  # type: ignore[index]
        named["signatures"][1]["keyid"] = KEYS[0].key_id  # type: ignore[index]
        flipped: Any = countersign(KEYS[0], {**named, "signatures": named["signatures"][:1]})  # type: ignore[index]
        raw = bytearray(base64.b64decode(flipped["signatures"][1]["sig"]))
        raw[number % 64] ^= 1
        flipped["signatures"][1]["sig"] = base64.b64encode(raw).decode()
        bare = {**envelope, "signatures": envelope["signatures"][:1]}  # type: ignore[index]
        swapped = {**envelope, "signatures": [envelope["signatures"][0], borrowed[1]]}  # type: ignore[index]
        for forged in (named, flipped, bare, swapped):
            ENVELOPES[proposal.evidence_root or ""] = [
                *whole[:number], forged, *whole[number + 1 :]
            ]  # fmt: skip
            (why,) = refused(honest, proposal)
            assert why.startswith("evidence: 0 of 1 evaluators signed")
    ENVELOPES[proposal.evidence_root or ""] = whole
    assert merge(honest, proposal)


def test_what_approvers_sign_does_not_change_with_who_evaluates(world: World) -> None:
    """The root is over what the server recorded; one who signs later voids no approval."""
    one = evaluated(world, 2, 3, [KEYS[0]])
    proposal = one.mergeable()
    assert refused(one, proposal)
    more = [countersign(KEYS[1], envelope) for envelope in evidence_of(proposal)]
    assert evidence_root(more) == proposal.evidence_root
    ENVELOPES[proposal.evidence_root or ""] = more
    assert merge(one, proposal)


def test_a_policy_without_the_roles_leaves_them_to_the_servers_key(
    world: World, attested_by: Any
) -> None:
    assert world.policy.evaluators is None and world.policy.attesters is None
    assert "evaluators" not in world.policy.content
    assert merge(world, world.mergeable())
    stranger = attested_by(world.attestation, generate_key())
    assert refused(world, world.mergeable(), attestation=stranger) == [
        "attestation: 0 of 1 attesters signed"
    ]


def test_in_production_nobody_has_a_role_that_the_policy_leaves_out(
    world: World, attested_by: Any
) -> None:
    hard = replace(world.attestation, label="tdx", hardware_rooted=True, debug=False)

    def production(*tables: str) -> World:
        text = policy_text(world.keys).replace('"development"', '"production"')
        policy = parse_policy((text.replace("software-dev", "tdx") + "".join(tables)).encode())
        return replace(world, policy=policy, evaluators=(KEYS[0],))

    def signed(*keys: SigningKey) -> AttestationResult:
        return attested_by(hard, *keys)  # type: ignore[no-any-return]

    bare = production()
    found = refused(bare, bare.mergeable(), attestation=signed(world.server))
    assert [line.partition(":")[0] for line in found] == ["attestation", "evidence"]
    assert all("production policy says who" in line for line in found)
    whole = production(table("evaluators", KEYS[:1], 1), table("attesters", OTHERS[:1], 1))
    assert merge(whole, whole.mergeable(), attestation=signed(OTHERS[0]))


def test_looks_that_count_no_more_begin_anew_and_are_paid_for(world: World) -> None:
    both = evaluated(world, 1, 2, [KEYS[0]])
    proposal = both.mergeable()
    gone = replace(both.situation, revoked_keys=frozenset({KEYS[0].key_id}))
    succeeded = replace(both.situation, server=generate_key().public_key)
    assert not is_void(evidence_of(proposal), both.situation)
    assert is_void(evidence_of(proposal), gone) and is_void(evidence_of(proposal), succeeded)
    anew = advance(proposal, EvidenceVoid(), policy=both.policy)
    assert (anew.state, anew.looks, anew.approvals) == (ProposalState.CHECKING, (), ())
    assert (anew.candidate_digest, anew.restarts) == (proposal.candidate_digest, 1)
    good = replace(both, evaluators=(KEYS[1],))
    for _ in range(2):
        anew = advance(anew, good.look(anew), policy=good.policy)
    mended = good.approve(anew, 0, 1)
    assert blockers(mended, replace(gone, attestation=both.attestation)) == ()
    # Where one more signature can still come, nothing is void.
    waiting = evaluated(world, 2, 3, [KEYS[0]])
    assert not is_void(evidence_of(waiting.mergeable()), waiting.situation)
    with pytest.raises(IllegalTransition):
        advance(world.propose(), EvidenceVoid(), policy=world.policy)


def test_who_evaluates_and_attests_is_widened_by_a_quorum_only(world: World) -> None:
    old = ruled(world, table("evaluators", KEYS[:3], 2)).content

    def wider(*tables: str) -> list[str]:
        return [line.partition(":")[0] for line in widenings(old, ruled(world, *tables).content)]

    assert wider(table("evaluators", KEYS[:2], 2)) == []
    assert wider(table("evaluators", KEYS[:3], 3)) == []
    assert wider(table("evaluators", KEYS[:3], 1)) == ["evaluators.k"]
    assert wider(table("evaluators", KEYS[:4], 2)) == [f"evaluators.list.{KEYS[3].public_key.raw}"]
    assert wider() == ["evaluators.k"]  # the server's key would have the role
    added = wider(table("evaluators", KEYS[:3], 2), table("attesters", OTHERS[:1], 1))
    assert added == ["attesters.k", f"attesters.list.{OTHERS[0].public_key.raw}"]


@settings(max_examples=60)
@given(
    looks=st.lists(st.sets(st.integers(0, 3)), min_size=2, max_size=2),
    revoked=st.sets(st.integers(0, 3)),
    k=st.integers(1, 3),
)
def test_nothing_is_merged_without_k_good_evaluators_of_every_look(
    surroundings: World, looks: list[set[int]], revoked: set[int], k: int
) -> None:
    """Whoever signs which look, and whoever is revoked since: the threshold holds of each alone."""
    world = surroundings.fresh()
    turn = evaluated(world, k, 3, [])
    proposal = turn.checking()
    for signers in looks:  # the fourth is nobody's evaluator
        turn = replace(turn, evaluators=tuple(KEYS[i] for i in sorted(signers)))
        proposal = advance(proposal, turn.look(proposal), policy=turn.policy)
    proposal = turn.approve(proposal, 0, 1)
    gone = frozenset(KEYS[i].key_id for i in revoked)
    good = min(len({i for i in signers if i < 3} - revoked) for signers in looks) >= k
    if good:
        assert merge(turn, proposal, revoked_keys=gone)
    else:
        assert refused(turn, proposal, revoked_keys=gone)[-1].startswith("evidence: ")


def test_a_mutated_signature_of_an_evaluator_never_counts(world: World) -> None:
    policy = ruled(world, table("evaluators", KEYS[:1], 1))
    situation = replace(world.situation, policy=policy)
    envelope: Any = countersign(KEYS[0], seal(world.server, {"a": 1}))
    assert situation.lacks(envelope, policy.evaluators, "evaluators")[0] == ""
    good = base64.b64decode(envelope["signatures"][1]["sig"])
    for bit in range(8 * len(good)):
        raw = bytearray(good)
        raw[bit // 8] ^= 1 << bit % 8
        bad = {"keyid": KEYS[0].key_id, "sig": base64.b64encode(raw).decode()}
        changed = {**envelope, "signatures": [envelope["signatures"][0], bad]}
        assert situation.lacks(changed, policy.evaluators, "evaluators")[0]
