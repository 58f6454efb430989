"""The kill switch against a whole server: alive, at work, hung, and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serving import (
    FACTS,
    TREES,
    People,
    Rules,
    Server,
    served,
    small_config,
)

from cambium.cli import main
from cambium.core.nouns import Action, Signature
from cambium.models.engine import GenerationRequest, TokenEvent
from cambium.models.sampling import SamplingConfig
from cambium.serve.errors import SystemKilled
from cambium.serve.kill_switch import KILL_FILE, write_kill_file
from cambium.serve.store.key_files import save_key
from cambium.trust.acts import sign_act, signature_to_json
from cambium.trust.keys import SigningKey


def order(server: Server, key: SigningKey) -> Signature:
    return sign_act(key, server.act(Action.KILL, server.get("/kill")["target"]))


def pull(server: Server, key: SigningKey | None = None) -> Any:
    signed = signature_to_json(order(server, key or server.people.operator))
    return server.post("/kill", reason="smoke", signatures=[signed])


def revive(server: Server, *people: int) -> httpx.Response:
    standing = server.get("/kill")
    fields = {"state_version": standing["state_version"], "policy": standing["policy_digest"]}
    act = server.act(Action.REVIVE, standing["digest"], **fields)
    signed = [signature_to_json(sign_act(server.people.approvers[i], act)) for i in people]
    return server.http.post("/revive", json={"signatures": signed})


def refuses_everything(server: Server) -> None:
    one = {"examples": [{"text": "x y"}], "adapter_id": "alive"}
    calls = [
        ("/v1/completions", {"model": "base", "prompt": "x"}),
        (
            "/v1/chat/completions",
            {"model": "stable", "messages": [{"role": "user", "content": "x"}]},
        ),
        ("/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": "x"}),
        ("/learn/step", one),
        ("/adapters/ephemeral", {"task_id": "another"}),
        ("/adapters/alive/replay", {}),
        ("/adapters/propose_consolidation", {"adapter_id": "alive", "domain": "d"}),
        ("/adapters/merge", {"proposal_id": "p"}),
        ("/revisions/rollback", {"to": 1, "signatures": []}),
        ("/gates/align_review", {"proposal_id": "p"}),
    ]
    for path, body in calls:
        answer = server.http.post(path, json=body)
        said = answer.json()
        code = said["error"]["code"] if path.startswith("/v1/") else said["code"]
        assert (answer.status_code, code) == (503, "killed"), path
    assert server.http.delete("/adapters/alive").status_code == 503
    assert server.http.get("/adapters/alive/export").status_code == 503
    for path in (
        "/healthz",
        "/adapters",
        "/proposals",
        "/revisions",
        "/audit",
        "/kill",
        "/metrics",
    ):
        assert server.http.get(path).status_code == 200, path
    ready = server.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "killed")


def test_one_key_stops_everything_across_restarts_and_a_quorum_revives(
    base: Path, people: People, tmp_path: Path
) -> None:
    people.init(tmp_path)
    config = small_config(tmp_path, model=str(base))
    with served(config, people) as server:
        server.create("alive")
        server.teach("alive", FACTS[:2], steps=1)
        before = server.answer("alive")
        proposal = server.awaiting("trees", "trees", TREES)
        server.approve(proposal, 0)
        was = server.runtime.identity.key.key_id
        killed = pull(server, people.approvers[2])
        keys = {row["key_id"]: row for row in server.get("/keys")["keys"]}
        (following,) = [row for row in keys.values() if row["role"] == "server"]
        assert keys[was]["revoked_at"] is not None and following["public"] == killed["server"]
        assert (killed["killed"], killed["name"], killed["reason"]) == (True, "approver-3", "smoke")
        refuses_everything(server)
        assert pull(server)["name"] == "approver-3"  # whoever was first
        with pytest.raises(SystemKilled):
            head = server.runtime.bank.revision
            server.runtime.proposals.need_attested(head, measurement="sha256:" + "0" * 64)
    with served(config, people) as server:
        refuses_everything(server)
    (tmp_path / KILL_FILE).unlink()  # the database knows as well
    with served(config, people) as server:
        refuses_everything(server)
        for group in ((), (0,), (1, 1)):
            refused = revive(server, *group)
            assert (refused.status_code, refused.json()["code"]) == (409, "quorum_missing")
        refuses_everything(server)
        assert revive(server, 0, 2).json()["killed"] is False
        assert server.http.get("/readyz").status_code == 200
        assert server.answer("alive") == before
        server.teach("alive", FACTS[2:4], steps=1)
        # What was approved before the kill is looked at again, under the new server's key, and has
        # to be approved again.
        found = server.settled(proposal)
        assert (found["state"], found["approvals"]) == ("awaiting_approval", [])
        assert "proposal.evidence_void" in [e["kind"] for e in server.get("/audit")["entries"]]
        refused = server.http.post("/adapters/merge", json={"proposal_id": proposal})
        assert refused.status_code == 409 and "quorum" in str(refused.json()["blockers"])
        for person in (0, 1):
            server.approve(proposal, person)
        server.post("/adapters/merge", proposal_id=proposal)
        assert revive(server, 0, 1).status_code in (400, 409)
        kinds = [e["kind"] for e in server.get("/audit")["entries"]]
        assert kinds.count("system.killed") == kinds.count("system.revived") == 1
        (revived,) = [e for e in server.get("/audit")["entries"] if e["kind"] == "system.revived"]
        assert revived["body"]["server"] == killed["server"]
        assert server.get("/audit/checkpoint")["public"] == killed["server"]
    assert not (tmp_path / KILL_FILE).exists()


def test_work_under_way_ends_and_leaves_nothing(server: Server, monkeypatch: Any) -> None:
    """An answer, a lesson and a consolidation are under way; the lesson's steps are done."""
    server.create("alive")
    server.teach("alive", FACTS[:14], steps=1)
    events: list[tuple[float, TokenEvent]] = []
    ended, persisting, go_on = threading.Event(), threading.Event(), threading.Event()

    def hear(event: TokenEvent) -> None:
        events.append((time.monotonic(), event))
        if event.finish:
            ended.set()

    admit = server.runtime.adapters.rehearsing.admit

    def late(*given: Any) -> None:
        admit(*given)
        persisting.set()
        go_on.wait(30)

    proposal = server.propose("alive", "trees")
    monkeypatch.setattr(server.runtime.adapters.rehearsing, "admit", late)
    digest = server.get("/adapters/alive")["digest"]
    answers: list[httpx.Response] = []
    body = {"adapter_id": "alive", "examples": [{"text": FACTS[20]}], "steps": 1, "consent": True}
    lesson = threading.Thread(
        target=lambda: answers.append(server.http.post("/learn/step", json=body))
    )
    lesson.start()
    assert persisting.wait(60)
    request = GenerationRequest(
        prompt=(5, 6, 7), adapters=(), max_tokens=200, sampling=SamplingConfig(seed=1), stop_ids=()
    )
    server.runtime.engine.submit(request, hear)
    while not events:
        time.sleep(0.001)
    pull(server)
    killed_at = time.monotonic()
    assert ended.wait(5)
    assert isinstance(events[-1][1].error, SystemKilled)
    assert len(events) < 200 and all(at < killed_at + 1 for at, _ in events)
    with pytest.raises(SystemKilled):
        server.runtime.engine.submit(request, hear)
    go_on.set()
    lesson.join()
    assert answers[0].status_code == 503
    assert server.get("/adapters/alive")["digest"] == digest
    deadline = time.monotonic() + 30
    while server.runtime.jobs.pending:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert server.get(f"/proposals/{proposal}")["state"] in ("consolidating", "checking")
    monkeypatch.undo()
    assert revive(server, 0, 1).status_code == 200
    assert server.settled(proposal)["state"] == "awaiting_approval"


