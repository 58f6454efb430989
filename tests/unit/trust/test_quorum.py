from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from cambium.core.canonical import digest_bytes
from cambium.core.errors import PolicyInvalid
from cambium.core.nouns import Act, Action, Signature, SignedAct
from cambium.trust.acts import sign_act
from cambium.trust.keys import generate_key
from cambium.trust.quorum import Approver, QuorumResult, count_quorum

NOW = 1_000
KEYS = [generate_key() for _ in range(5)]
EXPECTED = Act(action=Action.APPROVE, target=digest_bytes(b"t"), state_version=1, policy="p")
ACT = SignedAct(
    action=Action.APPROVE, target=EXPECTED.target, state_version=1, expires=NOW + 9, policy="p"
)
SIGNED = [sign_act(key, ACT) for key in KEYS]
PEOPLE = [Approver(name=f"person {i}", public=key.public_key) for i, key in enumerate(KEYS)]


def count(signatures: list[Signature], people: list[Approver], k: int) -> QuorumResult:
    return count_quorum(signatures, approvers=people, expectation=EXPECTED, k=k, now=NOW)


@pytest.mark.parametrize(("k", "n"), [(2, 3), (3, 5), (1, 1), (5, 5)])
def test_every_subset_counts_exactly_its_size(k: int, n: int) -> None:
    tried = 0
    for size in range(n + 1):
        for chosen in combinations(range(n), size):
            result = count([SIGNED[i] for i in chosen], PEOPLE[:n], k)
            assert result.met == (size >= k)
            assert [a.key_id for a in result.signatures] == [KEYS[i].key_id for i in chosen]
            assert result.refused == ()
            tried += 1
    assert tried == 2**n


def test_a_key_counts_once_however_often_it_signs() -> None:
    result = count([SIGNED[0]] * 4, PEOPLE[:3], 2)
    assert len(result.signatures) == 1
    assert not result.met
    assert [why for _, why in result.refused] == ["this key signed already; it counts once"] * 3


def test_a_later_signature_of_the_same_key_counts_once_too() -> None:
    later = sign_act(KEYS[0], SignedAct(**(ACT.__dict__ | {"expires": NOW + 20})))
    assert not count([SIGNED[0], later], PEOPLE[:3], 2).met


def test_the_same_key_under_two_names_is_one_key() -> None:
    twins = [
        Approver(name="a", public=KEYS[0].public_key),
        Approver(name="b", public=KEYS[0].public_key),
    ]
    assert count([SIGNED[0], SIGNED[0]], twins, 1).n == 1
    with pytest.raises(PolicyInvalid):
        count([SIGNED[0], SIGNED[0]], twins, 2)


def test_strangers_are_refused_by_name() -> None:
    result = count([SIGNED[3], SIGNED[0], SIGNED[1]], PEOPLE[:3], 2)
    assert result.met
    assert result.refused == ((KEYS[3].key_id, "not an approver of this policy"),)
    assert list(result.signatures) == SIGNED[:2]


def test_a_bad_signature_neither_counts_nor_blocks_the_good_one() -> None:
    bad = Signature(key_id=KEYS[0].key_id, signature="00" * 64, act=ACT)
    result = count([bad, SIGNED[0], SIGNED[1]], PEOPLE[:3], 2)
    assert result.met
    assert len(result.refused) == 1


@pytest.mark.parametrize("k", [0, -1, 4, True, 1.5])
def test_an_impossible_quorum_is_an_error(k: int) -> None:
    with pytest.raises(PolicyInvalid):
        count(SIGNED[:3], PEOPLE[:3], k)


def test_no_approvers_is_an_error() -> None:
    with pytest.raises(PolicyInvalid):
        count(SIGNED, [], 1)


def test_a_key_counts_until_it_expires() -> None:
    people = [replace(PEOPLE[0], expires=NOW + 1), *PEOPLE[1:]]

    def counted(now: int) -> QuorumResult:
        return count_quorum(SIGNED[:2], approvers=people, expectation=EXPECTED, k=2, now=now)

    assert counted(NOW).met
    late = counted(NOW + 1)
    assert not late.met and late.refused == ((KEYS[0].key_id, "this key has expired"),)
    assert not PEOPLE[1].has_expired(2**62)
