"""`kill -9` of one of two server processes on one PostgreSQL state: the other goes on."""

from __future__ import annotations

import threading
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
from tests.killable import approve, check_whole_log, killable_servers
from tests.postgres import fresh_database
from tests.serving import FACTS, TREES, People, eventually, tiny_base


def teach(http: httpx.Client, name: str, texts: list[str]) -> httpx.Response:
    body = {"adapter_id": name, "examples": [{"text": t} for t in texts], "steps": 2,
            "consent": "tests"}  # fmt: skip
    return http.post("/learn/step", json=body)


def test_the_other_goes_on_and_nothing_is_lost_or_merged_twice(tmp_path: Path) -> None:
    people, folder, url = People(), tmp_path / "state", fresh_database()
    people.init(folder)
    base = tiny_base(tmp_path / "base")
    with ExitStack() as stack:
        one = stack.enter_context(killable_servers(folder, base, db=url))
        a = stack.enter_context(
            closing(one.start())
        )  # alone at first: it moves what the folder's file holds
        two = stack.enter_context(killable_servers(folder, base, db=url))
        b = stack.enter_context(closing(two.start()))

        a.post("/adapters/ephemeral", json={"task_id": "pupil"})
        taught = teach(a, "pupil", TREES).json()
        assert teach(b, "pupil", FACTS[:2]).json()["code"] == "adapter_elsewhere"
        filed = a.post(
            "/adapters/propose_consolidation", json={"adapter_id": "pupil", "domain": "trees"}
        )
        proposal = filed.json()["proposal_id"]
        one.kill()  # in the middle of the consolidation

        # The lesson is there, and the adapter learns on in the process that is left.
        found = b.post("/v1/completions", json={"model": "pupil", "prompt": "x", "max_tokens": 1})
        assert found.headers["x-cambium-adapter"] == f"pupil@{taught['digest_after']}"
        again = eventually(lambda: (r := teach(b, "pupil", FACTS[:2])).status_code == 200 and r)
        assert again.json()["digest_before"] == taught["digest_after"]
        state = lambda: b.get(f"/proposals/{proposal}").json()["state"]  # noqa: E731
        eventually(lambda: state() == "awaiting_approval")
        approve(b, people, proposal)

        # Both try to merge; one of them is killed at it.
        a = stack.enter_context(closing(one.start()))
        told: list[int] = []

        def merge(http: httpx.Client) -> None:
            try:
                answer = http.post("/adapters/merge", json={"proposal_id": proposal})
            except httpx.TransportError:
                return
            told.append(answer.status_code)

        threads = [threading.Thread(target=merge, args=(http,)) for http in (a, b, b)]
        for thread in threads:
            thread.start()
        one.kill()
        for thread in threads:
            thread.join()
        assert told.count(200) <= 1
        if state() != "merged":
            assert b.post("/adapters/merge", json={"proposal_id": proposal}).status_code == 200
        assert state() == "merged"
        kinds = [e["kind"] for e in b.get("/audit").json()["entries"]]
        assert kinds.count("revision.merge") == 1
        served = b.post("/v1/completions", json={"model": "stable", "prompt": "x", "max_tokens": 1})
        assert served.headers["x-cambium-revision"] == "2"
        check_whole_log(b)
