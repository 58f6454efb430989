"""Threshold BLS12-381: every quorum makes the one group signature, and nothing less does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import py_arkworks_bls12381 as curve
import pytest

from cambium.core.canonical import canonical_json, digest_bytes
from cambium.core.errors import PolicyInvalid, SignatureInvalid, TrustError
from cambium.core.nouns import Act, Action, Signature, SignedAct
from cambium.trust.acts import (
    check_act,
    sign_act,
)
from cambium.trust.keys import PublicKey, SigningKey, generate_key, wrap
from cambium.trust.providers.bls12_381 import (
    _DST,
    Ceremony,
    check_group,
    combine,
    deal,
    is_safe,
    share_public,
    verify,
)
from cambium.trust.quorum import Approver, QuorumResult, count_quorum

ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
NOW = 1_700_000_000
TARGET, POLICY = digest_bytes(b"proposal"), digest_bytes(b"policy")
EXPECTED = Act(action=Action.APPROVE, target=TARGET, state_version=12, policy=POLICY)
ACT = SignedAct(
    action=Action.APPROVE, target=TARGET, state_version=12, expires=NOW + 600, policy=POLICY
)
DATA = canonical_json(ACT.to_json())
SIZES = [(2, 3), (3, 5)]
DEALT = {size: deal(*size) for size in SIZES}
SHARES = DEALT[2, 3].shares
KEYS = [wrap(share) for share in SHARES]


def secret_of(dealt: Ceremony) -> int:
    """Rebuilds the group's secret in plain integers, as nobody ever should."""
    shares = {s.index: int.from_bytes(s.secret, "big") for s in dealt.shares[: dealt.k]}
    total = 0
    for i, value in shares.items():
        weight = 1
        for j in shares:
            if j != i:
                weight = weight * j * pow(j - i, -1, ORDER) % ORDER
        total += value * weight
    return total % ORDER


def people(keys: Sequence[SigningKey]) -> list[Approver]:
    return [Approver(name=f"person {i}", public=key.public_key) for i, key in enumerate(keys)]


def counted(signatures: Sequence[Signature], k: int = 2) -> QuorumResult:
    return count_quorum(signatures, approvers=people(KEYS), expectation=EXPECTED, k=k, now=NOW)


@pytest.mark.parametrize("size", SIZES)
def test_every_quorum_makes_the_same_signature_and_no_smaller_group_any(
    size: tuple[int, int],
) -> None:
    k, _ = size
    dealt = DEALT[size]
    parts = {share.index: share.sign(DATA) for share in dealt.shares}
    made = {combine({i: parts[i] for i in chosen}) for chosen in combinations(parts, k)}
    assert len(list(combinations(parts, k))) == {(2, 3): 3, (3, 5): 10}[size]
    (signature,) = made
    assert len(signature) == 96 and verify(dealt.group, DATA, signature)
    for smaller in range(1, k):
        for chosen in combinations(parts, smaller):
            assert not verify(dealt.group, DATA, combine({i: parts[i] for i in chosen}))
    assert verify(dealt.group, DATA, combine(parts))
    # What the whole secret would have signed, by arithmetic of its own.
    scalar = curve.Scalar.from_be_bytes(secret_of(dealt).to_bytes(32, "big"))
    assert bytes((curve.G1Point() * scalar).to_compressed_bytes()) == dealt.group
    whole = curve.G2Point.hash_to_curve(DATA, _DST) * scalar
    assert bytes(whole.to_compressed_bytes()) == signature


@pytest.mark.parametrize("size", SIZES)
def test_everybody_can_check_a_share_against_the_ceremony(size: tuple[int, int]) -> None:
    dealt = DEALT[size]
    assert dealt.commitments[0] == dealt.group and len(dealt.commitments) == size[0]
    for share in dealt.shares:
        assert share_public(dealt.commitments, share.index) == share.public
        assert share_public(dealt.commitments, share.index + 1) != share.public
    publics = [share.public for share in dealt.shares]
    check_group(dealt.group, publics, k=size[0])
    swapped = [publics[1], publics[0], *publics[2:]]
    for group, listed, k in (
        (dealt.group, swapped, size[0]),
        (dealt.group, publics, size[0] - 1),
        (dealt.group, publics[: size[0] - 1], size[0]),
        (publics[0], publics, size[0]),
        (deal(*size).group, publics, size[0]),
        (dealt.group, [*publics[:-1], deal(2, 2).shares[0].public], size[0]),
    ):  # fmt: skip
        with pytest.raises(PolicyInvalid):
            check_group(group, listed, k=k)


def test_one_person_alone_has_a_group_of_one() -> None:
    dealt = deal(1, 1)
    assert dealt.group == dealt.shares[0].public
    for k, n in ((0, 1), (2, 1), (1, 65)):
        with pytest.raises(PolicyInvalid):
            deal(k, n)


