"""Rows of proposals, what was found out about them, who approved them, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select, update

from cambium.core.canonical import digest_json
from cambium.core.errors import DigestMismatch, DuplicateSigner, IllegalTransition
from cambium.core.nouns import ProposalState
from cambium.serve.errors import ProposalNotFound, RevisionNotFound, StateCorrupt
from cambium.serve.store.records import (
    ApprovalRow,
    EvidenceRow,
    ProposalHead,
    ProposalRow,
    RevisionRow,
)
from cambium.serve.store.rows import Rows, columns
from cambium.serve.store.schema import Approval, Evidence, Proposal, Revision

_PROPOSALS = columns(Proposal, ProposalRow)
_REVISIONS = columns(Revision, RevisionRow)
# A database takes so many values in one statement, and more.
_AT_ONCE = 500


class ProposalRows(Rows):
    """Proposals with their evidence and approvals; revisions."""

    def put_proposal(self, row: ProposalRow) -> None:
        """Inserts the proposal, or replaces the one of this id."""
        self._put(Proposal, row)

    def get_proposal(self, id: str) -> ProposalRow:
        """Returns the proposal of this id.

        Raises:
            ProposalNotFound: there is none.
        """
        row = self._first(ProposalRow, _PROPOSALS.where(Proposal.id == id))
        if row is None:
            raise ProposalNotFound(f"no proposal has the id {id!r:.100}", mend="list the proposals")
        return row

    def list_proposals(self, *, state: ProposalState | None = None) -> list[ProposalRow]:
        """Returns the proposals, oldest first, of one state if given."""
        statement = _PROPOSALS.order_by(Proposal.created_at, Proposal.id)
        if state is not None:
            statement = statement.where(Proposal.state == state)
        return self._all(ProposalRow, statement)

    def proposal_heads(self) -> list[ProposalHead]:
        """Returns what orders all proposals, oldest first; no record is read for it."""
        chosen = select(Proposal.id, Proposal.state, Proposal.created_at)
        rows = self._connection.execute(chosen.order_by(Proposal.created_at, Proposal.id))
        return [ProposalHead(id=id, state=state, created_at=at) for id, state, at in rows]

    def proposals_of(self, ids: Sequence[str]) -> list[ProposalRow]:
        """Returns the proposals of these ids, in this order; one that is not there is left out."""
        found: dict[str, ProposalRow] = {}
        for at in range(0, len(ids), _AT_ONCE):
            some = _PROPOSALS.where(Proposal.id.in_(ids[at : at + _AT_ONCE]))
            found |= {row.id: row for row in self._all(ProposalRow, some)}
        return [found[id] for id in ids if id in found]

    def add_evidence(self, row: EvidenceRow) -> None:
        """Adds a signed statement; adding the same one again changes nothing.

        Raises:
            DigestMismatch: `row.digest` is not the digest of the envelope's canonical JSON.
            DataError: there is no such proposal.
        """
        if digest_json(row.envelope) != row.digest:
            raise DigestMismatch("the evidence's digest is of other bytes", mend="digest_json(it)")
        self._add_once(Evidence, row)

    def replace_evidence(self, digest: str, row: EvidenceRow) -> None:
        """Puts a statement in the place of the one of this digest: the same with more signatures.

        Raises:
            DigestMismatch: as `add_evidence`.
        """
        self._connection.execute(delete(Evidence).where(Evidence.digest == digest))
        self.add_evidence(row)

    def list_evidence(self, proposal: str) -> list[EvidenceRow]:
        """Returns the statements about a proposal by look, then gate.

        Raises:
            StateCorrupt: a stored statement does not hash to its name.
        """
        ordered = columns(Evidence, EvidenceRow).order_by(Evidence.look, Evidence.gate)
        rows = self._all(EvidenceRow, ordered.where(Evidence.proposal == proposal))
        for row in rows:
            _check(row.digest, content=row.envelope, what=f"evidence of {proposal}")
        return rows

    def add_approval(self, row: ApprovalRow) -> None:
        """Adds a signature.

        Raises:
            DuplicateSigner: this key has approved this proposal already.
            DataError: there is no such proposal.
        """
        key = (Approval.proposal == row.proposal, Approval.key_id == row.key_id)
        if self._connection.execute(select(Approval.key_id).where(*key)).first():
            raise DuplicateSigner(
                f"{row.key_id} has approved this proposal already", mend="another key must sign"
            )
        self._add(Approval, row)

    def list_approvals(self, proposal: str) -> list[ApprovalRow]:
        """Returns the signatures on a proposal, oldest first."""
        return self.approvals_of([proposal])[proposal]

    def approvals_of(self, proposals: Sequence[str]) -> dict[str, list[ApprovalRow]]:
        """Returns the signatures on each of several proposals, oldest first."""
        found: dict[str, list[ApprovalRow]] = {proposal: [] for proposal in proposals}
        ordered = columns(Approval, ApprovalRow).order_by(Approval.at, Approval.key_id)
        for at in range(0, len(proposals), _AT_ONCE):
            some = ordered.where(Approval.proposal.in_(proposals[at : at + _AT_ONCE]))
            for row in self._all(ApprovalRow, some):
                found[row.proposal].append(row)
        return found

    def clear_approvals(self, proposal: str) -> int:
        """Voids the signatures on a proposal, as new evidence does, and returns how many."""
        gone = delete(Approval).where(Approval.proposal == proposal)
        return self._connection.execute(gone).rowcount

    def sign_revision_again(self, number: int, signature: dict[str, object]) -> None:
        """Puts another signature beside a revision's manifest, which stays as it is."""
        signed = update(Revision).where(Revision.number == number).values(signature=signature)
        self._connection.execute(signed)

    def add_revision(self, row: RevisionRow) -> None:
        """Adds the next revision; the first may have any number.

        Raises:
            IllegalTransition: the number is not one more than the head's.
            DigestMismatch: `row.digest` is not the digest of the manifest's canonical JSON.
        """
        head = self.head_revision()
        if head is not None and row.number != head.number + 1:
            raise IllegalTransition(
                f"revision {row.number} cannot follow revision {head.number}",
                mend="numbers grow by one",
            )
        if digest_json(row.manifest) != row.digest:
            raise DigestMismatch("the revision's digest is of another manifest", mend="digest it")
        self._add(Revision, row)

    def head_revision(self) -> RevisionRow | None:
        """Returns the newest revision, or None before the first.

        Raises:
            StateCorrupt: its manifest does not hash to its name.
        """
        newest = self._first(RevisionRow, _REVISIONS.order_by(Revision.number.desc()))
        return None if newest is None else _sound(newest)

    def get_revision(self, number: int) -> RevisionRow:
        """Returns the revision of this number.

        Raises:
            RevisionNotFound: there is none.
            StateCorrupt: its manifest does not hash to its name.
        """
        row = self._first(RevisionRow, _REVISIONS.where(Revision.number == number))
        if row is None:
            raise RevisionNotFound(f"there is no revision {number}", mend="list the revisions")
        return _sound(row)

    def list_revisions(self) -> list[RevisionRow]:
        """Returns the revisions, oldest first.

        Raises:
            StateCorrupt: a manifest does not hash to its name.
        """
        rows = self._all(RevisionRow, _REVISIONS.order_by(Revision.number))
        return [_sound(row) for row in rows]


def _sound(row: RevisionRow) -> RevisionRow:
    _check(row.digest, content=row.manifest, what=f"revision {row.number}")
    return row


def _check(digest: str, *, content: object, what: str) -> None:
    if digest_json(content) != digest:
        raise StateCorrupt(
            f"the stored {what} does not hash to its name", mend="restore the state from a backup"
        )
