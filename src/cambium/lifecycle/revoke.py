"""Who takes a key or a revision out of service: for keys the root alone too, else a quorum."""

from __future__ import annotations

from collections.abc import Sequence

from cambium.core.errors import IllegalTransition
from cambium.core.nouns import Action, Revision, Signature
from cambium.lifecycle.situation import Situation
from cambium.trust.keys import PublicKey
from cambium.trust.quorum import Approver, met


def authorise_revocation(
    key: PublicKey, signatures: Sequence[Signature], *, situation: Situation, root: Approver
) -> tuple[Signature, ...]:
    """Returns the signatures that revoke `key`; their target is its digest.

    Raises:
        ThresholdNotMet: neither the root nor k other approvers signed exactly that.
        PolicyInvalid: k approvers are not left; the root has to sign.
    """
    by_root, target = [s for s in signatures if s.key_id == root.key_id], key.digest
    keeping = [a for a in situation.policy.approvers.list
               if a.key_id not in {key.key_id, *situation.revoked_keys}]  # fmt: skip
    found = situation.count(by_root or signatures, action=Action.REVOKE, target=target,
                            people=[root] if by_root else keeping,
                            k=1 if by_root else None)  # fmt: skip
    return met(found, Action.REVOKE)


def authorise_quarantine(
    revision: Revision,
    signatures: Sequence[Signature],
    *,
    before: Revision | None,
    situation: Situation,
) -> tuple[frozenset[str], tuple[Signature, ...]]:
    """Returns what `revision` brought, never to be served again, and who said so.

    The signatures' target is its digest. What answers now is rolled away from first, so that the
    head is never in quarantine; the bare base brings nothing, so that it always stays.

    Args:
        before: the revision that it followed.

    Raises:
        IllegalTransition: it brought nothing, or what it brought is served now.
        ThresholdNotMet: fewer than k approvers signed exactly that.
    """
    brought = revision.adapters - (before.adapters if before else frozenset())
    if not brought or brought & situation.head.adapters:
        why = "what it brought is served: roll back first" if brought else "it brought nothing new"
        raise IllegalTransition(f"no quarantine of revision {revision.number}: {why}",
                                mend="name the revision that merged what is to go")  # fmt: skip
    found = situation.count(signatures, action=Action.REVOKE, target=revision.digest)
    return brought, met(found, Action.REVOKE)
