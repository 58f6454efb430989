"""What is said about a look, and whether stored envelopes still say exactly that."""

from __future__ import annotations

from collections.abc import Sequence

from cambium.core.canonical import canonical_json, digest_json
from cambium.core.errors import DigestMismatch
from cambium.core.evidence import Verdict
from cambium.lifecycle.proposal import Proposal
from cambium.trust.dsse import make_statement, open_envelope
from cambium.trust.keys import PublicKey
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
    """Returns the digest over the envelopes' digests, in the order of looks and verdicts."""
    return digest_json([digest_json(envelope) for envelope in envelopes])


def check_evidence(
    proposal: Proposal,
    *,
    envelopes: Sequence[dict[str, object]],
    policy: Policy,
    server_public: PublicKey,
) -> None:
    """Returns when the envelopes are exactly the signed evidence of the proposal's looks.

    Raises:
        DigestMismatch: one is missing, added, reordered or about something else.
        SignatureInvalid: one was not signed by the server.
    """
    if proposal.evidence_root is None or evidence_root(envelopes) != proposal.evidence_root:
        raise DigestMismatch("the evidence is not what the proposal's root covers",
                             mend="restore the evidence, or take another look")  # fmt: skip
    expected = [
        canonical_json(statement)
        for look, verdicts in enumerate(proposal.looks)
        for statement in look_statements(proposal, verdicts, look=look, policy=policy)
    ]
    opened = [canonical_json(open_envelope(e, public_key=server_public)) for e in envelopes]
    if opened != expected:
        raise DigestMismatch("the evidence does not describe the proposal's looks",
                             mend="take another look")  # fmt: skip
