from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cambium.core.errors import ConfigError
from cambium.serve.store.key_files import (
    PASSPHRASE,
    SERVER_PASSPHRASE,
    load_key,
    lock_key,
    save_key,
)
from cambium.trust.keys import SigningKey, generate_key, wrap
from cambium.trust.providers.bls12_381 import Share, deal


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


def test_missing_and_other_keys_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_key(tmp_path / "none.key")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    other = X25519PrivateKey.generate().private_bytes(pem, pkcs8, serialization.NoEncryption())
    (tmp_path / "other.key").write_bytes(other)
    with pytest.raises(ConfigError, match="not an Ed25519 key"):
        load_key(tmp_path / "other.key")


@pytest.mark.parametrize("make", [generate_key, lambda: wrap(deal(2, 3).shares[1])])
@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_every_kind_of_key_comes_back(
    tmp_path: Path, make: Callable[[], SigningKey], passphrase: bytes | None
) -> None:
    key, path = make(), tmp_path / "a.key"
    save_key(key, path, passphrase=passphrase)
    assert load_key(path, passphrase=passphrase).public_key == key.public_key
    assert load_key(path, passphrase=passphrase).sign(b"x") == key.sign(b"x")
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("make", [generate_key, lambda: wrap(deal(2, 3).shares[1])])
def test_an_encrypted_key_opens_with_its_passphrase_alone(
    tmp_path: Path, make: Callable[[], SigningKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PASSPHRASE, raising=False)
    key, path = make(), tmp_path / "a.key"
    save_key(key, path, passphrase=b"correct horse")
    for wrong in (None, b"battery staple", b"correct hors"):
        with pytest.raises(ConfigError, match=r"encrypted|passphrase") as refused:
            load_key(path, passphrase=wrong)
        assert refused.value.detail["locked"] is True
    monkeypatch.setenv(PASSPHRASE, "correct horse")
    assert load_key(path).public_key == key.public_key
    private = key.private
    secret = private.secret if isinstance(private, Share) else private.private_bytes_raw()  # type: ignore[attr-defined]
    data = path.read_bytes()
    assert secret not in data and secret.hex().encode() not in data


@pytest.mark.parametrize("damage", [b'{"index": 1}', b"{", b'{"index": "x", "secret": "00"}'])
def test_a_damaged_share_is_a_clear_error(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "a.key").write_bytes(damage)
    with pytest.raises(ConfigError, match="no share"):
        load_key(tmp_path / "a.key")


def test_a_key_that_lies_open_is_locked_in_place(tmp_path: Path) -> None:
    key, path = generate_key(), tmp_path / "server.key"
    save_key(key, path)
    lock_key(path, b"of the operator")
    locked = path.read_bytes()
    assert b"ENCRYPTED" in locked and stat.S_IMODE(path.stat().st_mode) == 0o600
    lock_key(path, b"another")  # what is locked stays as it is
    assert path.read_bytes() == locked
    assert load_key(path, passphrase=b"of the operator").key_id == key.key_id
    with pytest.raises(ConfigError, match="is encrypted") as caught:
        load_key(path, variable=SERVER_PASSPHRASE)
    assert caught.value.mend == f"set {SERVER_PASSPHRASE}"


def test_what_is_no_key_is_not_locked(tmp_path: Path) -> None:
    path = tmp_path / "server.key"
    path.write_bytes(b"hello")
    with pytest.raises(ConfigError, match="not a private key"):
        lock_key(path, b"secret")
    assert path.read_bytes() == b"hello"


def test_a_key_that_cannot_be_locked_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        lock_key(tmp_path / "missing.key", b"secret")
