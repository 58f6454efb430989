"""Putting a new policy in force while the server runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cambium.core.nouns import Signature
from cambium.lifecycle.policy_change import authorise_policy
from cambium.lifecycle.proposal import FINAL, Broke
from cambium.serve.bootstrap import enrol_people
from cambium.serve.following import Following
from cambium.serve.group_signature import group_signature
from cambium.serve.log_head import sign_newest
from cambium.serve.proposals import Proposals
from cambium.serve.publish import Published
from cambium.serve.rules import Rules
from cambium.serve.situation import situation_now
from cambium.serve.store.records import PolicyRow
from cambium.serve.store.transaction import Transaction
from cambium.trust.acts import signature_to_json
from cambium.trust.keys import PublicKey
from cambium.trust.policy import Policy, SignedPolicy


def change_policy(
    signed: SignedPolicy,
    signatures: Sequence[Signature],
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
        signatures: the approvers', where the policy widens anything.
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
                signed, signatures, situation=situation, root_public=PublicKey(raw=root.public)
            )
            # Before the rules change: a proposal's end is an event under the policy it had.
            ended = [
                proposals.end(filed, Broke(reason=f"the policy changed to {policy.digest}"), tx)
                for filed in proposals.all()
                if filed.proposal.state not in FINAL
            ]
            _put_in_force(policy, signed, tx, at=proposals.now_ms())
            version = tx.bump_state_version()
            body: dict[str, object] = {
                "policy": policy.digest,
                "before": situation.policy.digest,
                "version": policy.version,
                "widens": list(wider),
                "signatures": [signature_to_json(s) for s in (signed.signature, *counted)],
                "group_signature": group_signature(situation.policy, counted),
                "ended": ended,
                "state_version": version,
            }
            # Not `proposals.log`, which a kill ends: approvers may be needed who can revive.
            tx.audit("policy.changed", body=body, at=proposals.now_ms())
            sign_newest(tx, proposals.identity.key)
        rules.policy = policy
    answer = {"digest": policy.digest, "version": policy.version, "widens": list(wider)}
    return {**answer, "ended": ended, "state_version": version}


def _put_in_force(policy: Policy, signed: SignedPolicy, tx: Transaction, *, at: int) -> None:
    row = PolicyRow(
        digest=policy.digest,
        toml=signed.toml.decode(),
        signature=signature_to_json(signed.signature),
        created_at=at,
    )
    tx.set_policy(row)
    enrol_people(policy, tx, at=at)
