from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cambium.core.errors import ConfigError, SignatureInvalid
from cambium.trust.keys import PublicKey, SigningKey, generate_key, load_key, save_key

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


def test_a_key_survives_its_file(tmp_path: Path) -> None:
    key, path = generate_key(), tmp_path / "a.key"
    save_key(key, path)
    loaded = load_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert loaded.key_id == key.key_id
    assert key.public_key.verify(b"x", loaded.sign(b"x"))


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    save_key(generate_key(), path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        save_key(generate_key(), path)
    assert path.read_bytes() == before


def test_a_key_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        save_key(generate_key(), tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        save_key(generate_key(), tmp_path / "no" / "a.key")


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\xff\xfe", b"-----BEGIN PRIVATE KEY-----\n"]
)
def test_garbage_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a private key"):
        load_key(path)


def test_missing_other_and_encrypted_keys_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_key(tmp_path / "none.key")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    other = X25519PrivateKey.generate().private_bytes(pem, pkcs8, serialization.NoEncryption())
    (tmp_path / "other.key").write_bytes(other)
    with pytest.raises(ConfigError, match="not an Ed25519 key"):
        load_key(tmp_path / "other.key")
    secret = serialization.BestAvailableEncryption(b"secret")
    locked = generate_key().private.private_bytes(pem, pkcs8, secret)
    (tmp_path / "locked.key").write_bytes(locked)
    with pytest.raises(ConfigError, match="not a private key"):
        load_key(tmp_path / "locked.key")


def test_the_private_key_is_not_shown() -> None:
    key = generate_key()
    assert "private" not in repr(key)
    assert isinstance(key, SigningKey)
    assert key.sign(b"x") == key.sign(b"x")
