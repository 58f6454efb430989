"""Signatures are made here, beside the key; the server only ever sees them and checks them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambium.cli.failures import WRONG_CALL, CommandFailed
from cambium.core.nouns import Action, SignedAct

if TYPE_CHECKING:
    from cambium.trust.keys import SigningKey

LIFETIME_S = 24 * 3600


def signed_body(
    key_file: Path, action: Action, *, target: str, standing: dict[str, Any]
) -> dict[str, object]:
    """Returns `{key_id, signature, payload}` over `target`, valid for a day.

    Args:
        standing: the server's answer that names `state_version` and `policy_digest`.

    Raises:
        CommandFailed: no policy is in force, so that nobody could count the signature.
        ConfigError: the file holds no private key.
    """
    from cambium.serve.store.key_files import load_key

    return body_of(load_key(key_file), action, target=target, standing=standing)


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
        expires=int(time.time()) + LIFETIME_S,
        policy=policy,
    )
    signature = sign_act(key, act)
    return {
        "key_id": signature.key_id,
        "signature": signature.signature,
        "payload": signature.act.to_json(),
    }
