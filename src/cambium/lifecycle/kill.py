"""The kill switch's rules: one person stops everything, only the quorum revives it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cambium.core.canonical import digest_json
from cambium.core.errors import TrustError
from cambium.core.nouns import Action, Signature
from cambium.trust.acts import Expectation, check_act, signature_to_json
from cambium.trust.policy import Policy
from cambium.trust.quorum import Approver, QuorumResult, count_quorum, met, too_few


@dataclass(frozen=True, kw_only=True)
class Killed:
    """Who stopped the system and why."""

    reason: str
    name: str
    signature: Signature

    def to_json(self) -> dict[str, object]:
        """Returns the record that the digest covers."""
        signature = signature_to_json(self.signature)
        return {"reason": self.reason, "name": self.name, "signature": signature}

    @property
    def digest(self) -> str:
        """Returns the digest of the record: what a revival signs."""
        return digest_json(self.to_json())


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Who may kill, and what a signature may name.

    Args:
        people: approvers, operators and the root, without revoked keys; any one is enough.
        targets: digests of this state's revisions; a signature names one of them.
        versions: of the state, from the last revival to now.
        policies: digests of those that are or were in force.
    """

    people: Sequence[Approver]
    targets: Collection[str]
    versions: range
    policies: Collection[str]


def authorise_kill(
    reason: str, signatures: Sequence[Signature], *, standing: Standing, now: int
) -> Killed:
    """Returns the kill that the first valid signature orders; `now` in seconds since 1970, UTC.

    Nothing that happens meanwhile may void it: a signature counts for any version of the state
    since the last revival.

    Raises:
        ThresholdNotMet: no signature is valid; `detail["refused"]` says why.
    """
    known, refused = {person.key_id: person for person in standing.people}, list[tuple[str, str]]()
    for signature in signatures:
        act, person = signature.act, known.get(signature.key_id)
        fits = (act.target in standing.targets and act.state_version in standing.versions
                and act.policy in standing.policies)  # fmt: skip
        if person is None or not fits or person.has_expired(now):
            why = "may not kill any more, or signed for another state or before a revival"
            refused.append((signature.key_id, why))
            continue
        # What may differ was checked above; the rest has to be exact.
        expected = Expectation(action=Action.KILL, target=act.target,
                               state_version=act.state_version, policy=act.policy)  # fmt: skip
        try:
            check_act(signature, public_key=person.public, expected=expected, now=now)
        except TrustError as error:
            refused.append((signature.key_id, error.message))
        else:
            return Killed(reason=reason, name=person.name, signature=signature)
    found = QuorumResult(k=1, n=len(known), signatures=(), refused=tuple(refused))
    raise too_few(found, Action.KILL)


def authorise_revival(
    killed: Killed,
    signatures: Sequence[Signature],
    *,
    policy: Policy,
    revoked: Collection[str],
    state_version: int,
    now: int,
) -> tuple[Signature, ...]:
    """Returns the signatures that lift `killed`; their target is its digest.

    Raises:
        ThresholdNotMet: fewer than k distinct approvers signed exactly that.
    """
    expected = Expectation(action=Action.REVIVE, target=killed.digest,
                           state_version=state_version, policy=policy.digest)  # fmt: skip
    standing = [s for s in signatures if s.key_id not in revoked]
    return met(count_quorum(standing, approvers=policy.approvers, expectation=expected, k=policy.k,
                            now=now), Action.REVIVE)  # fmt: skip
