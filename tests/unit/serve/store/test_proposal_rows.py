"""Proposals, evidence, approvals and revisions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cambium.core.canonical import digest_json
from cambium.core.errors import DataError, DigestMismatch, DuplicateSigner, IllegalTransition
from cambium.core.nouns import ProposalState
from cambium.serve.errors import ProposalNotFound, RevisionNotFound, StateCorrupt
from cambium.serve.store.records import ApprovalRow, EvidenceRow, ProposalRow, RevisionRow
from cambium.serve.store.state import State


def proposal(id: str = "p-1", *, state: ProposalState = ProposalState.CHECKING) -> ProposalRow:
    return ProposalRow(id=id, state=state, record={"looks": [1, 2]}, created_at=1, updated_at=1)


def evidence(look: int = 1, *, gate: str = "retention", proposal: str = "p-1") -> EvidenceRow:
    envelope: dict[str, object] = {"payload": f"{proposal}/{look}/{gate}", "signatures": []}
    return EvidenceRow(digest=digest_json(envelope), proposal=proposal, look=look, gate=gate,
                       envelope=envelope, at=3)  # fmt: skip


def approval(key_id: str = "k-1", *, at: int = 4, proposal: str = "p-1") -> ApprovalRow:
    return ApprovalRow(proposal=proposal, key_id=key_id, signature={"sig": key_id}, at=at)


def revision(number: int) -> RevisionRow:
    manifest: dict[str, object] = {"number": number, "bank": {"law": {"x": 0.1}}}
    return RevisionRow(number=number, digest=digest_json(manifest), manifest=manifest,
                       signature={"sig": "00"}, at=9)  # fmt: skip


def tamper(state: State, statement: str) -> None:
    """Changes a row behind the program's back."""
    with state._connection_for_writing() as connection:
        assert connection.exec_driver_sql(statement).rowcount == 1


def test_a_proposal_is_one_row_that_moves_on(state: State) -> None:
    moved = replace(proposal(), state=ProposalState.MERGED, record={"reason": None}, updated_at=8)
    other = proposal("p-2")
    with state.transaction() as tx:
        tx.put_proposal(proposal())
        tx.put_proposal(other)
        tx.put_proposal(moved)
    with state.read() as view:
        assert view.get_proposal("p-1") == moved
        assert view.list_proposals() == [moved, other]
        assert view.list_proposals(state=ProposalState.CHECKING) == [other]
        heads = view.proposal_heads()
        assert [(h.id, h.state) for h in heads] == [("p-1", moved.state), ("p-2", other.state)]
        assert view.proposals_of(["p-2", "p-3", "p-1"]) == [other, moved]
        assert view.proposals_of([]) == []
        with pytest.raises(ProposalNotFound):
            view.get_proposal("p-3")


def test_evidence_is_named_by_its_content(state: State) -> None:
    rows = [evidence(1, gate="alignment"), evidence(1), evidence(2)]
    with state.transaction() as tx:
        tx.put_proposal(proposal())
        for row in reversed(rows):
            tx.add_evidence(row)
        tx.add_evidence(replace(rows[0], at=99))
        with pytest.raises(DigestMismatch):
            tx.add_evidence(replace(rows[0], envelope={"payload": "another"}))
    with state.read() as view:
        assert view.list_evidence("p-1") == rows


def test_evidence_of_no_proposal_is_refused(state: State) -> None:
    with pytest.raises(DataError), state.transaction() as tx:
        tx.add_evidence(evidence(proposal="p-9"))


def test_a_key_approves_once(state: State) -> None:
    with state.transaction() as tx:
        tx.put_proposal(proposal())
        tx.put_proposal(proposal("p-2"))
        tx.add_approval(approval("k-2", at=5))
        tx.add_approval(approval("k-1", at=4))
        with pytest.raises(DuplicateSigner):
            tx.add_approval(approval("k-1", at=6))
        tx.add_approval(approval("k-1", proposal="p-2"))
    with state.read() as view:
        assert [a.key_id for a in view.list_approvals("p-1")] == ["k-1", "k-2"]
        found = view.approvals_of(["p-none", "p-1"])
        assert {p: [a.key_id for a in rows] for p, rows in found.items()} == {
            "p-none": [], "p-1": ["k-1", "k-2"]}  # fmt: skip


def test_new_evidence_can_void_approvals(state: State) -> None:
    with state.transaction() as tx:
        tx.put_proposal(proposal())
        tx.add_approval(approval())
        assert tx.clear_approvals("p-1") == 1
        assert tx.list_approvals("p-1") == []
        tx.add_approval(approval())


def test_revisions_grow_by_one(state: State) -> None:
    with state.transaction() as tx:
        assert tx.head_revision() is None
        for number in (1, 2, 3):
            tx.add_revision(revision(number))
        for number in (1, 3, 5):
            with pytest.raises(IllegalTransition):
                tx.add_revision(revision(number))
        with pytest.raises(DigestMismatch):
            tx.add_revision(replace(revision(4), digest=revision(3).digest))
    with state.read() as view:
        assert view.head_revision() == revision(3)
        assert view.get_revision(2) == revision(2)
        assert view.list_revisions() == [revision(n) for n in (1, 2, 3)]
        with pytest.raises(RevisionNotFound):
            view.get_revision(4)


def test_a_changed_manifest_is_never_returned(state: State) -> None:
    with state.transaction() as tx:
        tx.add_revision(revision(1))
    tamper(state, "UPDATE revisions SET manifest = replace(manifest, '0.1', '0.2')")
    with state.read() as view:
        for ask in (view.head_revision, view.list_revisions, lambda: view.get_revision(1)):
            with pytest.raises(StateCorrupt, match="revision 1"):
                ask()


def test_changed_evidence_is_never_returned(state: State) -> None:
    with state.transaction() as tx:
        tx.put_proposal(proposal())
        tx.add_evidence(evidence())
    tamper(state, "UPDATE evidence SET envelope = '{}'")
    with state.read() as view, pytest.raises(StateCorrupt, match="evidence"):
        view.list_evidence("p-1")
