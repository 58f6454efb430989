"""Merging and rolling back: from an authorised order to what answers, and back in the log."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from cambium.core.canonical import digest_json
from cambium.core.nouns import ProposalState, Revision, Signature
from cambium.lifecycle.proposal import FINAL, Merged, ParentMoved
from cambium.lifecycle.publish import PublishOrder, authorise_merge, authorise_rollback
from cambium.serve.attestation_report import to_ear
from cambium.serve.bank import Bank
from cambium.serve.drift import DriftTracker
from cambium.serve.ephemeral import EphemeralAdapters
from cambium.serve.errors import RevisionNotFound
from cambium.serve.following import Following
from cambium.serve.group_signature import group_signature
from cambium.serve.proposal_records import Filed
from cambium.serve.proposals import Proposals
from cambium.serve.publish import Published
from cambium.serve.quarantine import quarantine_revision
from cambium.serve.quarantined import quarantined
from cambium.serve.review import Review
from cambium.serve.revision_records import verified_revision
from cambium.serve.situation import situation_now
from cambium.serve.spans import span
from cambium.serve.store.records import RevisionRow
from cambium.serve.store.transaction import Transaction
from cambium.trust.acts import signature_to_json


class Releases:
    """Changes the served revision: one at a time, whichever process of the state it is in.

    All that a release rests on is read, and the release decided and written, in one transaction of
    the state's one writer.
    """

    def __init__(
        self,
        proposals: Proposals,
        *,
        published: Published,
        review: Review,
        adapters: EphemeralAdapters,
        drift: DriftTracker,
        deciding: Following,
    ) -> None:
        self._proposals = proposals
        self._published = published
        self._review = review
        self._adapters = adapters
        self._drift = drift
        self._deciding = deciding

    @span("merge")
    def merge(self, proposal_id: str) -> dict[str, Any]:
        """Merges a proposal and returns the revision with signed and served digest.

        Raises:
            NotMergeable: `detail["blockers"]` lists every reason.
            DigestMismatch: stored bytes are not what was signed; nothing was changed.
        """
        with self._deciding:
            with self._deciding.transaction() as tx:
                filed = self._proposals.get(proposal_id)
                order = authorise_merge(
                    filed.proposal,
                    situation=situation_now(self._proposals, self._published),
                    evidence=self._proposals.evidence(filed.proposal, tx),
                    router_digest=filed.router_digest or "",
                )
                bank, reopened = self._write(order, tx, merged=filed)
            served = self._serve(order, bank, reopened)
        return {
            "revision": order.revision.number,
            "signed_digest": filed.proposal.candidate_digest,
            "served_digest": served[filed.proposal.domain],
            "revision_digest": order.revision.digest,
            "attestation": order.revision.attestation,
        }

    @span("rollback")
    def rollback(self, to: int, signatures: Sequence[Signature]) -> dict[str, Any]:
        """Serves an earlier revision's bank again, as a new and higher revision.

        Raises:
            RevisionNotFound, IllegalTransition, ThresholdNotMet, AttestationRefused: no.
        """
        with self._deciding:
            with self._deciding.transaction() as tx:
                order = authorise_rollback(
                    self._verified(to, tx),
                    situation=situation_now(self._proposals, self._published),
                    signatures=signatures,
                )
                bank, reopened = self._write(order, tx, merged=None)
            served = self._serve(order, bank, reopened)
        return {
            "revision": order.revision.number,
            "of": order.revision.of,
            "served_digest": served_digest(served),
            "served": served,
            "revision_digest": order.revision.digest,
        }

    def quarantine(
        self, number: int, reason: str, signatures: Sequence[Signature]
    ) -> dict[str, Any]:
        """Lets what a revision brought never answer again; see `quarantine_revision`."""
        with self._deciding:
            with self._deciding.transaction() as tx:
                found = quarantine_revision(
                    number,
                    reason,
                    signatures,
                    tx,
                    proposals=self._proposals,
                    situation=situation_now(self._proposals, self._published),
                )
            self._adapters.forget_ended()
        return found

    def list(self) -> list[dict[str, Any]]:
        """Returns every revision, oldest first, the served one marked."""
        with self._proposals.state.read() as tx:
            rows, barred = tx.list_revisions(), quarantined(tx)
        served = self._published.bank.revision.number
        return [_revision_view(row, served=row.number == served, barred=barred) for row in rows]

    def _write(
        self, order: PublishOrder, tx: Transaction, *, merged: Filed | None
    ) -> tuple[Bank, list[str]]:
        """Returns the ordered bank, loaded and hashed, and the proposals that begin again."""
        bank = self._published.prepare(order)
        row = self._published.commit(order, tx, at=self._proposals.now_ms())
        if merged is not None:
            self._proposals.move(merged, Merged(), tx, kind="proposal.merged")
        reopened = self._send_back(
            order.revision, tx, except_id=merged.proposal.id if merged else None
        )
        version = tx.bump_state_version()
        body: dict[str, object] = {
            "revision": row.number,
            "digest": row.digest,
            "reason": order.reason,
            "attestation": to_ear(order.attestation) if order.attestation else None,
            "attested": order.attestation.envelope() if order.attestation else None,
            "signatures": [signature_to_json(s) for s in order.signatures],
            "group_signature": group_signature(self._proposals.need_policy(), order.signatures),
            "state_version": version,
        }
        self._proposals.log(tx, kind=f"revision.{order.revision.kind}", body=body)
        return bank, reopened

    def _serve(self, order: PublishOrder, bank: Bank, reopened: Sequence[str]) -> dict[str, str]:
        served = self._published.serve(order, bank)
        for proposal_id in reopened:
            self._review.enqueue(proposal_id)
        self._drift.follow()
        return served

    def _send_back(self, head: Revision, tx: Transaction, *, except_id: str | None) -> list[str]:
        before = {entry.domain: entry.adapter for entry in self._published.bank.revision.bank}
        after = {entry.domain: entry.adapter for entry in head.bank}
        reopened = []
        for filed in self._proposals.all():
            proposal = filed.proposal
            if proposal.id == except_id or proposal.state in FINAL:
                continue
            event = ParentMoved(
                revision=head.number,
                digest=head.digest,
                domain_changed=before.get(proposal.domain) != after.get(proposal.domain),
            )
            if event.domain_changed:
                filed = replace(filed, router_digest=None, weights_blob=None, config_json=None,
                                made_from=None)  # fmt: skip
            filed = replace(filed, errors={})
            moved = self._proposals.move(filed, event, tx, kind="proposal.parent_moved")
            tx.clear_approvals(proposal.id)
            if moved.proposal.state in (ProposalState.CONSOLIDATING, ProposalState.CHECKING):
                reopened.append(proposal.id)
        return reopened

    def _verified(self, number: int, tx: Transaction) -> Revision:
        rows = {row.number: row for row in tx.list_revisions()}
        if number not in rows:
            raise RevisionNotFound(f"there is no revision {number}", mend="see GET /revisions")
        return verified_revision(rows[number], self._proposals.identity.key_in(tx).public_key)


def served_digest(served: dict[str, str]) -> str:
    """Returns one digest for what is served: the adapter's, or that of all adapters by domain."""
    return next(iter(served.values())) if len(served) == 1 else digest_json(served)


def _revision_view(row: RevisionRow, *, served: bool, barred: Collection[str]) -> dict[str, Any]:
    manifest: dict[str, Any] = row.manifest
    return {
        "number": row.number,
        "digest": row.digest,
        "kind": manifest["kind"],
        "of": manifest["of"],
        "served": served,
        "quarantined": any(e["digest"] in barred for e in manifest["bank"].values()),
        "bank": manifest["bank"],
        "attestation": manifest["attestation"],
        "proposal": manifest["proposal"],
        "created_at": manifest["created_at"],
        "signature": row.signature,
    }
