from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cambium.core.errors import SignatureInvalid
from cambium.trust.keys import PublicKey, SigningKey, generate_key

# RFC 8032, section 7.1, test 2.
RFC_PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
RFC_SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
SMALL_ORDER = (
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
)


def test_published_vector_verifies() -> None:
    key = PublicKey(raw=RFC_PUBLIC)
    assert key.verify(b"\x72", RFC_SIGNATURE)
    assert not key.verify(b"\x73", RFC_SIGNATURE)


def test_key_id_is_of_the_raw_bytes() -> None:
    expected = hashlib.sha256(bytes.fromhex(RFC_PUBLIC)).hexdigest()[:32]
    assert PublicKey(raw=RFC_PUBLIC).key_id == f"ed25519:{expected}"


@pytest.mark.parametrize("raw", SMALL_ORDER)
def test_keys_that_fit_every_message_are_refused(raw: str) -> None:
    with pytest.raises(SignatureInvalid):
        PublicKey(raw=raw)


def test_the_refusal_is_needed() -> None:
    """The library underneath accepts one signature of the identity point for any message."""
    identity = Ed25519PublicKey.from_public_bytes(bytes.fromhex(SMALL_ORDER[0]))
    forged = bytes.fromhex(SMALL_ORDER[0] + "00" * 32)
    identity.verify(forged, b"anything")
    identity.verify(forged, b"anything else")


@pytest.mark.parametrize(
    "raw", ["", RFC_PUBLIC.upper(), RFC_PUBLIC + "\n", RFC_PUBLIC[:-2], "zz" * 32]
)
def test_other_spellings_of_a_key_are_refused(raw: str) -> None:
    with pytest.raises(SignatureInvalid):
        PublicKey(raw=raw)


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "00" * 64,
        RFC_SIGNATURE.upper(),
        RFC_SIGNATURE + "\n",
        RFC_SIGNATURE[:-2],
        "é" * 128,
        "٣" * 128,
        None,
        7,
        [],
        b"x",
    ],
)
def test_verify_never_raises(hostile: object) -> None:
    assert PublicKey(raw=RFC_PUBLIC).verify(b"\x72", hostile) is False


def test_points_off_the_curve_verify_nothing() -> None:
    for value in range(2, 40):
        raw = value.to_bytes(32, "little").hex()
        assert not PublicKey(raw=raw).verify(b"x", "00" * 64)


def test_the_private_key_is_not_shown() -> None:
    key = generate_key()
    assert "private" not in repr(key)
    assert isinstance(key, SigningKey)
    assert key.sign(b"x") == key.sign(b"x")
