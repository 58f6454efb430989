"""A revision in quarantine: over HTTP, in the log, after a restart, for adapters on top of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from tests.serving import FACTS, TREES, People, Rules, Server, served, small_config

from cambium.core.errors import DigestMismatch
from cambium.core.nouns import Action
from cambium.trust.acts import sign_act, signature_to_json


@pytest.fixture(scope="module")
def merged(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Revision 2 brought an adapter, a live one stands on it, and an operator may go back alone."""
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state, Rules(operator_rolls_back=True))
    with served(small_config(state, model=str(base)), people) as server:
        server.merged("trees", "trees", TREES)
        server.create("above", domain="trees")
        yield server


def quarantine(server: Server, number: int, people: tuple[int, ...] = (0, 1)) -> Response:
    revisions = server.get("/revisions")["revisions"]
    target = next((r["digest"] for r in revisions if r["number"] == number), "sha256:" + "0" * 64)
    act = server.act(Action.REVOKE, target)
    signed = [signature_to_json(sign_act(server.people.approvers[i], act)) for i in people]
    body = {"reason": "it taught the wrong year", "signatures": signed}
    return server.http.post(f"/revisions/{number}/quarantine", json=body)


def roll_back_alone(server: Server, number: int) -> Response:
    revisions = server.get("/revisions")["revisions"]
    target = next(r["digest"] for r in revisions if r["number"] == number)
    signed = sign_act(server.people.operator, server.act(Action.ROLLBACK, target))
    body = {"to": number, "signatures": [signature_to_json(signed)]}
    return server.http.post("/revisions/rollback", json=body)


def test_what_is_taken_out_of_service_answers_nobody(
    merged: Server, base: Path, tmp_path: Path
) -> None:
    server = merged
    stable = server.get("/revisions")["revisions"][1]["bank"]["trees"]
    name = f"{stable['adapter']}@{stable['digest']}"
    for model in ("stable", name, "above"):
        assert server.ask(model, domain="trees").status_code == 200
    before = server.everything()
    for number, status, code in (
        (2, 409, "illegal_transition"),  # it is served
        (1, 409, "illegal_transition"),  # the bare base brought nothing
        (9, 404, "revision_not_found"),
    ):
        refused = quarantine(server, number)
        assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert server.everything() == before

    answer = roll_back_alone(server, 1)
    assert answer.status_code == 200, answer.text
    assert server.rollback(2, people=(0,)).json()["code"] == "quorum_missing"
    assert quarantine(server, 2, people=(0,)).json()["code"] == "quorum_missing"
    done = quarantine(server, 2).json()
    assert (done["adapters"], done["ended"]) == ([stable["digest"]], ["above"])

    assert [r["quarantined"] for r in server.get("/revisions")["revisions"]] == [False, True, False]
    for refused in (server.rollback(2), roll_back_alone(server, 2)):
        assert (refused.status_code, refused.json()["code"]) == (409, "illegal_transition")
    # Nor is a signature kept that could never be used.
    target = server.get("/revisions")["revisions"][1]["digest"]
    one = sign_act(server.people.approvers[0], server.act(Action.ROLLBACK, target))
    refused = server.http.post("/signatures", json=signature_to_json(one))
    assert (refused.status_code, refused.json()["code"]) == (409, "illegal_transition")
    assert server.get("/signatures")["signatures"] == []
    for model in (name, "above"):
        refused = server.ask(model, domain="trees")
        assert refused.json()["error"]["code"] == "adapter_quarantined", refused.text
    assert server.http.get(f"/adapters/{name}/export").json()["code"] == "adapter_quarantined"
    body: dict[str, Any] = {"adapter_id": "above", "examples": [{"text": FACTS[0]}], "steps": 1}
    assert server.http.post("/learn/step", json=body).json()["code"] == "adapter_quarantined"
    entry = server.get("/audit")["entries"][-1]
    assert (entry["kind"], entry["body"]["reason"]) == (
        "revision.quarantined", "it taught the wrong year")  # fmt: skip
    # What goes back to the base serves on, and the same act cannot be done twice with one paper.
    assert server.ask("stable").status_code == 200


def test_it_holds_after_a_restart_and_nobody_lifts_it_by_editing_a_row(
    merged: Server, base: Path
) -> None:
    state = merged.runtime.config.state
    merged.http.__exit__(None, None, None)
    with served(small_config(state, model=str(base)), merged.people) as again:
        assert [r["quarantined"] for r in again.get("/revisions")["revisions"]][1]
        assert again.rollback(2).json()["code"] == "illegal_transition"
        with again.runtime.state.transaction() as tx:
            tx.set_meta("quarantined", value="[]")
    with (
        pytest.raises(DigestMismatch, match="not what the log says"),
        served(small_config(state, model=str(base)), merged.people),
    ):
        pass


def test_a_reason_is_needed(server: Server) -> None:
    for body in ({"reason": "", "signatures": []}, {"reason": " ", "signatures": []}, {}):
        answer = server.http.post("/revisions/1/quarantine", json=body)
        assert answer.status_code in (400, 409)
