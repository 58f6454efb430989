"""The evidence of looks that tests took, by its root, and what blocks a proposal with it."""

from __future__ import annotations

from cambium.core.errors import TrustError
from cambium.lifecycle.blockers import blockers as all_blockers
from cambium.lifecycle.evidence import check_evidence
from cambium.lifecycle.proposal import FINAL, Proposal
from cambium.lifecycle.situation import Situation

# A root is the digest of what it stands for, so that tests cannot get in each other's way.
ENVELOPES: dict[str, list[dict[str, object]]] = {}


def evidence_of(proposal: Proposal) -> list[dict[str, object]]:
    return ENVELOPES.get(proposal.evidence_root or "", [])


def blockers(proposal: Proposal, situation: Situation) -> tuple[str, ...]:
    """Returns what blocks a proposal, with the evidence that its root stands for."""
    found = all_blockers(proposal, situation)
    if proposal.state in FINAL or not proposal.looks:
        return found
    try:
        check_evidence(proposal, envelopes=evidence_of(proposal), situation=situation)
    except TrustError as error:
        return (*found, f"evidence: {error.message}")
    return found
