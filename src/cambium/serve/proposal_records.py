"""Proposals as JSON rows and back; the lifecycle itself knows no storage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cambium.core.canonical import digest_json
from cambium.core.errors import DataError
from cambium.core.evidence import Measurement, Outcome, Verdict
from cambium.core.nouns import ProposalState
from cambium.lifecycle.proposal import Proposal, Waived
from cambium.serve.errors import StateCorrupt
from cambium.serve.signed_records import signature_from_json
from cambium.serve.store.records import ProposalRow
from cambium.trust.acts import signature_to_json


@dataclass(frozen=True, kw_only=True)
class Filed:
    """A proposal with what the server keeps beside it.

    Args:
        router_digest: the index that would serve the candidate's domain.
        weights_blob, config_json: the candidate's two files.
        provenance: what it was made from: examples by digest, sources, consent, learning steps.
        errors: gates that could not be measured at the last attempt, in words.
        made_from: what, with the provenance, derives the candidate again.
        behaviour_blob: the behavioural diff, once it is computed.
    """

    proposal: Proposal
    provenance: dict[str, Any]
    router_digest: str | None = None
    weights_blob: str | None = None
    config_json: str | None = None
    anchors_blob: str | None = None
    errors: dict[str, str] | None = None
    made_from: dict[str, Any] | None = None
    behaviour_blob: str | None = None
    created_at: int = 0

    def with_proposal(self, proposal: Proposal) -> Filed:
        """Returns the same file around a moved proposal."""
        return replace(self, proposal=proposal)


def to_row(filed: Filed, *, at: int) -> ProposalRow:
    """Returns the row of a filed proposal."""
    p = filed.proposal
    record: dict[str, Any] = {
        "state": str(p.state),
        "adapter_name": p.adapter_name,
        "source_digest": p.source_digest,
        "domain": p.domain,
        "parent_revision": p.parent_revision,
        "parent_digest": p.parent_digest,
        "policy_digest": p.policy_digest,
        "provenance_digest": p.provenance_digest,
        "candidate_digest": p.candidate_digest,
        "looks": [[v.to_json() for v in look] for look in p.looks],
        "evidence_root": p.evidence_root,
        "approvals": [signature_to_json(s) for s in p.approvals],
        "reason": p.reason,
        "restarts": p.restarts,
        "waivers": [{"gate": w.gate, **signature_to_json(w.signature)} for w in p.waivers],
        "provenance": filed.provenance,
        "router_digest": filed.router_digest,
        "weights_blob": filed.weights_blob,
        "config_json": filed.config_json,
        "anchors_blob": filed.anchors_blob,
        "errors": filed.errors or {},
        "made_from": filed.made_from,
        "behaviour_blob": filed.behaviour_blob,
    }
    return ProposalRow(id=p.id, state=p.state, record=record,
                       created_at=filed.created_at or at, updated_at=at)  # fmt: skip


def from_row(row: ProposalRow) -> Filed:
    """Reads a row that `to_row` made.

    Raises:
        StateCorrupt: it is another kind of row, or reads back differently.
    """
    try:
        filed = _read(row)
        same = to_row(filed, at=row.updated_at) == row
        same = same and digest_json(filed.provenance) == filed.proposal.provenance_digest
    except (KeyError, TypeError, ValueError, AttributeError, DataError) as error:
        raise StateCorrupt(f"the record of proposal {row.id} cannot be read: {error}",
                           mend="restore the state from a backup") from error  # fmt: skip
    if not same:
        raise StateCorrupt(f"the record of proposal {row.id} contradicts itself",
                           mend="restore the state from a backup")  # fmt: skip
    return filed


def _read(row: ProposalRow) -> Filed:
    r: dict[str, Any] = row.record
    proposal = Proposal(
        id=row.id,
        adapter_name=r["adapter_name"],
        source_digest=r["source_digest"],
        domain=r["domain"],
        parent_revision=r["parent_revision"],
        parent_digest=r["parent_digest"],
        policy_digest=r["policy_digest"],
        provenance_digest=r["provenance_digest"],
        state=ProposalState(row.state),
        candidate_digest=r["candidate_digest"],
        looks=tuple(tuple(_verdict(v) for v in look) for look in r["looks"]),
        evidence_root=r["evidence_root"],
        approvals=tuple(signature_from_json(s) for s in r["approvals"]),
        reason=r["reason"],
        restarts=r["restarts"],
        waivers=tuple(_waiver(w) for w in r["waivers"]),
    )
    return Filed(
        proposal=proposal,
        provenance=r["provenance"],
        router_digest=r["router_digest"],
        weights_blob=r["weights_blob"],
        config_json=r["config_json"],
        anchors_blob=r["anchors_blob"],
        errors=r["errors"],
        made_from=r["made_from"],
        behaviour_blob=r["behaviour_blob"],
        created_at=row.created_at,
    )


def _waiver(value: dict[str, Any]) -> Waived:
    signature = {name: part for name, part in value.items() if name != "gate"}
    return Waived(gate=value["gate"], signature=signature_from_json(signature))


def _verdict(value: dict[str, Any]) -> Verdict:
    measured = value["measurement"]
    measurement = None
    if measured is not None:
        measurement = Measurement(
            **{
                **measured,
                "ci": tuple(measured["ci"]),
                "notes": tuple(measured["notes"]),
                "mde": float("inf") if measured["mde"] is None else measured["mde"],
            }
        )
    return Verdict(
        gate=value["gate"],
        outcome=Outcome(value["outcome"]),
        why=value["why"],
        decisive=value["decisive"],
        measurement=measurement,
    )
