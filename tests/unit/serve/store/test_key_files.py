from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cambium.core.errors import ConfigError
from cambium.serve.store.key_files import load_key, save_key
from cambium.trust.keys import generate_key


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
