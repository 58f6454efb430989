"""Signatures are made here, beside the key; the server only ever sees them and checks them."""

from __future__ import annotations

import os
import sys
import time
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambium.cli.failures import WRONG_CALL, CommandFailed
from cambium.core.errors import ConfigError
from cambium.core.nouns import Action, SignedAct

if TYPE_CHECKING:
    from cambium.trust.keys import SigningKey

_DAY_S = 24 * 3600


def signed_body(
    key_file: Path, action: Action, *, target: str, standing: dict[str, Any]
) -> dict[str, object]:
    """Returns `{key_id, signature, payload}` over `target`, valid to the end of tomorrow, UTC.

    Args:
        standing: the server's answer that names `state_version` and `policy_digest`.

    Raises:
        CommandFailed: no policy is in force, so that nobody could count the signature.
        ConfigError: the file holds no private key.
    """
    return body_of(read_key(key_file), action, target=target, standing=standing)


def read_key(path: Path) -> SigningKey:
    """Returns the key of a file; at a terminal, asks for the passphrase of an encrypted one.

    Raises:
        ConfigError: the file holds no private key, or does not open.
    """
    from cambium.serve.store.key_files import load_key

    try:
        return load_key(path)
    except ConfigError as error:
        if not error.detail.get("locked") or not sys.stdin.isatty():
            raise
        return load_key(path, passphrase=getpass(f"passphrase of {path}: ").encode())


def new_passphrase(path: Path) -> bytes:
    """Returns the passphrase for a new file: `CAMBIUM_PASSPHRASE`, or asked for twice.

    Raises:
        CommandFailed: there is nobody to ask, or the two differ.
    """
    from cambium.serve.store.key_files import PASSPHRASE

    said = os.environ.get(PASSPHRASE, "")
    if not said and sys.stdin.isatty():
        said = getpass(f"passphrase for {path}: ")
        if getpass("once more: ") != said:
            raise CommandFailed("the passphrases differ: begin again", status=WRONG_CALL)
    if not said:
        raise CommandFailed(f"no passphrase: set {PASSPHRASE}", status=WRONG_CALL)
    return said.encode()


def body_of(
    key: SigningKey, action: Action, *, target: str, standing: dict[str, Any]
) -> dict[str, object]:
    """Returns `{key_id, signature, payload}` of a key that is loaded.

    Raises:
        CommandFailed: no policy is in force, so that nobody could count the signature.
    """
    from cambium.trust.acts import sign_act

    version, policy = standing.get("state_version"), standing.get("policy_digest")
    if not isinstance(version, int) or not isinstance(policy, str):
        raise CommandFailed(
            "no signed policy is in force, so a signature could not count: run `cambium init`",
            status=WRONG_CALL,
        )
    act = SignedAct(
        action=action,
        target=target,
        state_version=version,
        # The same for everybody who signs on one day: parts of a group's signature have to agree.
        expires=(int(time.time()) // _DAY_S + 2) * _DAY_S,
        policy=policy,
    )
    signature = sign_act(key, act)
    return {
        "key_id": signature.key_id,
        "signature": signature.signature,
        "payload": signature.act.to_json(),
    }
