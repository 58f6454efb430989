"""Server processes that start in one moment on an empty PostgreSQL database: one state."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.killable import Killable, check_whole_log, killable_servers
from tests.postgres import fresh_database
from tests.serving import People, tiny_base

NUM_SERVERS = 3


@pytest.fixture(params=["moved", "bare"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A state with a signed policy, whose file one of the servers has to move; or nothing yet."""
    folder = tmp_path / "state"
    if request.param == "moved":
        People().init(folder)
    return folder


@pytest.fixture
def houses(folder: Path, tmp_path: Path) -> Iterator[list[httpx.Client]]:
    base, url = tiny_base(tmp_path / "base"), fresh_database()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(killable_servers(folder, base, db=url)) for _ in range(NUM_SERVERS)
        ]
        for server in servers:
            server.wait()
        with ThreadPoolExecutor(NUM_SERVERS) as threads:
            started = list(threads.map(Killable.start, servers))
        yield [stack.enter_context(closing(http)) for http in started]


def said(http: httpx.Client, path: str) -> Any:
    answer = http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.timeout(240)
def test_all_come_up_with_one_state(houses: list[httpx.Client], folder: Path) -> None:
    """One of them makes the tables, the key and the first revision, and moves what there was."""
    one = houses[0]
    for path in ("/revisions", "/policy", "/keys", "/audit"):
        assert [said(http, path) for http in houses] == [said(one, path)] * NUM_SERVERS, path
    kinds = [entry["kind"] for entry in said(one, "/audit")["entries"]]
    assert kinds.count("revision.genesis") == 1, kinds
    assert said(one, "/policy")["signed"] is (folder / "cambium.db.moved").exists()
    assert not (folder / "cambium.db").exists()
    # All sign with one key, and what one does the others know.
    assert len({said(http, "/audit/checkpoint")["public"] for http in houses}) == 1
    names = {f"pupil-{number}" for number in range(NUM_SERVERS)}
    for name, http in zip(sorted(names), houses, strict=True):
        made = http.post("/adapters/ephemeral", json={"task_id": name})
        assert made.status_code == 201, made.text
    for http in houses:
        assert {a["adapter_id"] for a in said(http, "/adapters")["adapters"]} == names
        check_whole_log(http)
