"""What holds at the moment of deciding, gathered for `lifecycle`."""

from __future__ import annotations

from cambium.core.errors import AttestationRefused
from cambium.lifecycle.blockers import Situation
from cambium.serve.errors import SystemKilled
from cambium.serve.proposals import Proposals
from cambium.serve.publish import Published
from cambium.serve.quarantined import quarantined


def situation_now(proposals: Proposals, published: Published) -> Situation:
    """Returns head, policy, state version, revoked keys and, if it holds, a fresh attestation."""
    policy = proposals.need_policy()
    now = proposals.now_ms() // 1000
    head = published.bank.revision
    try:
        attestation = proposals.attest(measurement=head.digest)
    except (AttestationRefused, SystemKilled):
        attestation = None  # lifecycle says so among what blocks
    with proposals.state.read() as tx:
        revoked = frozenset(k.key_id for k in tx.list_keys() if k.revoked_at is not None)
        version, barred = tx.state_version(), quarantined(tx)
    return Situation(
        head=head,
        policy=policy,
        state_version=version,
        attestation=attestation,
        now=now,
        revoked_keys=revoked,
        quarantined=barred,
        killed=proposals.kill.killed is not None,
    )
