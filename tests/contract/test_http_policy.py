"""A policy that changes while the server runs."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from httpx import Response
from tests.serving import (
    FACTS,
    TREES,
    Clock,
    People,
    Rules,
    Server,
    served,
    small_config,
)

from cambium.core.canonical import digest_bytes
from cambium.core.nouns import Action
from cambium.lifecycle.policy_change import hand_over_target
from cambium.trust.acts import sign_act, signature_to_json
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.policy import sign_policy


def changed(server: Server, version: int = 2, **changes: str) -> str:
    """Returns the text in force with single lines changed."""
    text = str(server.get("/policy")["toml"])
    for name, value in {"version": str(version), **changes}.items():
        text, found = re.subn(rf"(?m)^{name} = .+$", f"{name} = {value}", text, count=1)
        assert found, name
    return text


def put(
    server: Server,
    toml: str,
    *keys: SigningKey,
    root: SigningKey | None = None,
    at: int | None = None,
) -> Response:
    at = server.get("/revisions")["state_version"] if at is None else at
    signed = sign_policy(root or server.people.root, toml.encode(), state_version=at)
    act = server.act(Action.WIDEN_SCOPE, digest_bytes(toml.encode()))
    body = {
        "toml": toml,
        "signature": signature_to_json(signed.signature),
        "signatures": [signature_to_json(sign_act(key, act)) for key in keys],
    }
    return server.http.post("/policy", json=body)


def test_a_stricter_policy_holds_at_once_and_after_a_restart(
    server: Server, base: Path, tmp_path: Path
) -> None:
    before = server.get("/policy")
    server.create("pupil", lora_cfg={"r": 16})
    server.teach("pupil", FACTS[:3], steps=8)
    answer = put(server, changed(server, max_rank="4", max_steps_per_call="2", learn="false"))
    assert answer.status_code == 200, answer.text
    assert answer.json()["widens"] == []
    assert answer.json()["state_version"] == before["state_version"] + 1
    now = server.get("/policy")
    assert (now["version"], now["digest"]) == (2, answer.json()["digest"])
    body = {"task_id": "large", "lora_cfg": {"r": 8}}
    assert "1..4" in server.post("/adapters/ephemeral", 400, **body)["detail"]
    examples = [{"text": FACTS[0]}]
    server.post("/learn/step", 400, adapter_id="pupil", examples=examples, steps=8)
    server.post("/learn/step", 200, adapter_id="pupil", examples=examples, steps=2)
    refused = server.ask("pupil", learn=True).json()["error"]
    assert refused["code"] == "learn_unavailable"
    (entry,) = [e for e in server.get("/audit")["entries"] if e["kind"] == "policy.changed"]
    assert entry["body"]["before"] == before["digest"]
    assert entry["body"]["policy"] == now["digest"]
    server.http.__exit__(None, None, None)
    with served(small_config(tmp_path, model=str(base)), server.people) as again:
        assert again.get("/policy")["digest"] == now["digest"]


def test_what_widens_needs_the_approvers(server: Server) -> None:
    one, two, _ = server.people.approvers
    toml = changed(server, max_rank="64")
    before = server.everything()
    for keys in ((), (one,), (one, one), (one, server.people.operator), (one, generate_key())):
        refused = put(server, toml, *keys)
        assert (refused.status_code, refused.json()["code"]) == (409, "quorum_missing")
    assert server.everything() == before
    answer = put(server, toml, one, two)
    assert answer.json()["widens"] == ["learning.max_rank: 16 -> 64"]
    server.create("large", lora_cfg={"r": 64})


def test_what_the_root_did_not_sign_for_now_changes_nothing(server: Server) -> None:
    before = server.everything()
    version = server.get("/revisions")["state_version"]
    toml = changed(server)
    for answer, code in (
        (put(server, toml, root=generate_key()), "signature_invalid"),
        (put(server, toml, root=server.people.approvers[0]), "signature_invalid"),
        (put(server, toml, at=version - 1), "state_version_stale"),
        (put(server, changed(server, version=1)), "policy_invalid"),
    ):
        assert answer.json()["code"] == code
    body: dict[str, Any] = {"toml": "not toml", "signature": {}, "signatures": []}
    assert server.http.post("/policy", json=body).status_code == 400
    assert server.everything() == before


def test_open_proposals_end_with_the_bar_they_were_held_to(server: Server) -> None:
    proposal = server.awaiting("trees", "trees", TREES)
    server.approve(proposal, 0)
    answer = put(server, changed(server, max_rank="8"))
    assert answer.json()["ended"] == [proposal]
    found = server.get(f"/proposals/{proposal}")
    assert found["state"] == "failed" and "policy changed" in found["reason"]
    server.post("/adapters/merge", 409, proposal_id=proposal)
    again = server.propose("trees", "trees")
    assert server.settled(again)["state"] == "awaiting_approval"


def test_people_come_and_go(server: Server) -> None:
    lost, kept, other = server.people.approvers
    new = generate_key()
    row = server.post("/keys", 201, name="nina", public=new.public_key.raw)
    assert (row["role"], row["key_id"]) == ("enrolled", new.key_id)
    server.post("/keys", 409, name="nina", public=new.public_key.raw)
    server.post("/keys", 403, name="nobody", public="00" * 32)
    toml = changed(server).replace(lost.public_key.raw, new.public_key.raw)
    answer = put(server, toml, kept, other)
    assert answer.status_code == 200, answer.text
    roles = {k["key_id"]: k["role"] for k in server.get("/keys")["keys"]}
    assert (roles[lost.key_id], roles[new.key_id]) == ("retired", "approver")
    proposal = server.awaiting("trees", "trees", TREES)
    signed = signature_to_json(server.approval(proposal, 0))
    refused = server.http.post(f"/proposals/{proposal}/approvals", json=signed)
    assert refused.json()["code"] == "key_unknown"
    target = server.get(f"/proposals/{proposal}")["proposal_digest"]
    for key in (new, kept):
        signed = signature_to_json(sign_act(key, server.act(Action.APPROVE, target)))
        server.post(f"/proposals/{proposal}/approvals", **signed)
    server.post("/adapters/merge", proposal_id=proposal)


def test_a_killed_state_without_a_quorum_gets_new_people_and_revives(server: Server) -> None:
    people = server.people
    for lost in people.approvers[:2]:
        act = server.act(Action.REVOKE, lost.public_key.digest)
        body = {"reason": "lost", "signatures": [signature_to_json(sign_act(people.root, act))]}
        assert server.http.post(f"/keys/{lost.key_id}/revoke", json=body).status_code == 200
    target = server.get("/kill")["target"]
    kill = signature_to_json(sign_act(people.operator, server.act(Action.KILL, target)))
    server.post("/kill", reason="drill", signatures=[kill])
    new = [generate_key(), generate_key()]
    toml = changed(server)
    for lost, key in zip(people.approvers, new, strict=False):
        toml = toml.replace(lost.public_key.raw, key.public_key.raw)
    answer = put(server, toml)
    assert answer.status_code == 200, answer.text
    standing = server.get("/kill")
    assert standing["killed"] is True
    signed = [
        signature_to_json(sign_act(key, server.act(Action.REVIVE, standing["digest"])))
        for key in new
    ]
    server.post("/revive", signatures=signed)
    assert server.get("/kill")["killed"] is False


def test_a_state_without_a_policy_has_none_to_change(base: Path, tmp_path: Path) -> None:
    people = People()
    toml = Rules().toml(people.approvers, people.operator)
    signed = sign_policy(people.root, toml)
    with served(small_config(tmp_path, model=str(base)), people) as server:
        body = {"toml": toml.decode(), "signature": signature_to_json(signed.signature)}
        assert server.post("/policy", 409, **body)["code"] == "policy_missing"


def test_a_kill_order_outlives_a_new_policy(server: Server) -> None:
    order = server.act(Action.KILL, server.get("/kill")["target"])
    kill = signature_to_json(sign_act(server.people.operator, order))
    assert put(server, changed(server)).status_code == 200
    server.post("/kill", reason="drill", signatures=[kill])
    assert server.get("/kill")["killed"] is True


def test_a_field_with_nul_is_refused_before_any_database_has_to(server: Server) -> None:
    server.create("pupil")
    body = {"adapter_id": "pupil", "examples": [{"text": FACTS[0]}], "steps": 1}
    for field in ("source", "consent"):
        refused = server.post("/learn/step", 400, **body, **{field: "a\0b"})
        assert "NUL" in refused["detail"]


def test_whoevers_approval_ran_out_signs_again(base: Path, tmp_path: Path) -> None:
    people, clock = People(), Clock()
    people.init(tmp_path)
    with served(small_config(tmp_path, model=str(base)), people, clock) as server:
        proposal = server.awaiting("trees", "trees", TREES)
        signed = signature_to_json(server.approval(proposal, 0))
        server.post(f"/proposals/{proposal}/approvals", **signed)
        clock.ahead_s += 3700
        later = int(time.time()) + clock.ahead_s + 60
        for person in (0, 1):
            signed = signature_to_json(server.approval(proposal, person, expires=later))
            found = server.post(f"/proposals/{proposal}/approvals", **signed)
        assert found["blockers"] == [] and len(found["approvals"]) == 2
        server.post("/adapters/merge", proposal_id=proposal)


def hand_over(
    server: Server, new: SigningKey, *, by: SigningKey | None = None, **changes: str
) -> Response:
    toml, at = changed(server, **changes), server.get("/revisions")["state_version"]
    act = server.act(Action.POLICY, hand_over_target(toml.encode(), new.public_key))
    body = {
        "toml": toml,
        "root": new.public_key.raw,
        "signature": signature_to_json(sign_policy(new, toml.encode(), state_version=at).signature),
        "signatures": [signature_to_json(sign_act(by or server.people.root, act))],
    }
    return server.http.post("/policy", json=body)


def test_another_root_takes_over_and_the_old_one_is_nobody(
    server: Server, base: Path, tmp_path: Path
) -> None:
    old, new, thief = server.people.root, generate_key(), generate_key()
    before = server.everything()
    for answer, code in (
        (hand_over(server, thief, by=thief), "quorum_missing"),
        (hand_over(server, server.people.approvers[0]), "policy_invalid"),
        (hand_over(server, server.people.operator), "policy_invalid"),
        (hand_over(server, server.runtime.identity.key), "policy_invalid"),
        (hand_over(server, old), "policy_invalid"),
    ):
        assert answer.json()["code"] == code
    assert server.everything() == before
    answer = hand_over(server, new)
    assert answer.status_code == 200, answer.text
    assert answer.json()["root"] == new.key_id
    entry = server.get("/audit")["entries"][-1]
    assert (entry["kind"], entry["body"]["root"]) == ("policy.changed", new.key_id)
    assert {s["key_id"] for s in entry["body"]["signatures"]} == {old.key_id, new.key_id}
    server.http.__exit__(None, None, None)
    with served(small_config(tmp_path, model=str(base)), server.people) as again:
        rows = {row["key_id"]: row for row in again.get("/keys")["keys"]}
        assert rows[new.key_id]["role"] == "root"
        assert rows[old.key_id]["role"] == "retired" and rows[old.key_id]["revoked_at"]
        # Whatever the old root signs counts no more: a policy, its own return, a kill.
        assert put(again, changed(again, 3)).json()["code"] == "signature_invalid"
        assert hand_over(again, old, version="3").json()["code"] == "quorum_missing"
        assert hand_over(again, old, by=new, version="3").json()["code"] == "policy_invalid"
        target = again.get("/kill")["target"]
        kill = signature_to_json(sign_act(old, again.act(Action.KILL, target)))
        refused = again.http.post("/kill", json={"reason": "x", "signatures": [kill]})
        assert refused.json()["code"] == "quorum_missing"
        assert put(again, changed(again, 3), root=new).status_code == 200
