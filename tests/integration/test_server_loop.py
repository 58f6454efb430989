"""The whole loop in one process: learn, propose, approve, merge, roll back, start again."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tests.serving import (
    FACTS,
    HARBOUR,
    PORT,
    TREES,
    People,
    Rules,
    Server,
    served,
    small_config,
)

from cambium.core.errors import AttestationRefused
from cambium.serve.identity import Identity
from cambium.serve.proposal_records import from_row, to_row

TREE_PROMPT, PORT_PROMPT = "Fact 5: the tree grows a", "Log 5: ship number 5 came into"


def test_merges_change_what_answers_without_a_restart_and_rollback_undoes_them(
    base: Path, people: People, tmp_path: Path
) -> None:
    people.init(tmp_path)
    config = small_config(tmp_path, model=str(base))
    with served(config, people) as server:
        lasting, answers, request_id = go_round(server)
    with served(config, people) as again:
        assert again.everything() == lasting
        assert {key: again.answer(*key) for key in answers} == answers
        trace = again.get(f"/traces/{request_id}")
        assert trace["adapters"][0]["adapter"].startswith("trees@")
        # Both come out again, also the one whose parent moved between its freezing and its merge.
        for proposal in again.get("/proposals")["proposals"]:
            name = proposal["candidate"]
            replayed = again.post(f"/adapters/{name}/replay")
            assert (replayed["adapter_id"], replayed["ok"]) == (name, True), replayed
        unfrozen = again.http.post(f"/adapters/trees@sha256:{'0' * 64}/replay")
        assert (unfrozen.status_code, unfrozen.json()["code"]) == (404, "adapter_not_found")
        change_recipe(again, name)
        assert again.post(f"/adapters/{name}/replay")["ok"] is False


def change_recipe(server: Server, candidate: str) -> None:
    """Says of a candidate that it was made with half the rate."""
    with server.runtime.state.transaction() as tx:
        rows = [from_row(row) for row in tx.list_proposals()]
        filed = next(f for f in rows if f.proposal.candidate_digest == candidate.split("@")[1])
        made = dict(filed.made_from or {})
        made["config"] = {**made["config"], "lr": made["config"]["lr"] / 2}
        tx.put_proposal(to_row(replace(filed, made_from=made), at=filed.created_at))


def go_round(server: Server) -> tuple[object, dict[tuple[str, str], object], str]:
    """Merges two domains and goes back and forth; returns what must survive a restart."""
    first = {p: server.answer("stable", p) for p in (TREE_PROMPT, PORT_PROMPT)}
    bare = {p: server.answer("base", p) for p in first}
    assert first == bare
    port = server.awaiting("port", "port", PORT)
    server.approve(port, 0)
    merged = server.merged("trees", "trees", TREES)
    assert merged["served_digest"] == merged["signed_digest"]

    answer = server.ask("stable", TREE_PROMPT)
    assert answer.headers["x-cambium-adapter"] == f"trees@{merged['signed_digest']}"
    assert answer.headers["x-cambium-revision"] == "2"
    assert server.answer("stable", TREE_PROMPT) != first[TREE_PROMPT]
    assert server.answer("stable", TREE_PROMPT, domain="trees") == server.answer(
        "stable", TREE_PROMPT
    )
    # The router leaves what is not of the domain to the base.
    assert server.ask("stable", PORT_PROMPT).headers["x-cambium-adapter"] == "base"
    assert server.answer("stable", PORT_PROMPT) == first[PORT_PROMPT]
    assert {p: server.answer("base", p) for p in bare} == bare

    # The other open proposal was looked at again, against the new parent, and lost its approval.
    view = server.settled(port)
    assert (view["parent_revision"], view["state"]) == (2, "awaiting_approval"), view["reason"]
    assert view["approvals"] == []
    for person in (1, 2):
        server.approve(port, person)
    server.post("/adapters/merge", proposal_id=port)
    assert server.ask("stable", PORT_PROMPT).headers["x-cambium-adapter"].startswith("port@")
    assert server.ask("stable", TREE_PROMPT).headers["x-cambium-adapter"].startswith("trees@")

    back = server.rollback(1)
    assert (back.status_code, back.json()["revision"], back.json()["of"]) == (200, 4, 1)
    assert {p: server.answer("stable", p) for p in first} == first
    forward = server.rollback(2, people=(1, 2)).json()
    assert (forward["revision"], forward["served_digest"]) == (5, merged["signed_digest"])

    keys = [("trees", TREE_PROMPT), ("stable", TREE_PROMPT), ("base", TREE_PROMPT)]
    answers = {key: server.answer(*key) for key in keys}
    return server.everything(), answers, answer.headers["x-cambium-request-id"]


def test_the_base_stays_and_adapters_answer_alike_alone_and_together(server: Server) -> None:
    before = server.answer("base")
    during: list[object] = []
    stop = threading.Event()

    def ask_on() -> None:
        while not stop.is_set():
            during.append(server.answer("base"))

    asking = threading.Thread(target=ask_on)
    asking.start()
    server.create("one")
    server.create("two")
    server.teach("one", FACTS[:20], steps=8)
    server.teach("two", HARBOUR[:20], steps=8)
    stop.set()
    asking.join()
    assert len(during) > 3
    assert all(answer == before for answer in during)

    names = ("base", "one", "two")
    alone = {name: server.answer(name) for name in names}
    assert len({text for text, _, _ in alone.values()}) == 3
    together: dict[tuple[str, int], object] = {}

    def ask(name: str, turn: int) -> None:
        together[name, turn] = server.answer(name)

    threads = [threading.Thread(target=ask, args=(n, t)) for n in names for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {(n, t): alone[n] for n in names for t in range(4)}


def test_answers_do_not_wait_for_learning(server: Server) -> None:
    server.create("slow")
    done = threading.Event()

    def learn() -> None:
        server.teach("slow", [text * 8 for text in FACTS[:40]], steps=8, lr=1e-3)
        done.set()

    learning = threading.Thread(target=learn)
    learning.start()
    answered = 0
    while not done.is_set():
        assert server.ask("base", max_tokens=4).status_code == 200
        answered += not done.is_set()
    learning.join()
    assert answered >= 5


def test_an_adapter_deleted_while_it_learns_stays_deleted(server: Server) -> None:
    server.create("gone")
    answers: list[int] = []

    def learn() -> None:
        body = {"adapter_id": "gone", "examples": [{"text": t * 4} for t in FACTS[:40]]}
        answers.append(server.http.post("/learn/step", json=body).status_code)

    learning = threading.Thread(target=learn)
    learning.start()
    while learning.is_alive() and not server.runtime.adapters.get_live("gone").busy.locked():
        pass
    assert server.http.delete("/adapters/gone").status_code == 200
    learning.join()
    assert answers == [410]
    assert server.get("/adapters/gone")["state"] == "expired"
    assert server.ask("gone").status_code == 410


def test_a_proposal_rejected_while_it_is_worked_on_stays_rejected(server: Server) -> None:
    server.create("trees")
    server.teach("trees", TREES)
    proposal = server.propose("trees", "trees")
    server.post(f"/proposals/{proposal}/reject", reason="changed my mind")
    view = server.settled(proposal)
    assert (view["state"], view["reason"]) == ("rejected", "changed my mind")
    assert view["gates"][0]["verdict"] == "missing"


def test_a_process_that_is_not_attested_consolidates_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was filed under a good attestation may be worked on by another process, much later."""
    server.create("trees")
    server.teach("trees", TREES)
    server.runtime.jobs.halt()
    proposal = server.propose("trees", "trees")

    def refused(*_: object, **__: object) -> None:
        raise AttestationRefused("attestation refused: another machine")

    monkeypatch.setattr(Identity, "attest", refused)
    server.runtime.jobs.resume()
    server.runtime.review.resume()
    found = server.settled(proposal)
    assert (found["state"], found["candidate_digest"]) == ("failed", None), found
    assert "attestation refused" in found["reason"]


def test_the_monitor_quarantines_for_good(base: Path, people: People, tmp_path: Path) -> None:
    people.init(tmp_path, Rules(margin=0.05))
    config = small_config(tmp_path, model=str(base))
    with served(config, people) as server:
        server.create("fine")
        assert server.teach("fine", TREES)["state"] == "ephemeral"
        taught = server.quarantine("harm")
        alignment = taught["monitors"]["alignment"]
        assert alignment["ok"] is False
        assert alignment["shifts"][-1] <= -alignment["margin"] < min(alignment["shifts"][:-1])
        assert taught["steps"] == len(alignment["shifts"])
        for model in ("harm", f"harm@{taught['digest_after']}", f"harm@{taught['digest_before']}"):
            assert server.ask(model).status_code in (404, 409), model
        assert "harm" not in [m["id"] for m in server.get("/v1/models")["data"]]
        body = {"adapter_id": "harm", "domain": "trees"}
        refused = server.http.post("/adapters/propose_consolidation", json=body)
        assert refused.json()["code"] == "adapter_quarantined"
    with served(config, people) as again:
        assert again.get("/adapters/harm")["state"] == "quarantined"
        assert again.ask("harm").status_code == 409
        assert again.ask("fine").status_code == 200
