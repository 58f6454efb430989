"""Whose signature may count now: an approver of the policy, enrolled, not revoked, not expired."""

from __future__ import annotations

from cambium.core.errors import KeyUnknown
from cambium.serve.store.transaction import Transaction
from cambium.trust.policy import Policy
from cambium.trust.quorum import Approver


def standing_approvers(policy: Policy, tx: Transaction, *, now: int) -> dict[str, Approver]:
    """Returns the approvers whose keys count at `now`, seconds since 1970, by key id."""
    enrolled = {k.key_id for k in tx.list_keys() if k.revoked_at is None}
    return {
        a.key_id: a
        for a in policy.approvers.list
        if a.key_id in enrolled and not a.has_expired(now)
    }


def need_approver(key_id: str, policy: Policy, tx: Transaction, *, now: int) -> Approver:
    """Returns the approver whose key this is.

    Raises:
        KeyUnknown: it is nobody's whose signature counts.
    """
    found = standing_approvers(policy, tx, now=now).get(key_id)
    if found is None:
        raise KeyUnknown(f"{key_id[:80]!r} is not an approver of this policy",
                         mend="sign with an enrolled approver's key")  # fmt: skip
    return found