def test_a_stolen_key_is_revoked_before_the_others_revive(server: Server) -> None:
    pull(server)
    lost = server.people.approvers[0]
    standing = server.get("/kill")
    fields = {"state_version": standing["state_version"], "policy": standing["policy_digest"]}
    act = server.act(Action.REVOKE, lost.public_key.digest, **fields)
    signed = [signature_to_json(sign_act(server.people.root, act))]
    body = {"reason": "stolen", "signatures": signed}
    assert server.http.post(f"/keys/{lost.key_id}/revoke", json=body).status_code == 200
    assert revive(server, 0, 1).status_code == 409
    assert revive(server, 1, 2).status_code == 200


def test_the_bare_base_may_stay(base: Path, people: People, tmp_path: Path) -> None:
    people.init(tmp_path, Rules(then="base"))
    with served(small_config(tmp_path, model=str(base)), people) as server:
        server.create("alive")
        before = server.answer("base")
        assert pull(server)["then"] == "base"
        assert server.answer("base") == before
        for model in ("stable", "alive"):
            assert server.ask(model).status_code == 503
        assert server.http.post("/v1/embeddings", json={"input": "x"}).status_code == 503
        assert server.http.post("/learn/step", json={}).status_code == 503


def test_what_a_revival_signs_is_what_is_on_record(server: Server) -> None:
    """Also for whoever asks in the moment after the order is obeyed and before it is recorded."""
    switch, signed = server.runtime.kill, order(server, server.people.operator)
    killed = switch._authorised("smoke", [signed], now=switch._now_ms() // 1000)
    with switch._lock:
        switch._set(killed)
        asked = switch.view()
    assert asked["digest"] == server.get("/kill")["digest"] != killed.digest
    assert revive(server, 0, 1).status_code == 200


def test_signatures_that_do_not_kill(server: Server) -> None:
    standing = server.get("/kill")
    good = server.act(Action.KILL, standing["target"])
    stranger = People()
    approve = server.act(Action.APPROVE, standing["target"])
    elsewhere = server.act(Action.KILL, "sha256:" + "0" * 64)
    for signed in (
        sign_act(stranger.operator, good),
        sign_act(server.people.operator, approve),
        sign_act(server.people.operator, elsewhere),
    ):
        body = {"reason": "x", "signatures": [signature_to_json(signed)]}
        refused = server.http.post("/kill", json=body)
        assert (refused.status_code, refused.json()["code"]) == (409, "quorum_missing")
    for body in ({}, {"reason": "x"}, {"reason": "", "signatures": []}, {"reason": "x" * 2000}):
        assert server.http.post("/kill", json=body).status_code == 400
    blank = {
        "reason": " ",
        "signatures": [signature_to_json(order(server, server.people.operator))],
    }
    assert server.http.post("/kill", json=blank).status_code == 409
    assert revive(server, 0, 1).status_code in (400, 409)
    assert server.get("/kill")["killed"] is False


def test_a_file_kills_a_server_that_is_not_asked(server: Server, tmp_path: Path) -> None:
    for junk in (b"", b"{}", b"[" * 100_000, b'{"reason":1,"signatures":[]}', b"\xff"):
        (tmp_path / KILL_FILE).write_bytes(junk)
        server.runtime.kill._look()
        assert server.get("/kill")["killed"] is False
    signed = order(server, server.people.operator)
    write_kill_file(tmp_path / KILL_FILE, "by hand", [signed])
    deadline = time.monotonic() + 1.0
    while not server.get("/kill")["killed"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert revive(server, 0, 1).status_code == 200
    # The same order again: it was given before the revival.
    write_kill_file(tmp_path / KILL_FILE, "by hand", [signed])
    server.runtime.kill._look()
    assert server.get("/kill")["killed"] is False
    answer = server.http.post(
        "/kill", json={"reason": "again", "signatures": [signature_to_json(signed)]}
    )
    assert answer.status_code == 409


def start(state: Path, base: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cambium", "serve", "--state", str(state),
               "--model", str(base), "--port", str(port)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz")
        except httpx.TransportError:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return process


def test_a_hung_server_is_ended_from_outside_and_comes_back_killed(
    base: Path, people: People, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    state, keys = tmp_path / "state", tmp_path / "keys"
    keys.mkdir()
    people.init(state)
    for name, key in {"operator": people.operator, "root": people.root,
                      **{f"a{i}": k for i, k in enumerate(people.approvers)}}.items():  # fmt: skip
        save_key(key, keys / f"{name}.key")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("CAMBIUM_URL", f"http://127.0.0.1:{port}")
    process = start(state, base, port)
    try:
        os.kill(process.pid, signal.SIGSTOP)  # it hangs: no route, no thread of it runs
        began = time.monotonic()
        assert main(["kill", "--key", str(keys / "operator.key"), "--state", str(state)]) == 0
        took = time.monotonic() - began
        assert "did not obey" in capsys.readouterr().out
        assert process.wait(timeout=5) == -signal.SIGKILL
        assert took < 10  # a second to obey in, and the rest is slack for a busy machine
        process = start(state, base, port)
        body = {"model": "base", "prompt": "x", "max_tokens": 1}
        assert httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body).status_code == 503
        assert main(["revive", "--key", str(keys / "a0.key")]) == 1
        assert main(["revive", "--key", str(keys / "a0.key"), str(keys / "a1.key")]) == 0
        assert httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body).status_code == 200
        capsys.readouterr()
        # One that lives obeys by itself, and goes on telling.
        command = ["kill", "--key", str(keys / "root.key"), "--state", str(state), "--json"]
        assert main(command) == 0
        assert f"by the server, process {process.pid}" in json.loads(capsys.readouterr().out)["how"]
        assert httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body).status_code == 503
        assert process.poll() is None
        assert main(["kill", "--key", str(keys / "a0.key")]) == 0  # it is, already
    finally:
        process.kill()
        process.wait()
