"""Quorums: k distinct keys of n over the same act, counted by key bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cambium.core.errors import PolicyInvalid, ThresholdNotMet, TrustError
from cambium.core.nouns import Act, Action, Signature
from cambium.trust.acts import check_act
from cambium.trust.keys import PublicKey


@dataclass(frozen=True, kw_only=True)
class Approver:
    """A person's name and public key; the key id follows from the key and cannot be claimed.

    Args:
        expires: seconds since 1970, UTC, from which the key counts no more; 0 for never.
    """

    name: str
    public: PublicKey
    expires: int = 0

    def has_expired(self, now: int) -> bool:
        """Returns whether the key's time is over at `now`, in seconds since 1970, UTC."""
        return 0 < self.expires <= now

    @property
    def key_id(self) -> str:
        """Returns the id of the public key."""
        return self.public.key_id


@dataclass(frozen=True, kw_only=True)
class QuorumResult:
    """Who counts, who does not and why.

    Args:
        n: distinct keys that could have signed.
        refused: pairs of key id, as claimed, and reason.
    """

    k: int
    n: int
    signatures: tuple[Signature, ...]
    refused: tuple[tuple[str, str], ...]

    @property
    def met(self) -> bool:
        """Returns whether at least k distinct keys signed."""
        return len(self.signatures) >= self.k


def count_quorum(
    signatures: Sequence[Signature],
    *,
    approvers: Sequence[Approver],
    expectation: Act,
    k: int,
    now: int,
) -> QuorumResult:
    """Returns how many distinct keys of `approvers` signed exactly `expectation`.

    Whatever does not verify is refused and named; a key counts once however often it signed and
    under however many names it is listed. `now` is in seconds since 1970, UTC.

    Raises:
        PolicyInvalid: `k` is below 1 or above the number of distinct keys.
    """
    by_id = {approver.key_id: approver for approver in approvers}
    if type(k) is not int or not 1 <= k <= len(by_id):
        raise PolicyInvalid(f"a quorum of {k} of {len(by_id)} distinct keys cannot be",
                            mend="declare 1 <= k <= n")  # fmt: skip
    counted: dict[str, Signature] = {}
    refused: list[tuple[str, str]] = []
    for signature in signatures:
        approver = by_id.get(signature.key_id)
        if approver is None:
            refused.append((signature.key_id, "not an approver of this policy"))
            continue
        if approver.has_expired(now):
            refused.append((signature.key_id, "this key has expired"))
            continue
        try:
            check_act(signature, public_key=approver.public, expected=expectation, now=now)
        except TrustError as error:
            refused.append((signature.key_id, error.message))
            continue
        if approver.public.raw in counted:
            refused.append((signature.key_id, "this key signed already; it counts once"))
            continue
        counted[approver.public.raw] = signature
    signed = list(counted.values())
    if any(approver.public.scheme.is_partial for approver in approvers):
        acts = [signature.act for signature in signed]
        most = max(acts, key=acts.count, default=None)
        refused += [(s.key_id, "parts of one signature have one expiry; sign again as the others")
                    for s in signed if s.act != most]  # fmt: skip
        signed = [s for s in signed if s.act == most]
    return QuorumResult(k=k, n=len(by_id), signatures=tuple(signed), refused=tuple(refused))


def met(found: QuorumResult, action: Action) -> tuple[Signature, ...]:
    """Returns the signatures that count for `action`, where they are enough.

    Raises:
        ThresholdNotMet: they are fewer; `detail["refused"]` says which do not count and why.
    """
    if not found.met:
        raise too_few(found, action)
    return found.signatures


def too_few(found: QuorumResult, action: Action) -> ThresholdNotMet:
    """Returns the error of a quorum that was not met."""
    have, said = len(found.signatures), "".join(f"; {k[:80]}: {why}" for k, why in found.refused)
    return ThresholdNotMet(
        f"{action}: {have} of {found.k} signatures{said}",
        mend="collect the missing signatures over exactly what is to be done, as it is now",
        detail={"have": have, "need": found.k, "refused": list(found.refused)},
    )
