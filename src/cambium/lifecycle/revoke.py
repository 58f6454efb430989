"""Who takes a key out of service: the root alone, or a quorum of those who keep theirs."""

from __future__ import annotations

from collections.abc import Sequence

from cambium.core.nouns import Action, Signature
from cambium.lifecycle.blockers import Situation
from cambium.trust.acts import Expectation
from cambium.trust.keys import PublicKey
from cambium.trust.quorum import Approver, need_quorum


def authorise_revocation(
    key: PublicKey, signatures: Sequence[Signature], *, situation: Situation, root: Approver
) -> tuple[Signature, ...]:
    """Returns the signatures that revoke `key`; their target is its digest.

    Raises:
        ThresholdNotMet: neither the root nor k other approvers signed exactly that.
        PolicyInvalid: k approvers are not left; the root has to sign.
    """
    policy, now, gone = situation.policy, situation.now, {key.key_id, *situation.revoked_keys}
    expected = Expectation(action=Action.REVOKE, target=key.digest,
                           state_version=situation.state_version, policy=policy.digest)  # fmt: skip
    if by_root := [s for s in signatures if s.key_id == root.key_id]:
        return need_quorum(by_root, approvers=[root], expectation=expected, k=1, now=now)
    keeping = [a for a in policy.approvers if a.key_id not in gone]
    return need_quorum(signatures, approvers=keeping, expectation=expected, k=policy.k, now=now)
