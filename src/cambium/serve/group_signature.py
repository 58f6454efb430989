"""The one signature that a quorum of shares makes together."""

from __future__ import annotations

from collections.abc import Sequence

from cambium.core.canonical import canonical_json
from cambium.core.errors import SignatureInvalid
from cambium.core.nouns import Signature
from cambium.trust.policy import Policy
from cambium.trust.providers.bls12_381 import combine, verify


def group_signature(policy: Policy, signatures: Sequence[Signature]) -> str | None:
    """Returns the group's signature of a counted quorum, as hex; None where there is no group.

    The parts stay in the record beside it, so that one sees who signed.

    Raises:
        SignatureInvalid: they do not combine, though each was found good.
    """
    index = {approver.key_id: i for i, approver in enumerate(policy.approvers.list, start=1)}
    parts = [s for s in signatures if s.key_id in index][: policy.approvers.k]
    if not policy.approvers.group or len(parts) < policy.approvers.k:
        return None
    combined = combine({index[s.key_id]: bytes.fromhex(s.signature) for s in parts})
    if not verify(
        bytes.fromhex(policy.approvers.group), canonical_json(parts[0].act.to_json()), combined
    ):
        raise SignatureInvalid(
            "the parts do not make the group's signature", mend="sign again, all on one day"
        )
    return combined.hex()