def test_quorums_of_shares_count_like_any_other() -> None:
    signed = [sign_act(key, ACT) for key in KEYS]
    for size in range(4):
        for chosen in combinations(signed, size):
            assert counted(chosen).met == (size >= 2)
    assert len(counted([signed[0], signed[0], signed[0]]).signatures) == 1
    # One key under two ids, and a stranger's.
    alias = replace(signed[0], key_id="bls12-381:" + "0" * 32)
    assert len(counted([signed[0], alias, sign_act(generate_key(), ACT)]).signatures) == 1
    twice = people([KEYS[0], KEYS[0], KEYS[1]])
    found = count_quorum([signed[0]] * 2, approvers=twice, expectation=EXPECTED, k=2, now=NOW)
    assert (found.n, found.met) == (2, False)
    with pytest.raises(PolicyInvalid):
        count_quorum(signed, approvers=people(KEYS), expectation=EXPECTED, k=0, now=NOW)


def test_parts_with_another_expiry_do_not_count_together() -> None:
    later = replace(ACT, expires=ACT.expires + 1)
    first, second, third = KEYS
    mixed = [sign_act(first, later), sign_act(second, ACT), sign_act(third, ACT)]
    assert [s.key_id for s in counted(mixed).signatures] == [second.key_id, third.key_id]
    assert not counted(mixed[:2]).met
    assert "expiry" in counted(mixed[:2]).refused[0][1]


@pytest.mark.parametrize(
    "change",
    [
        {"domain_tag": "cambium.v2"},
        {"action": Action.ROLLBACK},
        {"target": POLICY},
        {"state_version": 11},
        {"expires": NOW},
        {"policy": TARGET},
    ],
)
def test_another_act_is_not_this_one(change: dict[str, object]) -> None:
    signed = sign_act(KEYS[0], replace(ACT, **change))  # type: ignore[arg-type]
    with pytest.raises(TrustError):
        check_act(signed, public_key=KEYS[0].public_key, expected=EXPECTED, now=NOW)
    moved = replace(signed, act=ACT)
    with pytest.raises(SignatureInvalid):
        check_act(moved, public_key=KEYS[0].public_key, expected=EXPECTED, now=NOW)


def off_subgroup(size: int) -> bytes:
    """Returns a point of the curve that is not of the group's order."""
    kind = curve.G1Point if size == 48 else curve.G2Point
    for x in range(1, 1000):
        raw = bytearray(x.to_bytes(size, "big"))
        raw[0] |= 0x80
        try:
            point = kind.from_compressed_bytes_unchecked(bytes(raw))
        except ValueError:
            continue
        if not point.is_in_subgroup():
            return bytes(raw)
    raise AssertionError(size)


def test_the_identity_and_points_off_the_subgroup_are_refused() -> None:
    identity = b"\xc0" + bytes(47)
    good = KEYS[0].public_key.raw
    for bad in (identity, b"\xff" * 48, bytes(48), off_subgroup(48)):
        assert not is_safe(bad)
        with pytest.raises(SignatureInvalid):
            PublicKey(raw=bad.hex())
    assert is_safe(bytes.fromhex(good))
    with pytest.raises(SignatureInvalid):
        PublicKey(raw=good.upper())
    signature = SHARES[0].sign(DATA)
    for bad in (b"\xc0" + bytes(95), b"\xff" * 96, off_subgroup(96), b"", signature[:-1]):
        assert not verify(SHARES[0].public, DATA, bad)
    assert verify(SHARES[0].public, DATA, signature)


def test_no_mutated_partial_or_group_signature_is_accepted() -> None:
    pick = random.Random(3)
    dealt = DEALT[2, 3]
    group = combine({s.index: s.sign(DATA) for s in dealt.shares[:2]})
    for key, good in ((SHARES[0].public, SHARES[0].sign(DATA)), (dealt.group, group)):
        assert verify(key, DATA, good)
        for _ in range(500):
            flipped = bytearray(good)
            flipped[pick.randrange(96)] ^= 1 << pick.randrange(8)
            assert not verify(key, DATA, bytes(flipped))
        for other in (SHARES[1].sign(DATA), SHARES[0].sign(DATA + b" ")):
            assert not verify(key, DATA, other)


def test_keys_of_both_schemes_never_stand_for_each_other() -> None:
    plain = generate_key()
    signed = sign_act(plain, ACT)
    for key in (KEYS[0], plain):
        other = plain if key is KEYS[0] else KEYS[0]
        with pytest.raises(SignatureInvalid):
            check_act(
                replace(signed, key_id=other.key_id),
                public_key=KEYS[0].public_key,
                expected=EXPECTED,
                now=NOW,
            )
    assert not KEYS[0].public_key.verify(DATA, plain.sign(DATA))
    assert not plain.public_key.verify(DATA, KEYS[0].sign(DATA))
    assert KEYS[0].key_id.startswith("bls12-381:") and plain.key_id.startswith("ed25519:")
