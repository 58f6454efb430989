"""Private keys in files: written once, durably, for their owner alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cambium.core.errors import ConfigError, StorageFull
from cambium.trust.keys import SigningKey, wrap


def save_key(key: SigningKey, path: Path) -> None:
    """Writes the key as PKCS8 PEM, readable by its owner alone, and fsyncs file and folder.

    Raises:
        ConfigError: the file exists already, or the folder cannot be written.
        StorageFull: the disk took no more; no partial file is left.
    """
    pem = key.private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise _unwritable(error, path) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        _fsync_folder(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritable(error, path) from error


def load_key(path: Path) -> SigningKey:
    """Returns the key that `save_key` wrote.

    Raises:
        ConfigError: the file is missing, unreadable, or not an unencrypted Ed25519 PKCS8 key.
    """
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the key {path} cannot be read: {error.strerror}", mend="name an existing key file"
        ) from error
    try:
        private = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a private key in PEM form",
                          mend="make one with `cambium key new`") from error  # fmt: skip
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key", mend="make one with `cambium key new`")
    return wrap(private)


def _unwritable(error: OSError, path: Path) -> ConfigError | StorageFull:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"no room for the key {path}", mend="free some space and try again")
    if error.errno == errno.EEXIST:
        return ConfigError(f"{path} exists; a key is never overwritten", mend="choose another path")
    return ConfigError(f"the key {path} cannot be written: {error.strerror}",
                       mend="name a writable folder")  # fmt: skip


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
