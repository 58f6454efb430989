"""What holds at the moment of deciding, gathered for `lifecycle`."""

from __future__ import annotations

from cambium.lifecycle.situation import Situation
from cambium.serve.proposals import Proposals
from cambium.serve.publish import Published


def situation_now(proposals: Proposals, published: Published) -> Situation:
    """Returns head, policy, state version, revoked keys and, if it holds, a fresh attestation."""
    head = published.bank.revision
    return proposals.situation(head, measurement=head.digest)
