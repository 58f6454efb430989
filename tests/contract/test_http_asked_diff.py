"""The behavioural diff of a candidate that was refused: computed when a reviewer asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving import PORT, TREES, WAIT_S, People, Rules, Server, served, small_config

from cambium.core.nouns import Action
from cambium.evals.behaviour import prompt_bank
from cambium.trust.acts import sign_act, signature_to_json

NUM_PROMPTS = 12


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Retention can never be measured here: every proposal is stuck, unless it is waived."""
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state, Rules(waivable=True, retention_items=1000))
    config = small_config(state, model=str(base), num_diff_prompts=NUM_PROMPTS)
    with served(config, people) as found:
        yield found


def refused(server: Server, name: str) -> str:
    server.create(name)
    server.teach(name, TREES)
    proposal = server.propose(name, name)
    assert server.settled(proposal)["state"] == "checking"
    server.post(f"/proposals/{proposal}/reject", reason="no")
    return proposal


def behaviour(server: Server, proposal: str) -> Any:
    return server.get(f"/proposals/{proposal}/diff")["behaviour"]


def computed(server: Server, proposal: str) -> Any:
    asked = server.post(f"/proposals/{proposal}/diff", 202)
    assert (asked["proposal_id"], asked["behaviour"]["available"]) == (proposal, False)
    assert server.runtime.jobs.wait_idle(WAIT_S)
    found = behaviour(server, proposal)
    assert found["available"], found
    return found


def test_what_a_refused_candidate_writes_is_compared_and_nothing_else_changes(
    server: Server,
) -> None:
    proposal = refused(server, "trees")
    before, found = server.get(f"/proposals/{proposal}"), behaviour(server, proposal)
    assert (found["available"], found["askable"]) == (False, True)
    assert "this one is rejected" in found["why"]
    page = server.http.get(f"/review/{proposal}").text
    assert "Compare what it writes" in page and "follow.js" not in page
    log = server.get("/audit")["entries"]

    found = computed(server, proposal)
    assert found["of"]["candidate"] == before["candidate_digest"]
    assert found["prompts"] != prompt_bank().first(NUM_PROMPTS).digest  # its own openings too
    assert server.get(f"/proposals/{proposal}") == before
    (entry,) = server.get("/audit")["entries"][len(log) :]
    assert (entry["kind"], entry["body"]) == (
        "proposal.diff_asked",
        {"proposal": proposal, "candidate": before["candidate_digest"], "by": "loopback"},
    )
    page = server.http.get(f"/review/{proposal}").text
    assert "groups changed their share" in page and "Compare what it writes" not in page
    assert "proposal.diff_asked" in page
    again = server.post(f"/proposals/{proposal}/diff", 409)
    assert again["code"] == "illegal_transition" and "it is there already" in again["detail"]
    assert server.post("/proposals/p-nobody/diff", 404)["code"] == "proposal_not_found"


def test_it_is_compared_with_the_parent_that_it_was_made_on(server: Server) -> None:
    proposal = refused(server, "oaks")
    server.create("port")
    server.teach("port", PORT)
    other = server.propose("port", "oaks")
    server.settled(other)
    for key in server.people.approvers[:2]:
        target = next(g for g in server.get(f"/proposals/{other}")["gates"]
                      if g["name"] == "retention")["waiver_target"]  # fmt: skip
        act = sign_act(key, server.act(Action.WAIVE_GATE, target))
        waiver: dict[str, Any] = signature_to_json(act)
        server.post(f"/proposals/{other}/waivers", reason="dry", **waiver)
    server.settled(other)
    for person in (0, 1):
        server.approve(other, person)
    made_on = server.get("/revisions")["revisions"][-1]["digest"]
    assert server.post("/adapters/merge", proposal_id=other)["revision"] == 2
    assert computed(server, proposal)["of"]["parent"] == made_on


def test_openings_of_withdrawn_documents_are_not_written_after(server: Server) -> None:
    proposal = refused(server, "elms")
    assert server.http.delete("/adapters/elms/examples").status_code == 200
    assert computed(server, proposal)["prompts"] == prompt_bank().first(NUM_PROMPTS).digest


def test_a_diff_that_broke_says_why_and_can_be_asked_for_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal = refused(server, "yews")
    with monkeypatch.context() as patch:
        patch.setattr("cambium.serve.behaviour.read_adapter", _broken)
        server.post(f"/proposals/{proposal}/diff", 202)
        assert server.runtime.jobs.wait_idle(WAIT_S)
        found = behaviour(server, proposal)
    assert (found["available"], found["askable"]) == (False, True)
    assert "no such luck" in found["why"]
    computed(server, proposal)


def _broken(*_: object) -> None:
    raise RuntimeError("no such luck")
