"""Keys come, without any power, and go: at once, in the log, and for every act after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cambium.core.errors import IllegalTransition
from cambium.core.nouns import Signature
from cambium.lifecycle.revoke import authorise_revocation
from cambium.lifecycle.situation import Situation
from cambium.serve.following import Following
from cambium.serve.group_signature import group_signature
from cambium.serve.log_head import sign_newest
from cambium.serve.proposals import Proposals
from cambium.serve.publish import Published
from cambium.serve.situation import situation_now
from cambium.serve.store.records import KeyRow
from cambium.serve.store.transaction import Transaction
from cambium.trust.acts import signature_to_json
from cambium.trust.keys import PublicKey
from cambium.trust.quorum import Approver

REVOCABLE = ("approver", "operator", "evaluator", "attester", "retired", "enrolled")
MAX_REASON_CHARS = 1000


def enrol_key(proposals: Proposals, name: str, public: PublicKey) -> KeyRow:
    """Keeps a public key, so that whoever writes the next policy can list it.

    Raises:
        IllegalTransition: it is enrolled already.
        SystemKilled: nothing is enrolled any more.
    """
    now = proposals.now_ms()
    row = KeyRow(
        key_id=public.key_id, name=name, role="enrolled", public=public.raw, enrolled_at=now
    )
    with proposals.state.transaction() as tx:
        if any(known.key_id == row.key_id for known in tx.list_keys()):
            raise IllegalTransition(f"{row.key_id} is enrolled already", mend="see GET /keys")
        tx.put_key(row)
        body: dict[str, object] = {"key_id": row.key_id, "name": name, "role": row.role}
        proposals.log(tx, kind="key.enrolled", body=body)
    return row


def revoke_key(
    proposals: Proposals,
    key_id: str,
    reason: str,
    signatures: Sequence[Signature],
    *,
    published: Published,
    deciding: Following,
) -> dict[str, Any]:
    """Revokes an approver's or operator's key; what it signed counts no more from now on.

    Args:
        deciding: so that no merge of any process passes by.

    Raises:
        KeyUnknown, IllegalTransition, PolicyMissing, ThresholdNotMet, PolicyInvalid: nothing
            was changed.
    """
    if not reason.strip() or len(reason) > MAX_REASON_CHARS:
        raise IllegalTransition(
            f"a revocation needs a reason of at most {MAX_REASON_CHARS} characters", mend="say why"
        )
    with deciding.transaction() as tx:
        situation = situation_now(proposals, published)
        return _revoke(proposals, key_id, reason, signatures, situation=situation, tx=tx)


def _revoke(
    proposals: Proposals,
    key_id: str,
    reason: str,
    signatures: Sequence[Signature],
    *,
    situation: Situation,
    tx: Transaction,
) -> dict[str, Any]:
    policy, now = situation.policy, proposals.now_ms()
    row = tx.get_key(key_id)
    if row.role not in REVOCABLE or row.revoked_at is not None:
        state = "revoked already" if row.revoked_at is not None else f"the {row.role}'s"
        raise IllegalTransition(f"key {key_id} is {state}", mend="see `cambium key list`")
    (root,) = tx.list_keys(role="root")
    counted = authorise_revocation(
        PublicKey(raw=row.public),
        signatures,
        situation=situation,
        root=Approver(name=root.name, public=PublicKey(raw=root.public)),
    )
    tx.revoke_key(key_id, at=now)
    version = tx.bump_state_version()
    body: dict[str, object] = {
        "key_id": key_id,
        "name": row.name,
        "reason": reason,
        "signatures": [signature_to_json(s) for s in counted],
        "group_signature": group_signature(policy, counted),
        "state_version": version,
    }
    # Not `proposals.log`, which a kill ends: a stolen key goes before the others revive.
    tx.audit("key.revoked", body=body, at=now)
    sign_newest(tx, proposals.identity.key_in(tx))
    gone = {*situation.revoked_keys, key_id}
    left = sum(a.key_id not in gone for a in policy.approvers.list)
    return {
        "key_id": key_id,
        "name": row.name,
        "revoked_at": now,
        "state_version": version,
        "approvers_left": left,
        "quorum": {"k": policy.approvers.k, "n": left},
    }
