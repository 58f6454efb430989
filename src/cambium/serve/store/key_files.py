"""Private keys in files: written once, durably, for their owner alone."""

from __future__ import annotations

import errno
import json
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from cambium.core.canonical import canonical_json
from cambium.core.errors import ConfigError
from cambium.serve.errors import StorageFull
from cambium.serve.store.durable import fsync_folder, write_durably
from cambium.trust.keys import SigningKey, wrap
from cambium.trust.providers.bls12_381 import BLS12_381, Share

PASSPHRASE = "CAMBIUM_PASSPHRASE"
# Of the keys that a server holds: another person knows it than those of people's keys.
SERVER_PASSPHRASE = "CAMBIUM_SERVER_PASSPHRASE"


def save_key(key: SigningKey, path: Path, *, passphrase: bytes | None = None) -> None:
    """Writes the key, readable by its owner alone, and fsyncs file and folder.

    An Ed25519 key becomes PKCS8 PEM, a share of a group's key JSON; both encrypted under a
    passphrase if there is one: PEM with PBKDF2 (HMAC-SHA-256, 2048 rounds) and AES-256-CBC, as the
    library and other programs write it; JSON with scrypt and AES-256-GCM.

    Raises:
        ConfigError: the file exists already, or the folder cannot be written.
        StorageFull: the disk took no more; no partial file is left.
    """
    private = key.private
    if isinstance(private, Share):
        data = _share_bytes(private, passphrase)
    elif isinstance(private, Ed25519PrivateKey):
        data = pem_of(private, passphrase)
    else:
        raise ConfigError("this kind of key has no file", mend="make one with `cambium key new`")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise _unwritable(error, path) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fsync_folder(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritable(error, path) from error


def load_key(
    path: Path, *, passphrase: bytes | None = None, variable: str = PASSPHRASE
) -> SigningKey:
    """Returns the key that `save_key` wrote.

    Args:
        passphrase: of an encrypted file; if None, what the environment's `variable` says.

    Raises:
        ConfigError: the file is missing, unreadable, or no key; `detail["locked"]` is true where
            it is encrypted and no passphrase, or another one, was given.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the key {path} cannot be read: {error.strerror}", mend="name an existing key file"
        ) from error
    passphrase = passphrase or passphrase_in(variable)
    if data.startswith(b"{"):
        return wrap(_share(data, path, passphrase))
    private = private_key(data, path, passphrase=passphrase, variable=variable)
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key", mend="make one with `cambium key new`")
    return wrap(private)


def passphrase_in(variable: str) -> bytes | None:
    """Returns the passphrase that the environment gives, if it gives one."""
    return os.environ.get(variable, "").encode() or None


def pem_of(key: PrivateKeyTypes, passphrase: bytes | None) -> bytes:
    """Returns a private key as PKCS8 PEM, encrypted under a passphrase if there is one."""
    locked = serialization.BestAvailableEncryption(passphrase) if passphrase else None
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        locked or serialization.NoEncryption(),
    )


def private_key(
    data: bytes, path: Path, *, passphrase: bytes | None, variable: str
) -> PrivateKeyTypes:
    """Returns the key that the PEM of a file holds.

    Raises:
        ConfigError: as `load_key`.
    """
    locked = _is_locked(data)
    if locked and passphrase is None:
        raise _locked(path, "is encrypted", variable)
    try:
        return serialization.load_pem_private_key(data, password=passphrase if locked else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if locked:
            raise _locked(path, "does not open with this passphrase", variable) from error
        raise ConfigError(f"{path} is not a private key in PEM form",
                          mend="make one with `cambium key new`") from error  # fmt: skip


def lock_key(path: Path, passphrase: bytes) -> None:
    """Encrypts a key in PEM form that lies open; one that is encrypted stays as it is.

    Raises:
        ConfigError: it is no key, or cannot be read or written; it is as it was then.
        StorageFull: the disk took no more; it is as it was then.
    """
    try:
        data = path.read_bytes()
        if not _is_locked(data):
            key = private_key(data, path, passphrase=None, variable=SERVER_PASSPHRASE)
            write_durably(path, pem_of(key, passphrase))
    except OSError as error:
        raise _unwritable(error, path) from error


def _is_locked(pem: bytes) -> bool:
    return b"ENCRYPTED" in pem[:64]


def _share_bytes(share: Share, passphrase: bytes | None) -> bytes:
    record: dict[str, object] = {"scheme": BLS12_381.name, "index": share.index}
    if passphrase is None:
        return canonical_json({**record, "secret": share.secret.hex()})
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    sealed = AESGCM(_derived(passphrase, salt)).encrypt(nonce, share.secret, canonical_json(record))
    return canonical_json(
        {**record, "salt": salt.hex(), "nonce": nonce.hex(), "sealed": sealed.hex()}
    )


def _share(data: bytes, path: Path, passphrase: bytes | None) -> Share:
    try:
        found = json.loads(data)
        index = int(found["index"])
        record = {"scheme": BLS12_381.name, "index": index}
        if "secret" in found:
            return Share(index=index, secret=bytes.fromhex(found["secret"]))
        salt, nonce, sealed = (bytes.fromhex(found[n]) for n in ("salt", "nonce", "sealed"))
        if passphrase is None:
            raise _locked(path, "is encrypted")
        opened = AESGCM(_derived(passphrase, salt)).decrypt(nonce, sealed, canonical_json(record))
    except InvalidTag as error:
        raise _locked(path, "does not open with this passphrase") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no share of a key",
                          mend="make shares with `cambium key ceremony`") from error  # fmt: skip
    return Share(index=index, secret=opened)


def _derived(passphrase: bytes, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(passphrase)


def _locked(path: Path, why: str, variable: str = PASSPHRASE) -> ConfigError:
    return ConfigError(f"the key {path} {why}", mend=f"set {variable}", detail={"locked": True})


def _unwritable(error: OSError, path: Path) -> ConfigError | StorageFull:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"no room for the key {path}", mend="free some space and try again")
    if error.errno == errno.EEXIST:
        return ConfigError(f"{path} exists; a key is never overwritten", mend="choose another path")
    return ConfigError(f"the key {path} cannot be written: {error.strerror}",
                       mend="name a writable folder")  # fmt: skip
