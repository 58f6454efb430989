"""Several servers on one PostgreSQL state, each a whole runtime: what one does holds in all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from tests.postgres import fresh_database
from tests.serving import FACTS, TREES, People, Server, eventually, served, small_config

from cambium.core.nouns import Action
from cambium.trust.acts import sign_act, signature_to_json
from cambium.trust.audit import AuditEntry, Checkpoint, verify_log
from cambium.trust.keys import PublicKey
from cambium.trust.policy import sign_policy

SOON_S = 5.0  # about one second is promised; machines that run tests are busy


def soon(found: Callable[[], object]) -> None:
    eventually(found, within_s=SOON_S)


Pair = tuple[Server, Server]


@pytest.fixture(scope="module")
def url() -> str:
    return fresh_database()


@pytest.fixture(scope="module")
def house(base: Path, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two servers of one state, on which the tests of this module act one after another."""
    folder, people = tmp_path_factory.mktemp("state"), People()
    people.init(folder)
    one, two = (small_config(folder, model=str(base), db=url, port=8000 + n) for n in (1, 2))
    with served(one, people) as a, served(two, people) as b:
        yield a, b


def revision_of(server: Server) -> int:
    return int(server.ask("stable", domain="trees").headers["x-cambium-revision"])


def at_once(calls: Sequence[Callable[[], httpx.Response]]) -> list[httpx.Response]:
    answers: list[httpx.Response] = []
    start = threading.Barrier(len(calls))

    def call(one: Callable[[], httpx.Response]) -> None:
        start.wait()
        answers.append(one())

    threads = [threading.Thread(target=call, args=(one,)) for one in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def check_log(server: Server) -> list[AuditEntry]:
    body = server.get("/audit/checkpoint")
    public = PublicKey(raw=body.pop("public"))
    entries = [AuditEntry(**e) for e in server.get("/audit")["entries"]]
    covered = [e for e in entries if e.seq <= body["size"]]
    assert verify_log(covered, checkpoint=Checkpoint(**body), server_public=public) == body["size"]
    return entries


def post_rollback(server: Server, to: int, signed: list[dict[str, object]]) -> httpx.Response:
    return server.http.post("/revisions/rollback", json={"to": to, "signatures": signed})


def test_what_one_decides_is_decided_once_and_served_by_both(house: Pair) -> None:
    a, b = house
    proposal = a.awaiting("trees", "trees", TREES)
    assert b.get(f"/proposals/{proposal}")["state"] == "awaiting_approval"

    # Each approval reaches both; each counts once.
    signed = [signature_to_json(a.approval(proposal, person)) for person in (0, 1)]
    path = f"/proposals/{proposal}/approvals"
    answers = at_once([lambda h=h, s=s: h.http.post(path, json=s) for s in signed for h in house])
    assert sorted(r.status_code for r in answers) == [200, 200, 409, 409]
    assert len(a.get(f"/proposals/{proposal}")["approvals"]) == 2

    merge = {"proposal_id": proposal}
    calls = [lambda h=h: h.http.post("/adapters/merge", json=merge) for h in house * 3]
    won = [r.json() for r in at_once(calls) if r.status_code == 200]
    assert len(won) == 1
    assert (won[0]["revision"], won[0]["served_digest"]) == (2, won[0]["signed_digest"])
    for server in house:
        soon(lambda s=server: revision_of(s) == 2)
        assert server.ask("stable", domain="trees").headers["x-cambium-adapter"] == (
            f"trees@{won[0]['signed_digest']}"
        )
    assert a.answer("stable", domain="trees") == b.answer("stable", domain="trees")

    # The same signatures, and others of the same moment, roll back once.
    target = a.get("/revisions")["revisions"][0]["digest"]
    act = a.act(Action.ROLLBACK, target)
    sets = [[signature_to_json(sign_act(a.people.approvers[i], act)) for i in pair]
            for pair in ((0, 1), (1, 2), (0, 2))]  # fmt: skip
    answers = at_once([lambda h=h, s=s: post_rollback(h, 1, s) for s in sets for h in house])
    assert [r.json()["revision"] for r in answers if r.status_code == 200] == [3]
    for server in house:
        soon(lambda s=server: s.get("/readyz")["revision"] == 3)
        assert server.ask("stable").headers["x-cambium-adapter"] == "base"
    kinds = [e.kind for e in check_log(b)]
    assert (kinds.count("revision.merge"), kinds.count("revision.rollback")) == (1, 1)
    versions = [e.body["state_version"] for e in check_log(a) if "state_version" in e.body]
    assert versions == sorted(set(versions))


def test_who_is_behind_decides_on_what_holds(house: Pair) -> None:
    """A rollback asked of the other process at once rests on what the first has just done."""
    a, b = house
    for server, other in ((a, b), (b, a)):
        before = server.get("/revisions")["revisions"][-1]["number"]
        assert server.rollback(2).json()["revision"] == before + 1
        assert other.rollback(1).json()["revision"] == before + 2
    check_log(a)


def test_an_adapter_answers_everywhere_and_learns_in_one_place(house: Pair) -> None:
    a, b = house
    a.create("pupil")
    for turn in range(2):
        taught = a.teach("pupil", FACTS[4 * turn : 4 * turn + 4])
        asked = b.ask("pupil")
        assert asked.headers["x-cambium-adapter"] == f"pupil@{taught['digest_after']}"
        assert b.answer("pupil") == a.answer("pupil")
    body = {"adapter_id": "pupil", "examples": [{"text": FACTS[9]}]}
    for refused in (
        b.http.post("/learn/step", json=body),
        b.http.delete("/adapters/pupil"),
        b.http.delete("/adapters/pupil/examples"),
        b.ask("pupil", learn=True),
    ):
        said = refused.json()
        said = said.get("error", said)
        assert (refused.status_code, said["code"]) == (421, "adapter_elsewhere"), said
    assert b.http.post("/learn/step", json=body).json()["address"] == "http://127.0.0.1:8001"
    assert b.get("/adapters/pupil")["digest"] == taught["digest_after"]
    assert a.http.delete("/adapters/pupil").status_code == 200
    assert b.ask("pupil").status_code == 410


def test_a_kill_in_one_kills_both_and_a_revival_revives_both(house: Pair) -> None:
    a, b = house
    order = a.act(Action.KILL, a.get("/kill")["target"])
    kill = signature_to_json(sign_act(a.people.operator, order))
    a.post("/kill", reason="drill", signatures=[kill])
    soon(lambda: b.http.get("/readyz").json()["status"] == "killed")
    assert b.ask("base").status_code == 503
    standing = b.get("/kill")
    assert standing["digest"] == a.get("/kill")["digest"]
    act = b.act(Action.REVIVE, standing["digest"], state_version=standing["state_version"])
    signed = [signature_to_json(sign_act(b.people.approvers[i], act)) for i in (0, 1)]
    b.post("/revive", signatures=signed)
    soon(lambda: a.http.get("/readyz").json()["status"] == "ready")
    for server in house:
        assert server.ask("base").status_code == 200
    kinds = [e.kind for e in check_log(a)]
    assert (kinds.count("system.killed"), kinds.count("system.revived")) == (1, 1)


def test_a_policy_holds_in_both_at_once(house: Pair) -> None:
    a, b = house
    before = a.get("/policy")
    text = before["toml"].replace("version = 1", "version = 2", 1)
    text = text.replace("max_rank = 16", "max_rank = 8")
    signed = sign_policy(a.people.root, text.encode(), state_version=before["state_version"])
    a.post("/policy", toml=text, signature=signature_to_json(signed.signature), signatures=[])
    # Whether or not the other has heard of it: it decides on what holds.
    target = a.get("/revisions")["revisions"][1]["digest"]
    for fields, status in (({"policy": before["digest"]}, 409), ({}, 200)):
        act = a.act(Action.ROLLBACK, target, **fields)
        both = [signature_to_json(sign_act(a.people.approvers[i], act)) for i in (0, 1)]
        assert post_rollback(b, 2, both).status_code == status
    soon(lambda: b.get("/readyz")["policy"] == a.get("/readyz")["policy"] != before["digest"])
    wide = {"task_id": "wide", "lora_cfg": {"r": 16}}
    for server in house:
        soon(lambda s=server: s.http.post("/adapters/ephemeral", json=wide).status_code == 400)


def blob_of(server: Server, digest: str) -> Path:
    """Returns the file that holds a version of `trees`."""
    with server.runtime.state.read() as tx:
        name = tx.get_version("trees", digest).weights_blob.removeprefix("sha256:")
    return server.runtime.config.state / "blobs" / "sha256" / name[:2] / name


def test_who_cannot_verify_what_is_newer_says_so_and_serves_the_base_alone(house: Pair) -> None:
    a, b = house
    assert a.rollback(1).status_code == 200
    soon(lambda: revision_of(b) == revision_of(a))
    bank = a.get("/revisions")["revisions"][1]["bank"]["trees"]
    path = blob_of(a, bank["digest"])
    whole = path.read_bytes()
    b.runtime.deciding.close()  # it looks when this test says so
    try:
        assert a.rollback(2).status_code == 200
        path.write_bytes(whole[:-1] + b"x")
        b.runtime.deciding.follow()
        before = a.get("/revisions")["revisions"][-1]["number"] - 1
        refused = b.ask("stable", domain="trees")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_current")
        assert b.ask("base").headers["x-cambium-revision"] == str(before)
        ready = b.http.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "not current")
        assert "other bytes" in ready.json()["why"] and ready.json()["revision"] == before
        assert a.ask("stable", domain="trees").status_code == 200  # it has what it verified
        again = b.rollback(1)
        assert (again.status_code, again.json()["code"]) == (503, "not_current")
    finally:
        path.write_bytes(whole)
    b.runtime.deciding.follow()
    assert b.answer("stable", domain="trees") == a.answer("stable", domain="trees")
    assert b.get("/readyz")["status"] == "ready"
