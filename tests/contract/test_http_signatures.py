"""Signatures that wait for company: kept one a key, verified, void once anything is decided."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving import PORT, TREES, People, Server, served, small_config

from cambium.core.nouns import Action
from cambium.trust.acts import sign_act, signature_to_json
from cambium.trust.keys import SigningKey, generate_key


@pytest.fixture
def server(base: Path, tmp_path: Path) -> Iterator[Server]:
    people = People()
    people.init(tmp_path)
    with served(small_config(tmp_path, model=str(base)), people) as found:
        yield found


def signed(
    server: Server, key: SigningKey, action: Action, target: str, **fields: Any
) -> dict[str, Any]:
    return signature_to_json(sign_act(key, server.act(action, target, **fields)))


def first_digest(server: Server) -> str:
    return str(server.get("/revisions")["revisions"][0]["digest"])


def waiting(server: Server) -> list[Any]:
    found: list[Any] = server.get("/signatures")["signatures"]
    return found


def test_a_rollback_is_collected_and_done(server: Server) -> None:
    server.merged("trees", "trees", TREES)
    one, two, _ = server.people.approvers
    target = first_digest(server)
    first = server.post("/signatures", **signed(server, one, Action.ROLLBACK, target))
    assert (first["needed"], [s["name"] for s in first["signers"]]) == (2, ["approver-1"])
    # The same key again takes the place of its first signature.
    ends = first["signatures"][0]["payload"]["expires"] + 60
    later = signed(server, one, Action.ROLLBACK, target, expires=ends)
    again = server.post("/signatures", **later)
    assert again["signatures"] == [later]
    # Whoever has seen the first cannot put it back.
    assert server.post("/signatures", **first["signatures"][0])["signatures"] == [later]
    refused = server.http.post("/revisions/rollback",
                               json={"to": 1, "signatures": again["signatures"]})  # fmt: skip
    assert (refused.status_code, refused.json()["code"]) == (409, "quorum_missing")
    both = server.post("/signatures", **signed(server, two, Action.ROLLBACK, target))
    server.post("/revisions/rollback", to=1, signatures=both["signatures"])
    # Done, and with it whatever waited is void.
    assert waiting(server) == []
    replayed = server.http.post("/signatures", json=both["signatures"][0])
    assert (replayed.status_code, replayed.json()["code"]) == (409, "state_version_stale")


def test_what_would_not_count_is_not_kept(server: Server) -> None:
    server.merged("trees", "trees", TREES)
    one = server.people.approvers[0]
    target, head = (server.get("/revisions")["revisions"][i]["digest"] for i in (0, 1))
    good = signed(server, one, Action.ROLLBACK, target)
    cases = {
        "key_unknown": [
            signed(server, generate_key(), Action.ROLLBACK, target),
            signed(server, server.people.operator, Action.ROLLBACK, target),
        ],
        "digest_mismatch": [
            signed(server, one, Action.ROLLBACK, "sha256:" + "0" * 64),
            signed(server, one, Action.ROLLBACK, head),
            signed(server, one, Action.KILL, target),
            signed(server, one, Action.APPROVE, target),
            signed(server, one, Action.REVIVE, target),
            signed(server, one, Action.ROLLBACK, target, policy="sha256:" + "0" * 64),
        ],
        "state_version_stale": [signed(server, one, Action.ROLLBACK, target, state_version=0)],
        "signature_expired": [signed(server, one, Action.ROLLBACK, target, expires=5)],
        "signature_invalid": [{**good, "signature": "0" * 128}],
        "invalid_request": [{**good, "more": 1}, {"key_id": good["key_id"]}],
    }
    for code, bodies in cases.items():
        for body in bodies:
            answer = server.http.post("/signatures", json=body)
            assert answer.json()["code"] == code, answer.text
    assert waiting(server) == []


def test_a_merge_and_a_revoked_key_void_what_waits(server: Server) -> None:
    server.merged("trees", "trees", TREES)
    one, two, _ = server.people.approvers
    target = first_digest(server)
    for key in (one, two):
        server.post("/signatures", **signed(server, key, Action.ROLLBACK, target))
    assert len(waiting(server)[0]["signers"]) == 2
    server.merged("port", "port", PORT)
    assert waiting(server) == []
    server.post("/signatures", **signed(server, one, Action.ROLLBACK, target))
    act = server.act(Action.REVOKE, one.public_key.digest)
    by_root = signature_to_json(sign_act(server.people.root, act))
    server.post(f"/keys/{one.key_id}/revoke", reason="lost", signatures=[by_root])
    assert waiting(server) == []


def test_a_revival_is_collected_while_killed(server: Server) -> None:
    one, two, _ = server.people.approvers
    kill = server.get("/kill")
    order = signed(server, server.people.operator, Action.KILL, kill["target"])
    killed = server.post("/kill", reason="drill", signatures=[order])
    for key in (one, two):
        found = server.post("/signatures", **signed(server, key, Action.REVIVE, killed["digest"]))
    assert [s["name"] for s in found["signers"]] == ["approver-1", "approver-2"]
    assert server.post("/revive", signatures=found["signatures"])["killed"] is False
    assert waiting(server) == []
