"""What is said about a look, and whether stored envelopes still say exactly that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cambium.core.canonical import canonical_json, digest_json
from cambium.core.errors import DigestMismatch, SignatureInvalid, ThresholdNotMet
from cambium.core.evidence import Verdict
from cambium.lifecycle.proposal import Proposal
from cambium.lifecycle.situation import Situation
from cambium.trust.dsse import make_statement, open_envelope
from cambium.trust.policy import Policy


def look_statements(
    proposal: Proposal, verdicts: Sequence[Verdict], *, look: int, policy: Policy
) -> tuple[dict[str, object], ...]:
    """Returns one in-toto statement for each verdict of look number `look` (from 0).

    Each names the candidate by digest, the proposal, the parent and the bar it was held to.

    Raises:
        DigestMismatch: there is no candidate yet, or a verdict is of an undeclared gate.
    """
    if proposal.candidate_digest is None:
        raise DigestMismatch("there is no candidate to speak about", mend="freeze it first")
    specs = {spec.name: spec for spec in policy.gates}
    statements: list[dict[str, object]] = []
    for verdict in verdicts:
        if verdict.gate not in specs:
            raise DigestMismatch(f"the policy has no gate {verdict.gate!r}", mend="declare it")
        predicate: dict[str, object] = {
            "proposal": proposal.id,
            "domain": proposal.domain,
            "look": look,
            "parent": {"revision": proposal.parent_revision, "digest": proposal.parent_digest},
            "policy": proposal.policy_digest,
            "bar": specs[verdict.gate].to_json(),
            "verdict": verdict.to_json(),
        }
        statements.append(
            make_statement({proposal.adapter_name: proposal.candidate_digest}, predicate)
        )
    return tuple(statements)


def evidence_root(envelopes: Sequence[dict[str, object]]) -> str:
    """Returns the digest over the envelopes' digests, in the order of looks and verdicts.

    As the server recorded them: whoever signs later changes nothing that approvers sign.
    """
    return digest_json([record_digest(envelope) for envelope in envelopes])


def record_digest(envelope: dict[str, object]) -> str:
    """Returns the digest of an envelope under its first signature, the server's, alone."""
    signatures: Any = envelope["signatures"]
    return digest_json({**envelope, "signatures": signatures[:1]})


def check_evidence(
    proposal: Proposal, *, envelopes: Sequence[dict[str, object]], situation: Situation
) -> None:
    """Returns when the envelopes are exactly the evidence of the proposal's looks, and it counts.

    The server in office recorded it, and k evaluators of the policy signed each verdict.

    Raises:
        DigestMismatch: one is missing, added, reordered or about something else.
        SignatureInvalid: one was not recorded by the server in office.
        ThresholdNotMet: fewer than k evaluators signed one, by keys that count now.
    """
    policy, server = situation.policy, situation.server
    if proposal.evidence_root is None or evidence_root(envelopes) != proposal.evidence_root:
        raise DigestMismatch("the evidence is not what the proposal's root covers",
                             mend="restore the evidence, or take another look")  # fmt: skip
    expected = [
        canonical_json(statement)
        for look, verdicts in enumerate(proposal.looks)
        for statement in look_statements(proposal, verdicts, look=look, policy=policy)
    ]
    opened = [canonical_json(open_envelope(e, public_key=server)) for e in envelopes]
    if opened != expected:
        raise DigestMismatch("the evidence does not describe the proposal's looks",
                             mend="take another look")  # fmt: skip
    for envelope in envelopes:
        if why := situation.lacks(envelope, policy.evaluators, "evaluators")[0]:
            raise ThresholdNotMet(why, mend="have an evaluator sign it, or take another look")


def is_void(envelopes: Sequence[dict[str, object]], situation: Situation) -> bool:
    """Returns whether evidence that counted counts no more, so that looks have to begin anew.

    The server's key was revoked by a kill since, or an evaluator's has gone and was needed.
    """
    try:
        for envelope in envelopes:
            open_envelope(envelope, public_key=situation.server)
            if situation.lacks(envelope, situation.policy.evaluators, "evaluators")[1]:
                return True
    except SignatureInvalid:
        return True
    return False
