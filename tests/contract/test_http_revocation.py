"""A key taken out of service: at once, for every act, and for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from tests.serving import PORT, TREES, People, Rules, Server, served, small_config

from cambium.core.nouns import Action
from cambium.serve.store.key_files import save_key
from cambium.trust.acts import sign_act, signature_to_json
from cambium.trust.keys import SigningKey, generate_key


def revoke(server: Server, lost: SigningKey, *keys: SigningKey, reason: Any = "lost") -> httpx.Response:  # fmt: skip  # noqa: E501
    act = server.act(Action.REVOKE, lost.public_key.digest)
    signed = [signature_to_json(sign_act(key, act)) for key in keys]
    return server.http.post(
        f"/keys/{lost.key_id}/revoke", json={"reason": reason, "signatures": signed}
    )


def test_a_revoked_key_counts_no_more_from_now_on(server: Server) -> None:
    people = server.people
    lost, second, third = people.approvers
    proposal = server.awaiting("trees", "trees", TREES)
    for person in (0, 1):
        server.approve(proposal, person)
    assert server.get(f"/proposals/{proposal}")["blockers"] == []
    version = server.get("/revisions")["state_version"]
    answer = revoke(server, lost, people.root).json()
    assert (answer["name"], answer["approvers_left"], answer["quorum"]) == (
        "approver-1", 2, {"k": 2, "n": 2})  # fmt: skip
    assert answer["state_version"] == version + 1
    # What it had signed is void, and what the other had signed was for the state before.
    refused = server.http.post("/adapters/merge", json={"proposal_id": proposal})
    assert refused.status_code == 409 and "quorum: 0 of 2" in str(refused.json()["blockers"])
    signed = signature_to_json(server.approval(proposal, 0))
    again = server.http.post(f"/proposals/{proposal}/approvals", json=signed)
    assert (again.status_code, again.json()["code"]) == (403, "key_unknown")
    listed = {k["key_id"]: k["revoked_at"] for k in server.get("/keys")["keys"]}
    assert listed[lost.key_id] and not listed[second.key_id]
    for person in (1, 2):
        server.approve(proposal, person)
    server.post("/adapters/merge", proposal_id=proposal)
    assert server.rollback(1, people=(0, 1)).status_code == 409
    target = server.get("/kill")["target"]
    kill = signature_to_json(sign_act(lost, server.act(Action.KILL, target)))
    refused = server.http.post("/kill", json={"reason": "x", "signatures": [kill]})
    assert refused.status_code == 409 and server.get("/kill")["killed"] is False
    assert server.rollback(1, people=(1, 2)).status_code == 200
    entry = next(e for e in server.get("/audit")["entries"] if e["kind"] == "key.revoked")
    assert (entry["body"]["key_id"], entry["body"]["reason"]) == (lost.key_id, "lost")
    # Two are left of two: without the root no more can go.
    assert revoke(server, second, second, third).status_code in (403, 409)
    assert revoke(server, second, people.root).json()["approvers_left"] == 1


def test_a_revocation_needs_the_root_or_the_others(server: Server) -> None:
    people = server.people
    lost, second, third = people.approvers
    before = server.everything()
    for keys in ((), (lost,), (lost, second), (second, second), (people.operator,),
                 (generate_key(),)):  # fmt: skip
        refused = revoke(server, lost, *keys)
        assert (refused.status_code, refused.json()["code"]) == (409, "quorum_missing")
    for reason in ("", " ", "x" * 1001, None):
        assert revoke(server, lost, people.root, reason=reason).status_code in (400, 409)
    for unrevocable in (people.root, server.runtime.identity.key):
        assert revoke(server, unrevocable, people.root).json()["code"] == "illegal_transition"
    assert revoke(server, generate_key(), people.root).json()["code"] == "key_unknown"
    assert server.everything() == before
    assert revoke(server, lost, second, third).status_code == 200
    assert revoke(server, lost, people.root).json()["code"] == "illegal_transition"
    assert revoke(server, people.operator, people.root).status_code == 200
    proposal = server.awaiting("port", "port", PORT)  # learning and review go on
    assert server.get(f"/proposals/{proposal}")["state"] == "awaiting_approval"


def test_the_log_keeps_the_attestation_of_a_merge(server: Server) -> None:
    server.merged("trees", "trees", TREES)
    entry = next(e for e in server.get("/audit")["entries"] if e["kind"] == "revision.merge")
    report = entry["body"]["attestation"]
    assert report["submods"]["server"]["profile"] == "software-dev"
    assert report["submods"]["server"]["ear.status"] == "none"


def test_the_command_signs_here(server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    from cambium.cli import keys as module
    from cambium.cli import main
    from cambium.cli.client import Client

    class Through:
        def __enter__(self) -> Client:
            return Client(server.http.request, in_process=True)

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(module, "connect", lambda state: Through())
    save_key(server.people.root, tmp_path / "root.key")
    lost = server.people.approvers[2]
    command = [
        "key",
        "revoke",
        lost.key_id,
        "--key",
        str(tmp_path / "root.key"),
        "--reason",
        "lost",
    ]
    assert main(command) == 0
    assert main(command) != 0
    assert main(["key", "revoke", "ed25519:none", *command[3:]]) == 1


def test_what_was_signed_for_one_state_revokes_nothing_in_another(
    base: Path, tmp_path: Path
) -> None:
    """Same people, same rules, same version: only the name of the state differs."""
    people = People()
    lost = people.approvers[0]
    for name in ("a", "b"):
        people.init(tmp_path / name, Rules(state=name * 32))
    with served(small_config(tmp_path / "a", model=str(base)), people) as mine:
        act = mine.act(Action.REVOKE, lost.public_key.digest)
    signed = signature_to_json(sign_act(people.root, act))
    body = {"reason": "lost", "signatures": [signed]}
    path = f"/keys/{lost.key_id}/revoke"
    with served(small_config(tmp_path / "b", model=str(base)), people) as other:
        assert other.act(Action.REVOKE, "").state_version == act.state_version
        refused = other.http.post(path, json=body)
        assert refused.json()["code"] == "quorum_missing"
        assert "another policy" in str(refused.json()["refused"])
    with served(small_config(tmp_path / "a", model=str(base)), people) as mine:
        assert mine.http.post(path, json=body).status_code == 200
