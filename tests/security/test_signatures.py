"""Nothing that differs from what was signed, or from who may sign it, is ever accepted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cambium.core.canonical import canonical_json, digest_bytes
from cambium.core.errors import CambiumError, PolicyInvalid, TrustError
from cambium.core.nouns import Act, Action, Signature, SignedAct
from cambium.serve.bootstrap import render_policy
from cambium.serve.signed_records import act_from_json
from cambium.trust.acts import (
    MAX_LIFETIME_S,
    check_act,
    sign_act,
)
from cambium.trust.keys import PublicKey, SigningKey
from cambium.trust.policy import parse_policy
from cambium.trust.quorum import Approver, count_quorum

NOW = 1_700_000_000
TARGET, POLICY = digest_bytes(b"proposal"), digest_bytes(b"policy")
EXPECTED = Act(action=Action.APPROVE, target=TARGET, state_version=12, policy=POLICY)
ACT = SignedAct(
    action=Action.APPROVE, target=TARGET, state_version=12, expires=NOW + 600, policy=POLICY
)
ORDER = 2**252 + 27742317777372353535851937790883648493


def fixed_key(number: int) -> SigningKey:
    """The same key in every run, so that a failure can be seen again."""
    private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    raw = private.public_key().public_bytes_raw().hex()
    return SigningKey(private=private, public_key=PublicKey(raw=raw))


KEYS = [fixed_key(number) for number in range(1, 6)]
KEY = KEYS[0]
GOOD = sign_act(KEY, ACT)
PEOPLE = [Approver(name=f"person {i}", public=key.public_key) for i, key in enumerate(KEYS)]


def accepted(signature: Signature, *, key: PublicKey = KEY.public_key, now: int = NOW) -> bool:
    """Whether `check_act` returns; anything it raises must be a refusal it documents."""
    try:
        check_act(signature, public_key=key, expected=EXPECTED, now=now)
    except TrustError:
        return False
    return True


def counted(signatures: list[Signature], *, n: int = 3, k: int = 2, now: int = NOW) -> int:
    result = count_quorum(signatures, approvers=PEOPLE[:n], expectation=EXPECTED, k=k, now=now)
    assert result.met == (len(result.signatures) >= k)
    return len(result.signatures)


def other_acts() -> Iterator[SignedAct]:
    """Every act that differs from the expected one in at least one field."""
    tags = (ACT.domain_tag, "cambium.v2", "", "cambium.v1 ")
    targets = (TARGET, POLICY, "", TARGET.upper(), TARGET + " ", digest_bytes(b"other"))
    versions = (12, 0, 11, 13, 2**63)
    expiries = (ACT.expires, NOW, NOW - 1, 0, NOW + MAX_LIFETIME_S + 1, 2**63)
    policies = (POLICY, TARGET, "", digest_bytes(b"older policy"))
    for tag, action, target, version, expires, policy in product(
        tags, Action, targets, versions, expiries, policies
    ):
        act = SignedAct(
            domain_tag=tag, action=action, target=target,
            state_version=version, expires=expires, policy=policy,
        )  # fmt: skip
        if act != ACT:
            yield act


def test_the_good_one_is_accepted() -> None:
    """Otherwise everything below would be refused for the wrong reason."""
    assert accepted(GOOD)
    assert counted([GOOD, sign_act(KEYS[1], ACT)]) == 2


def test_no_other_byte_anywhere_in_the_signature_is_accepted() -> None:
    raw, tried = bytes.fromhex(GOOD.signature), 0
    for position in range(len(raw)):
        for value in range(256):
            if value == raw[position]:
                continue
            mutated = raw[:position] + bytes([value]) + raw[position + 1 :]
            assert not accepted(replace(GOOD, signature=mutated.hex()))
            tried += 1
    assert tried == 64 * 255


def test_no_other_spelling_of_the_signature_is_accepted() -> None:
    """Among them the malleated s + L, which encodes the same scalar (RFC 8032, 5.1.7)."""
    raw = bytes.fromhex(GOOD.signature)
    scalar = int.from_bytes(raw[32:], "little") + ORDER
    malleated = raw[:32] + scalar.to_bytes(32, "little")
    good = GOOD.signature
    spellings = [malleated.hex(), good.upper(), f" {good}", f"{good}\n", f"0x{good}", good + "00",
                 good[:-2], "", "00" * 64, "ff" * 64]  # fmt: skip
    assert not any(accepted(replace(GOOD, signature=spelling)) for spelling in spellings)


def test_no_act_but_the_signed_one_passes_under_the_signature() -> None:
    tried = 0
    for act in other_acts():
        assert not accepted(replace(GOOD, act=act))
        tried += 1
    assert tried == 4 * 8 * 6 * 5 * 6 * 4 - 1


def test_no_act_but_the_expected_one_passes_though_truly_signed() -> None:
    tried = 0
    for index, act in enumerate(other_acts()):
        if index % 8 and differs_in(act) > 1:
            continue
        assert not accepted(sign_act(KEY, act))
        tried += 1
    assert tried > 2_800


def differs_in(act: SignedAct) -> int:
    return sum(ours != theirs for ours, theirs in zip(
        act.to_json().values(), ACT.to_json().values(), strict=True))  # fmt: skip


def test_every_bit_of_the_payload_counts() -> None:
    payload, tried = canonical_json(ACT.to_json()), 0
    assert KEY.public_key.verify(payload, GOOD.signature)
    for position in range(len(payload)):
        for bit in range(8):
            mutated = bytearray(payload)
            mutated[position] ^= 1 << bit
            assert not KEY.public_key.verify(bytes(mutated), GOOD.signature)
            tried += 1
    assert tried == 8 * len(payload) > 2000


def test_wrong_keys_are_refused_whatever_they_claim() -> None:
    tried = 0
    for signer, claimed, verifier in product(KEYS, KEYS, KEYS):
        signature = replace(sign_act(signer, ACT), key_id=claimed.key_id)
        honest = signer is claimed is verifier
        assert accepted(signature, key=verifier.public_key) == honest
        tried += 1
    assert tried == 125


def test_every_other_public_key_refuses() -> None:
    raw, tried = bytes.fromhex(KEY.public_key.raw), 0
    for position, bit in product(range(32), range(8)):
        mutated = bytearray(raw)
        mutated[position] ^= 1 << bit
        try:
            other = PublicKey(raw=bytes(mutated).hex())
        except TrustError:
            continue
        assert not accepted(replace(GOOD, key_id=other.key_id), key=other)
        tried += 1
    assert tried == 256


@pytest.mark.parametrize("now", [ACT.expires, ACT.expires + 1, ACT.expires + 10**9])
def test_expired_signatures_are_refused(now: int) -> None:
    assert accepted(GOOD, now=ACT.expires - 1)
    assert not accepted(GOOD, now=now)
    assert counted([GOOD, sign_act(KEYS[1], ACT)], now=now) == 0


def test_signatures_of_earlier_and_later_versions_are_refused() -> None:
    versions = [version for version in range(200) if version != EXPECTED.state_version]
    stale = [sign_act(key, replace(ACT, state_version=v)) for v in versions for key in KEYS[:3]]
    assert counted(stale) == 0
    assert len(stale) == 597


@pytest.mark.parametrize(("k", "n"), [(2, 3), (3, 5)])
def test_minimal_quorums_pass_and_everything_smaller_does_not(k: int, n: int) -> None:
    signed = [sign_act(key, ACT) for key in KEYS]
    minimal = smaller = 0
    for size in range(k + 1):
        for chosen in combinations(range(n), size):
            padded = [signed[i] for i in chosen] * 3 + [GOOD] * (3 if 0 in chosen else 0)
            padded += [replace(GOOD, key_id=key.key_id) for key in KEYS[1:n]]
            strangers = [signed[i] for i in range(n, len(KEYS))]
            assert counted([*padded, *strangers], n=n, k=k) == size
            minimal += size == k
            smaller += size < k
    assert (minimal, smaller) == {(2, 3): (3, 4), (3, 5): (10, 16)}[k, n]


def test_the_same_key_never_counts_twice() -> None:
    many = [sign_act(KEY, replace(ACT, expires=NOW + 1 + extra)) for extra in range(300)]
    assert len({signature.signature for signature in many}) == 300
    assert counted(many) == 1


def test_the_same_key_bytes_under_two_entries_are_one_key() -> None:
    twins = [Approver(name=name, public=KEY.public_key) for name in ("a", "b", "c")]
    with pytest.raises(PolicyInvalid):
        count_quorum([GOOD] * 3, approvers=twins, expectation=EXPECTED, k=2, now=NOW)
    mixed = [*twins, PEOPLE[1]]
    result = count_quorum([GOOD] * 3, approvers=mixed, expectation=EXPECTED, k=2, now=NOW)
    assert (result.n, len(result.signatures), result.met) == (2, 1, False)
    with pytest.raises(PolicyInvalid):
        parse_policy(render_policy(approvers=twins[:2] + PEOPLE[1:2]))


@pytest.mark.parametrize("k", [0, -1, -(2**63), 4, 2**63])
def test_a_threshold_of_nothing_or_of_too_many_is_an_error(k: int) -> None:
    for signatures in ([], [GOOD], [sign_act(key, ACT) for key in KEYS[:3]]):
        with pytest.raises(PolicyInvalid):
            counted(signatures, k=k)


def test_hostile_payloads_never_escape_as_other_errors() -> None:
    hostile: list[object] = [None, 0, [], "x", {}, {"a": 1}, float("nan"), "\ud800", {"action": []}]
    record = ACT.to_json()
    tried = 0
    for value in hostile:
        for name in (None, *record):
            edited = value if name is None else record | {name: value}
            try:
                act = act_from_json(edited)
                assert not accepted(replace(GOOD, act=act))
            except CambiumError:
                pass
            tried += 1
    assert tried == len(hostile) * 7
