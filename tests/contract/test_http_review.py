"""The contract's calls of proposals, merging and rollback: their fields and states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.serving import PORT, TREES, People, Server, served, small_config, tiny_base

from cambium.core.canonical import is_digest
from cambium.trust.audit import AuditEntry, Checkpoint, to_bytes, verify_log
from cambium.trust.keys import PublicKey
from cambium.trust.merkle import is_consistent, is_included

GATES = [
    "domain_gain",
    "retention",
    "alignment",
    "alignment_drift",
    "alignment_writing",
    "power_seeking",
    "integrity",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state)
    base = tiny_base(tmp_path_factory.mktemp("base"))
    with served(small_config(state, model=str(base)), people) as found:
        yield found


@pytest.fixture(scope="module")
def trees(server: Server) -> str:
    return server.awaiting("trees", "trees", TREES)


def test_a_proposal_shows_what_a_reviewer_needs(server: Server, trees: str) -> None:
    view = server.get(f"/proposals/{trees}")
    assert {"id", "state", "candidate_digest", "proposal_digest", "domain", "parent_revision",
            "provenance", "gates", "approvals", "quorum", "blockers"} <= set(view)  # fmt: skip
    assert (view["domain"], view["parent_revision"]) == ("trees", 1)
    assert is_digest(view["candidate_digest"])
    assert is_digest(view["proposal_digest"])
    assert view["quorum"] == {"k": 2, "n": 3}
    assert [gate["name"] for gate in view["gates"]] == GATES
    for gate in view["gates"]:
        assert {"name", "verdict", "metric", "baseline", "candidate", "ci", "threshold", "mde",
                "passes", "required"} <= set(gate)  # fmt: skip
        assert (gate["verdict"], gate["passes"], gate["required"]) == ("pass", 1, 1)
    assert len(view["provenance"]["examples"]) == len(TREES)
    assert view["provenance"]["kept_for_gates"] == 5
    assert [b.split(":")[0] for b in view["blockers"]] == ["quorum"]
    assert view in _still(server.get("/proposals")["proposals"])


def test_a_diff_has_its_five_parts_and_says_what_is_missing(server: Server, trees: str) -> None:
    diff = server.get(f"/proposals/{trees}/diff")
    assert set(diff) == {"behaviour", "evals", "weights", "circuits", "data"}
    assert diff["behaviour"]["available"] is diff["circuits"]["available"] is False
    assert [gate["name"] for gate in diff["evals"]["gates"]] == GATES
    assert diff["weights"]["digest"] == server.get(f"/proposals/{trees}")["candidate_digest"]
    assert all(0 < module["relative"] < 50 for module in diff["weights"]["modules"])
    assert diff["data"]["examples"] == len(TREES)


def test_a_frozen_candidate_answers_under_its_digest(server: Server, trees: str) -> None:
    view = server.get(f"/proposals/{trees}")
    answer = server.ask(view["candidate"])
    assert answer.headers["x-cambium-adapter"] == view["candidate"]
    assert server.get("/adapters/" + view["candidate"])["state"] == "frozen"


def test_a_look_more_voids_approvals_and_merging_follows_the_bytes(
    server: Server, trees: str
) -> None:
    before = server.approve(trees, 0)
    assert [a["name"] for a in before["approvals"]] == ["approver-1"]
    again = server.post("/gates/align_review", proposal_id=trees)
    assert (again["proposal_id"], again["verdict"]) == (trees, "pass")
    view = server.get(f"/proposals/{trees}")
    assert (view["approvals"], view["state"]) == ([], "awaiting_approval")
    assert view["proposal_digest"] != before["proposal_digest"]

    came = server.approve(trees, 1)["approvals"][0]["at"]
    view = server.approve(trees, 2)
    assert (view["state"], view["blockers"]) == ("mergeable", [])
    assert [a["name"] for a in view["approvals"]] == ["approver-2", "approver-3"]
    assert view["approvals"][0]["at"] == came
    merged = server.post("/adapters/merge", proposal_id=trees)
    assert merged["revision"] == 2
    assert merged["served_digest"] == merged["signed_digest"] == view["candidate_digest"]
    assert server.get("/adapters/" + view["candidate"])["state"] == "stable"
    served_now = [r["number"] for r in server.get("/revisions")["revisions"] if r["served"]]
    assert served_now == [2]


def test_a_rejected_proposal_keeps_its_reason(server: Server) -> None:
    proposal = server.awaiting("port", "port", PORT)
    refused = server.http.post(f"/proposals/{proposal}/reject", json={"reason": " "})
    assert refused.status_code == 409
    view = server.post(f"/proposals/{proposal}/reject", reason="not our harbour")
    assert (view["state"], view["reason"]) == ("rejected", "not our harbour")
    assert server.http.post("/adapters/merge", json={"proposal_id": proposal}).status_code == 409


def test_the_log_verifies_under_a_fresh_checkpoint(server: Server) -> None:
    entries = [AuditEntry(**e) for e in server.get("/audit")["entries"]]
    answer = server.get("/audit/checkpoint")
    public = PublicKey(raw=answer.pop("public"))
    signed = Checkpoint(**answer)
    assert verify_log(entries, checkpoint=signed, server_public=public) == len(entries)
    assert {"proposal.filed", "proposal.frozen", "proposal.look"} <= {e.kind for e in entries}
    later = server.get("/audit?since=3&limit=2")["entries"]
    assert [e["seq"] for e in later] == [3, 4]


def test_the_log_proves_its_entries_and_its_growth(server: Server) -> None:
    before = server.get("/audit/checkpoint")
    server.create("grows-the-log")
    now = server.get("/audit/checkpoint")
    assert now["size"] == before["size"] + 1
    root = to_bytes(now["root"])
    for entry in server.get("/audit")["entries"]:
        proof = server.get(f"/audit/proof?seq={entry['seq']}&size={now['size']}")
        steps = [to_bytes(step) for step in proof["proof"]]
        assert (proof["leaf_index"], proof["root"]) == (entry["seq"] - 1, now["root"])
        assert is_included(to_bytes(entry["hash"]), entry["seq"] - 1, now["size"], steps, root)
    for first in range(before["size"] + 1):
        proof = server.get(f"/audit/proof?first={first}&second={now['size']}")
        steps = [to_bytes(step) for step in proof["proof"]]
        old = server.get(f"/audit/proof?first=0&second={first}")["root"]
        assert is_consistent(first, now["size"], steps, to_bytes(old), root)
        assert old == before["root"] or first != before["size"]
    grown = server.get(f"/audit/proof?first={before['size']}")
    assert (grown["second"], grown["root"]) == (now["size"], now["root"])


@pytest.mark.parametrize(
    "query",
    ["", "?seq=0", "?seq=99999", "?seq=2&size=1", "?size=3", "?first=3&second=2", "?second=2",
     "?first=0&second=99999", "?seq=1&first=1", "?seq=1&second=1", "?first=1&size=3",
     "?seq=x", "?seq=1&other=1", f"?seq=1&size={10**20}", "?first=-1"],
)  # fmt: skip
def test_a_proof_of_nothing_is_refused(server: Server, query: str) -> None:
    refused = server.http.get(f"/audit/proof{query}")
    assert 400 <= refused.status_code < 500 and refused.json()["code"]


def test_withdrawn_documents_cannot_be_read_any_more(server: Server, trees: str) -> None:
    """At once, though what the proposal names lies on disk until the next sweep."""
    documents = server.get(f"/proposals/{trees}/diff")["data"]["documents"]
    assert documents
    assert server.http.delete("/adapters/trees/examples").json()["forgotten"] == len(TREES)
    blobs = {e["blob"] for e in server.get(f"/proposals/{trees}")["provenance"]["examples"]}
    assert all(server.runtime.state.blobs.has(blob) for blob in blobs)
    assert server.get(f"/proposals/{trees}/diff")["data"]["documents"] == []
    # Nor trained on again; and the sweep takes the texts, whatever names them.
    view = server.get(f"/proposals/{trees}")
    refused = server.http.post(f"/adapters/{view['candidate']}/replay")
    assert (refused.status_code, refused.json()["code"]) == (409, "consent_missing")
    server.runtime.state.sweep_blobs(grace_s=0.0)
    assert not any(server.runtime.state.blobs.has(blob) for blob in blobs)
    assert server.http.delete("/adapters/trees/examples").json()["forgotten"] == 0
    # Whoever gives it anew is heard.
    server.teach("trees", TREES[:1], steps=1)
    with server.runtime.state.read() as tx:
        assert len(tx.withdrawn("trees")) == len(TREES) - 1
    server.runtime.state.sweep_blobs(grace_s=0.0)
    assert sum(server.runtime.state.blobs.has(blob) for blob in blobs) == 1


def test_adapters_of_one_parent_share_it_after_a_restart(server: Server) -> None:
    adapters, names = server.runtime.adapters, ("twig", "leaf")
    for name in names:
        server.create(name, domain="trees")
    adapters._live.clear()  # as a start finds it
    one, other = (adapters.get_live(name).parent for name in names)
    assert one and one is other


def test_what_was_withdrawn_while_it_is_consolidated_is_never_frozen(server: Server) -> None:
    server.create("leaving", domain="leaving")
    server.teach("leaving", TREES, steps=8)
    with server.runtime.base.rows(None):  # nothing is computed meanwhile
        proposal = server.propose("leaving", "leaving")
        server.http.delete("/adapters/leaving/examples").raise_for_status()
        view = server.get(f"/proposals/{proposal}")
        assert (view["state"], view["reason"]) == (
            "rejected", "consent was withdrawn for what it learned")  # fmt: skip
    assert server.settled(proposal)["candidate_digest"] is None


def _still(views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**view, "progress": {"stage": "waiting", "share": 0.0, "loss": None}} for view in views
    ]
