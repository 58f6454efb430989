"""Putting a new policy in force while the server runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cambium.core.errors import PolicyInvalid
from cambium.core.nouns import Signature
from cambium.lifecycle.policy_change import authorise_policy
from cambium.lifecycle.proposal import FINAL, Broke
from cambium.serve.bootstrap import ROOT_META, enrol_people
from cambium.serve.following import Following
from cambium.serve.group_signature import group_signature
from cambium.serve.log_head import sign_newest
from cambium.serve.proposals import Proposals
from cambium.serve.publish import Published
from cambium.serve.rules import Rules
from cambium.serve.situation import situation_now
from cambium.serve.store.records import KeyRow, PolicyRow
from cambium.serve.store.transaction import Transaction
from cambium.trust.acts import signature_to_json
from cambium.trust.keys import PublicKey
from cambium.trust.policy import Policy, SignedPolicy


@dataclass(frozen=True, kw_only=True)
class Change:
    """A policy that is to be in force, and who says so.

    Args:
        signatures: the approvers', where the policy widens anything, and the root's in office,
            where it hands over.
        new_root: the key that signed the policy, where it takes the root's place.
    """

    signed: SignedPolicy
    signatures: Sequence[Signature]
    new_root: PublicKey | None = None


def change_policy(
    asked: Change,
    *,
    rules: Rules,
    proposals: Proposals,
    published: Published,
    deciding: Following,
) -> dict[str, Any]:
    """Puts a signed policy in force, in the log and at once for everything that asks for it.

    Open proposals were measured against another bar, so they end; what they consolidated can be
    proposed again.

    Args:
        deciding: so that nothing of any process is decided meanwhile.

    Raises:
        PolicyMissing, PolicyInvalid, SignatureInvalid, DigestMismatch, ReplayDetected,
        ThresholdNotMet: nothing was changed.
    """
    with deciding:
        with deciding.transaction() as tx:
            situation = situation_now(proposals, published)
            (root,) = tx.list_keys(role="root")
            policy, wider, counted = authorise_policy(
                asked.signed,
                asked.signatures,
                situation=situation,
                root_public=PublicKey(raw=root.public),
                new_root=asked.new_root,
            )
            # Before the rules change: a proposal's end is an event under the policy it had.
            ended = [
                proposals.end(filed, Broke(reason=f"the policy changed to {policy.digest}"), tx)
                for filed in proposals.all()
                if filed.proposal.state not in FINAL
            ]
            now, new_root = proposals.now_ms(), asked.new_root
            if new_root is not None:
                _hand_over(root, new_root, tx, at=now)
            _put_in_force(policy, asked.signed, tx, at=now)
            version = tx.bump_state_version()
            body: dict[str, object] = {
                "policy": policy.digest,
                "before": situation.policy.digest,
                "version": policy.version,
                "widens": list(wider),
                "root": new_root.key_id if new_root else root.key_id,
                "signatures": [signature_to_json(s) for s in (asked.signed.signature, *counted)],
                "group_signature": group_signature(situation.policy, counted),
                "ended": ended,
                "state_version": version,
            }
            # Not `proposals.log`, which a kill ends: approvers may be needed who can revive.
            tx.audit("policy.changed", body=body, at=now)
            sign_newest(tx, proposals.identity.key_in(tx))
        rules.policy = policy
    said = ("policy", "version", "widens", "root", "ended", "state_version")
    return {"digest" if name == "policy" else name: body[name] for name in said}


def _hand_over(root: KeyRow, new: PublicKey, tx: Transaction, *, at: int) -> None:
    """Puts a key that has no other part to play in the root's place, whose own counts no more."""
    known = next((row for row in tx.list_keys() if row.key_id == new.key_id), None)
    if known is not None and (known.role != "enrolled" or known.revoked_at is not None):
        raise PolicyInvalid(f"the new root is {known.name}'s key, which is the {known.role}'s",
                            mend="make a key of its own with `cambium key new`")  # fmt: skip
    tx.put_key(replace(root, role="retired", revoked_at=at))
    enrolled_at = known.enrolled_at if known else at
    tx.put_key(KeyRow(key_id=new.key_id, name="root", role="root", public=new.raw,
                      enrolled_at=enrolled_at))  # fmt: skip
    tx.set_meta(ROOT_META, value=new.raw)


def _put_in_force(policy: Policy, signed: SignedPolicy, tx: Transaction, *, at: int) -> None:
    row = PolicyRow(
        digest=policy.digest,
        toml=signed.toml.decode(),
        signature=signature_to_json(signed.signature),
        created_at=at,
    )
    tx.set_policy(row)
    enrol_people(policy, tx, at=at)
