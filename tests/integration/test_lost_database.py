"""A server whose PostgreSQL goes away: what it says, what it keeps, and how it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import make_url
from tests.postgres import fresh_database
from tests.serving import FACTS, TREES, People, Server, eventually, served, small_config

from cambium.core.nouns import Action
from cambium.serve.errors import StateUnreachable
from cambium.serve.kill_switch import KILL_FILE, write_kill_file
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.serve.tokens import Role, TokenOrder, Tokens
from cambium.trust.acts import sign_act, signature_to_json
from cambium.trust.audit import AuditEntry, Checkpoint, verify_log
from cambium.trust.keys import PublicKey

SOON_S = 15.0  # a process doubts after four seconds


def soon(found: Callable[[], object]) -> None:
    eventually(found, within_s=SOON_S)


class Database:
    """A database that can be taken away."""

    def __init__(self, other: psycopg.Connection[Any], name: str) -> None:
        self._other, self._name = other, name

    def _allow(self, connections: bool) -> None:
        self._other.execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS {connections}")  # pyright: ignore[reportArgumentType]

    @contextmanager
    def gone(self) -> Iterator[None]:
        self._allow(False)
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        try:
            self._other.execute(ended, (self._name,))
            yield
        finally:
            self._allow(True)


@pytest.fixture(scope="module")
def house(
    base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Database]]:
    folder, people, url = tmp_path_factory.mktemp("state"), People(), fresh_database()
    people.init(folder)
    config = small_config(folder, model=str(base), db=url)
    with (
        psycopg.connect(fresh_database(), autocommit=True) as other,
        served(config, people) as server,
    ):
        yield server, Database(other, str(make_url(url).database))


def refusal(answer: httpx.Response) -> tuple[int, str]:
    said = answer.json()
    return answer.status_code, said.get("error", said)["code"]


def check_log(server: Server) -> None:
    body = server.get("/audit/checkpoint")
    public = PublicKey(raw=body.pop("public"))
    entries = [AuditEntry(**e) for e in server.get("/audit")["entries"]]
    covered = [e for e in entries if e.seq <= body["size"]]
    assert verify_log(covered, checkpoint=Checkpoint(**body), server_public=public) == body["size"]


def test_nothing_is_acknowledged_and_each_refusal_has_its_code(
    house: tuple[Server, Database],
) -> None:
    server, database = house
    server.create("patient")
    before, head = server.get("/adapters/patient"), server.get("/revisions")["revisions"]
    one = {"adapter_id": "patient", "examples": [{"text": FACTS[0]}], "steps": 1}
    post, get = server.http.post, server.http.get
    with database.gone():
        calls: list[Callable[[], httpx.Response]] = [
            lambda: post("/learn/step", json=one),
            lambda: post("/adapters/ephemeral", json={"task_id": "another"}),
            lambda: post("/adapters/merge", json={"proposal_id": "p-1"}),
            lambda: post("/revisions/rollback", json={"to": 1, "signatures": []}),
            lambda: get("/adapters"),
            lambda: get("/revisions"),
            lambda: get("/audit"),
            lambda: get("/audit/checkpoint"),
        ]
        for call in calls:
            answer = call()
            assert refusal(answer) in {(503, "state_unreachable"), (503, "not_current")}
        assert answer.headers["retry-after"] == "2"
        # Well before another could have taken its place, it stops saying what holds.
        soon(lambda: get("/readyz").status_code == 503)
        assert get("/readyz").json()["status"] == "not current"
        for model in ("stable", "patient"):
            assert refusal(server.ask(model))[0] == 503
        assert server.ask("base").status_code == 200
    soon(lambda: get("/readyz").status_code == 200)
    assert server.get("/adapters/patient") == before
    assert server.get("/revisions")["revisions"] == head
    assert [a["adapter_id"] for a in server.get("/adapters")["adapters"]] == ["patient"]
    taught = server.teach("patient", FACTS[:2])
    assert taught["digest_before"] == before["digest"]
    assert server.ask("stable").status_code == 200
    check_log(server)


def test_a_lesson_that_was_kept_but_not_acknowledged_is_gone_on_from(
    house: tuple[Server, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after the commit: nobody can know, and both must go on the same."""
    server, _ = house
    server.create("unsure")
    first = server.teach("unsure", FACTS[:2])
    whole = State.transaction

    @contextmanager
    def breaks(state: State) -> Iterator[Transaction]:
        with whole(state) as tx:
            yield tx
            kept = tx.find_adapter("unsure")
        if kept is not None and kept.digest != first["digest_after"]:
            raise StateUnreachable("the connection broke")

    body = {"adapter_id": "unsure", "examples": [{"text": FACTS[2]}], "consent": "tests"}
    with monkeypatch.context() as patch:
        patch.setattr(State, "transaction", breaks)
        assert refusal(server.http.post("/learn/step", json=body)) == (503, "state_unreachable")
    kept = server.get("/adapters/unsure")["digest"]
    assert kept != first["digest_after"]
    assert server.teach("unsure", FACTS[3:5])["digest_before"] == kept
    assert server.post("/adapters/unsure/replay")["ok"] is True


def test_a_job_goes_on_where_it_stood(house: tuple[Server, Database]) -> None:
    server, database = house
    server.create("trees")
    server.teach("trees", TREES)
    proposal = server.propose("trees", "trees")
    with database.gone():
        soon(lambda: server.http.get("/readyz").status_code == 503)
    soon(lambda: server.http.get("/readyz").status_code == 200)
    found = server.settled(proposal)
    assert found["state"] == "awaiting_approval", found


def test_tokens_stand_as_they_stood(tmp_path: Path) -> None:
    url = fresh_database()
    with (
        psycopg.connect(fresh_database(), autocommit=True) as other,
        State.open(tmp_path, url=url) as state,
        State.open(tmp_path) as elsewhere,
    ):
        here, there = (Tokens(s, now_ms=lambda: 1) for s in (state, elsewhere))
        row, token = there.make(TokenOrder(name="ann", tenant="*", roles=[Role.OPERATOR]))
        assert not here.demanded
        here.follow()
        with Database(other, str(make_url(url).database)).gone():
            assert here.demanded and here.find(token) == row
            with pytest.raises(StateUnreachable):
                here.follow()


@pytest.mark.parametrize("by_file", [False, True], ids=["asked", "by file"])
def test_a_kill_waits_for_no_database(
    base: Path, people: People, tmp_path: Path, by_file: bool
) -> None:
    people.init(tmp_path)
    url = fresh_database()
    config = small_config(tmp_path, model=str(base), db=url)
    with (
        psycopg.connect(fresh_database(), autocommit=True) as other,
        served(config, people) as server,
    ):
        before, kill = server.get("/kill"), server.runtime.kill
        signed = sign_act(people.operator, server.act(Action.KILL, before["target"]))
        soon(lambda: kill._standing and kill._standing.targets)  # as of a tenth of a second ago
        with Database(other, str(make_url(url).database)).gone():
            soon(lambda: server.http.get("/readyz").status_code == 503)
            assert server.get("/kill") == before
            if by_file:
                write_kill_file(tmp_path / KILL_FILE, "outage", [signed])
                soon(lambda: kill.killed)
            else:
                server.post("/kill", reason="outage", signatures=[signature_to_json(signed)])
            assert refusal(server.ask("base")) == (503, "killed")
        soon(lambda: [e for e in server.get("/audit")["entries"] if e["kind"] == "system.killed"])
        check_log(server)
    with served(config, people) as again:
        assert refusal(again.ask("base")) == (503, "killed")
