"""Quarantine of a revision: what it brought never answers again, whoever would roll back to it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from cambium.core.errors import IllegalTransition
from cambium.core.nouns import Revision, Signature
from cambium.lifecycle.revoke import authorise_quarantine
from cambium.lifecycle.situation import Situation
from cambium.serve.adapter_states import AdapterState
from cambium.serve.errors import RevisionNotFound
from cambium.serve.group_signature import group_signature
from cambium.serve.proposals import Proposals
from cambium.serve.quarantined import KIND, add_quarantined
from cambium.serve.revision_records import verified_revision
from cambium.serve.revocation import MAX_REASON_CHARS
from cambium.serve.store.transaction import Transaction
from cambium.trust.acts import signature_to_json


def quarantine_revision(
    number: int,
    reason: str,
    signatures: Sequence[Signature],
    tx: Transaction,
    *,
    proposals: Proposals,
    situation: Situation,
) -> dict[str, Any]:
    """Takes what a revision brought out of service for good, and the live adapters on top of it.

    Those that are in memory are the caller's to let go of.

    Args:
        tx: of whoever decides, so that no rollback passes by.

    Raises:
        RevisionNotFound, IllegalTransition, ThresholdNotMet, SystemKilled: nothing was changed.
    """
    if not reason.strip() or len(reason) > MAX_REASON_CHARS:
        raise IllegalTransition(
            f"a quarantine needs a reason of at most {MAX_REASON_CHARS} characters", mend="say why"
        )
    revision, before = _verified(number, proposals, tx)
    brought, counted = authorise_quarantine(
        revision, signatures, before=before, situation=situation
    )
    add_quarantined(tx, brought)
    ended = _end_above(brought, tx)
    version = tx.bump_state_version()
    body: dict[str, object] = {
        "revision": number,
        "digest": revision.digest,
        "adapters": sorted(brought),
        "ended": ended,
        "reason": reason,
        "signatures": [signature_to_json(s) for s in counted],
        "group_signature": group_signature(situation.policy, counted),
        "state_version": version,
    }
    proposals.log(tx, kind=KIND, body=body)
    return {name: body[name] for name in ("revision", "adapters", "ended", "state_version")}


def _end_above(digests: Collection[str], tx: Transaction) -> list[str]:
    """Marks as quarantined the live adapters on top of one of these; returns their names."""
    ended: list[str] = []
    for record in tx.list_adapters():
        manifest: dict[str, Any] = tx.get_revision(record.parent_revision).manifest
        below = manifest["bank"].get(record.domain)
        if record.state is AdapterState.EPHEMERAL and below and below["digest"] in digests:
            tx.put_adapter(replace(record, state=AdapterState.QUARANTINED))
            ended.append(record.name)
    return ended


def _verified(
    number: int, proposals: Proposals, tx: Transaction
) -> tuple[Revision, Revision | None]:
    """Returns a revision and the one before it, as the server signed them."""
    rows = {row.number: row for row in tx.list_revisions()}
    if number not in rows:
        raise RevisionNotFound(f"there is no revision {number}", mend="see GET /revisions")
    public = proposals.identity.key_in(tx).public_key
    before = rows.get(number - 1)
    return (
        verified_revision(rows[number], public),
        verified_revision(before, public) if before else None,
    )
