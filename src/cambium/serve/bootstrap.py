"""The beginnings of a state: its first signed policy, and the policy that is in force."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from cambium.core.canonical import digest_bytes
from cambium.core.errors import ConfigError, PolicyInvalid
from cambium.core.nouns import Signature
from cambium.serve.config import ServerConfig
from cambium.serve.signed_records import signature_from_json
from cambium.serve.store.records import KeyRow, PolicyRow
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.trust.acts import signature_to_json
from cambium.trust.keys import PublicKey
from cambium.trust.policy import Policy, SignedPolicy, verify_policy
from cambium.trust.quorum import Approver

ROOT_META = "root_public"


def init_state(folder: Path, *, toml: bytes, signature: Signature, root_public: PublicKey) -> str:
    """Puts the first signed policy into a state and returns its digest.

    Raises:
        ConfigError: the state has a policy already.
        TrustError: the policy does not verify under `root_public`.
    """
    policy = verify_policy(SignedPolicy(toml=toml, signature=signature), root_public)
    with State.open(folder) as state, state.transaction() as tx:
        if tx.active_policy() is not None:
            raise ConfigError(
                f"{folder} has a signed policy already", mend="choose another --state"
            )
        now = _now_ms()
        tx.set_policy(
            PolicyRow(
                digest=policy.digest,
                toml=toml.decode(),
                signature=signature_to_json(signature),
                created_at=now,
            )
        )
        tx.set_meta(ROOT_META, value=root_public.raw)
        tx.put_key(KeyRow(key_id=root_public.key_id, name="root", role="root",
                          public=root_public.raw, enrolled_at=now))  # fmt: skip
        enrol_people(policy, tx, at=now)
        tx.bump_state_version()
        tx.audit("policy.signed", at=now, body={"policy": policy.digest, "profile": policy.profile,
                                                "root": root_public.key_id})  # fmt: skip
    return policy.digest


def enrol_people(policy: Policy, tx: Transaction, *, at: int) -> None:
    """Enrols the keys that a policy lists; those that none lists any more are `retired`."""
    known = {row.key_id: row for row in tx.list_keys()}
    listed = {person.key_id for people in policy.people.values() for person in people}
    for row in known.values():
        if row.role in policy.people and row.key_id not in listed:
            tx.put_key(replace(row, role="retired"))
    for role, people in policy.people.items():
        for person in people:
            before = known.get(person.key_id)
            row = KeyRow(
                key_id=person.key_id,
                name=person.name,
                role=role,
                public=person.public.raw,
                enrolled_at=before.enrolled_at if before else at,
                revoked_at=before.revoked_at if before else None,
            )
            if before is not None and before.role in ("root", "server"):
                raise PolicyInvalid(f"{person.name} holds the {before.role}'s key",
                                    mend="give each person a key of their own")  # fmt: skip
            if row != before:
                tx.put_key(row)


def render_policy(
    *,
    approvers: Sequence[Approver],
    operator: Approver | None = None,
    held: tuple[Approver, Approver] | None = None,
    k: int = 2,
    rollback_k: int = 2,
    state: str = "",
) -> bytes:
    """Returns the development profile's commented text; `parse_policy` says if it is valid.

    Args:
        held: evaluator and attester; without them the text leaves both to the server's own key.
        state: what names the state, 32 hex digits; a new name if it is left out.
    """
    template = resources.files("cambium.serve").joinpath("development_policy.toml")
    text = template.read_text(encoding="utf-8")
    values = {
        "state": state or secrets.token_hex(16),
        "k": str(k),
        "rollback_k": str(rollback_k),
        "approvers": _listed(approvers),
        "operators": _listed([operator] if operator else []),
        "roles": _roles(*held) if held else "",
    }
    return text.format_map(values).encode("utf-8")


_ROLES = """
# Evidence of the gates counts where k evaluators have signed it, and what is attested where k
# attesters have. The server signs with such keys where they lie in DIR/keys; other evaluators sign
# with `cambium vouch`. A policy without these two tables leaves both to the server's own key, which
# production refuses.
[evaluators]
k = 1
list = [
{evaluators}
]

[attesters]
k = 1
list = [
{attesters}
]
"""


def _roles(evaluator: Approver, attester: Approver) -> str:
    return _ROLES.format(evaluators=_listed([evaluator]), attesters=_listed([attester]))


def _listed(people: Sequence[Approver]) -> str:
    # TOML reads JSON's strings as they are.
    return "\n".join(
        f"  {{ name = {json.dumps(a.name, ensure_ascii=False)}, "
        f'public = "{a.public.raw}", expires = {a.expires} }},'
        for a in people
    )


def policy_in_force(config: ServerConfig, state: State) -> Policy | None:
    """Returns the state's policy, its signature verified again; None on a bare state.

    Raises:
        ConfigError: `config.policy` names another text than the one in force.
        TrustError: the stored policy does not verify.
    """
    with state.read() as tx:
        policy, row = stored_policy(tx), tx.active_policy()
    if config.policy is not None:
        if policy is None or row is None:
            raise ConfigError(
                "this state has no signed policy yet",
                mend="run `cambium init --state DIR --policy FILE --key ROOT`",
            )
        wanted = digest_bytes(config.policy.read_bytes())
        if wanted != digest_bytes(row.toml.encode()):
            raise ConfigError(f"{config.policy} is not the policy in force",
                              mend="leave --policy out, or start on another state")  # fmt: skip
    return policy


def stored_policy(tx: Transaction) -> Policy | None:
    """Returns the policy that a state holds, its signature verified; None on a bare state.

    Raises:
        TrustError: it does not verify.
    """
    row = tx.active_policy()
    root = tx.get_meta(ROOT_META)
    if row is None or root is None:
        return None
    signed = SignedPolicy(toml=row.toml.encode(), signature=signature_from_json(row.signature))
    try:
        policy = verify_policy(signed, PublicKey(raw=root))
    except PolicyInvalid as error:  # the root did sign it: it is what an earlier version asked for
        raise ConfigError(
            f"this state's policy is not one of this version ({error.message})",
            mend="start another state with `cambium init`, or serve this one with its own version",
        ) from error
    if policy.digest != row.digest:
        raise PolicyInvalid(
            "the stored policy is not the one that was signed", mend="restore a backup"
        )
    return policy


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
