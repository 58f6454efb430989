"""The kill switch's rules: one person stops everything, only the quorum revives it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cambium.core.canonical import digest_json
from cambium.core.nouns import Act, Action, Signature
from cambium.lifecycle.situation import Counting
from cambium.trust.acts import signature_to_json
from cambium.trust.quorum import Approver, QuorumResult, count_quorum, met, too_few


@dataclass(frozen=True, kw_only=True)
class Killed:
    """Who stopped the system and why.

    Args:
        server: the public key that takes the revoked server key's place, so that a quorum which
            revives lets it in; empty until the kill is on record.
    """

    reason: str
    name: str
    signature: Signature
    server: str = ""

    def to_json(self) -> dict[str, object]:
        """Returns the record that the digest covers."""
        record = {**vars(self), "signature": signature_to_json(self.signature)}
        return {name: value for name, value in record.items() if name != "server" or value}

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
        expected = Act(action=Action.KILL, target=act.target,
                               state_version=act.state_version, policy=act.policy)  # fmt: skip
        found = count_quorum([signature], approvers=[person], expectation=expected, k=1, now=now)
        if found.met:
            return Killed(reason=reason, name=person.name, signature=signature)
        refused += found.refused
    found = QuorumResult(k=1, n=len(known), signatures=(), refused=tuple(refused))
    raise too_few(found, Action.KILL)


def authorise_revival(
    killed: Killed, signatures: Sequence[Signature], *, counting: Counting
) -> tuple[Signature, ...]:
    """Returns the signatures that lift `killed`; their target is its digest.

    Raises:
        ThresholdNotMet: fewer than k distinct approvers signed exactly that.
    """
    found = counting.count(signatures, action=Action.REVIVE, target=killed.digest)
    return met(found, Action.REVIVE)
