"""`kill -9` at random moments: what was acknowledged is there, a merge is before or after."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.killable import Killable, approve, check_whole_log, killable_servers
from tests.serving import FACTS, PORT, TREES, WAIT_S, People, tiny_base

NUM_KILLS = 10
# However slow the machine, something was proposed before this kill; its worker has a seed for it.
PROPOSED_BY = 4
MERGE_KILLS_AFTER_S = (0.0, 0.004, 0.015)


@pytest.fixture
def killable(tmp_path: Path) -> Iterator[Killable]:
    with killable_servers(tmp_path / "state", tiny_base(tmp_path / "base")) as found:
        yield found


@dataclass(kw_only=True)
class Acknowledged:
    """What a client was told, and what it was waiting for when the server died."""

    steps: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    proposals: list[str] = field(default_factory=list)
    answers: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def wait_for_more(self, number: int) -> None:
        while self.answers.acquire(blocking=False):
            pass
        for _ in range(number):
            assert self.answers.acquire(timeout=WAIT_S)


def work(http: httpx.Client, seed: int, told: Acknowledged) -> None:
    """Creates, teaches and proposes until the server is gone."""
    name = f"worker-{seed}"
    try:
        for turn in range(100):
            told.waiting.add(name)
            if turn == 0:
                answer = http.post("/adapters/ephemeral", json={"task_id": name})
                digest = answer.json()["digest"]
                told.steps[name] = 0
            else:
                examples = [{"text": t} for t in FACTS[turn : turn + 12]]
                body = {"adapter_id": name, "examples": examples, "steps": 1, "lr": 1e-3,
                        "consent": "tests"}  # fmt: skip
                answer = http.post("/learn/step", json=body)
                if answer.status_code == 409:  # its steps are spent
                    return
                digest = answer.json()["digest_after"]
                told.steps[name] += 1
            told.digests[name] = digest
            told.waiting.discard(name)
            told.answers.release()
            if turn == 2 and seed % 8 == 0:
                body = {"adapter_id": name, "domain": f"domain-{seed}"}
                answer = http.post("/adapters/propose_consolidation", json=body)
                told.proposals.append(answer.json()["proposal_id"])
                told.answers.release()
    except (httpx.TransportError, KeyError):
        return


def check(http: httpx.Client, told: Acknowledged) -> None:
    """Everything acknowledged is there; what was under way is there whole or not at all."""
    rows = {a["adapter_id"]: a for a in http.get("/adapters").json()["adapters"]}
    for name, digest in list(told.digests.items()):
        row = rows[name]
        if name in told.waiting and row["steps"] == told.steps[name] + 1:
            told.steps[name], told.digests[name] = row["steps"], row["digest"]
        else:
            assert (row["steps"], row["digest"]) == (told.steps[name], digest)
        body = {"model": f"{name}@{row['digest']}", "prompt": "Fact", "max_tokens": 1}
        answer = http.post("/v1/completions", json=body)
        assert answer.headers["x-cambium-adapter"] == f"{name}@{row['digest']}"
    told.waiting.clear()
    known = [p["id"] for p in http.get("/proposals").json()["proposals"]]
    assert set(told.proposals) <= set(known)
    check_whole_log(http)


def settled(http: httpx.Client, proposal: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if proposal not in http.get("/readyz").json()["jobs"]:
            return http.get(f"/proposals/{proposal}").json()
        time.sleep(0.05)
    raise AssertionError(f"{proposal} is still being worked on")


def test_nothing_acknowledged_is_lost(killable: Killable, tmp_path: Path) -> None:
    people, rng, told = People(), random.Random(5), Acknowledged()
    people.init(tmp_path / "state")
    for kill in range(NUM_KILLS):
        with closing(killable.start()) as http:
            check(http, told)
            workers = [
                threading.Thread(target=work, args=(http, 2 * kill + i, told)) for i in range(2)
            ]
            for worker in workers:
                worker.start()
            # After some answers, in the middle of something, never at the same point.
            told.wait_for_more(rng.randrange(2, 9))
            while kill == PROPOSED_BY and not told.proposals:
                told.wait_for_more(1)
            threading.Event().wait(rng.uniform(0.0, 0.15))
            killable.kill()
            for worker in workers:
                worker.join()
    assert len(told.digests) >= NUM_KILLS
    assert sum(told.steps.values()) > NUM_KILLS
    assert told.proposals
    with closing(killable.start()) as http:
        check(http, told)
        for proposal in told.proposals:
            view = settled(http, proposal)
            assert view["state"] in ("awaiting_approval", "rejected"), view
            assert view["candidate_digest"]


def test_a_merge_is_before_or_after(killable: Killable, tmp_path: Path) -> None:
    people = People()
    people.init(tmp_path / "state")
    proposals = {}
    http = killable.start()
    for domain, texts in (("trees", TREES), ("port", PORT)):
        http.post("/adapters/ephemeral", json={"task_id": domain})
        body = {"adapter_id": domain, "examples": [{"text": t} for t in texts], "steps": 1,
                "consent": "tests"}  # fmt: skip
        assert http.post("/learn/step", json=body).status_code == 200
        answer = http.post(
            "/adapters/propose_consolidation", json={"adapter_id": domain, "domain": domain}
        )
        proposals[domain] = answer.json()["proposal_id"]
    assert settled(http, proposals["port"])["state"] == "awaiting_approval"
    approve(http, people, proposals["trees"])
    revision = 1
    for wait_s in MERGE_KILLS_AFTER_S:
        told: list[httpx.Response] = []
        merging = threading.Thread(target=merge, args=(http, proposals["trees"], told))
        merging.start()
        threading.Event().wait(wait_s)
        killable.kill()
        merging.join()
        http.close()
        http = killable.start()
        view = http.get(f"/proposals/{proposals['trees']}").json()
        served = [r for r in http.get("/revisions").json()["revisions"] if r["served"]]
        after = view["state"] == "merged"
        assert [r["number"] for r in served] == [2 if after else 1]
        assert ("trees" in served[0]["bank"]) == after
        assert view["state"] in ("merged", "mergeable")
        assert after or not (told and told[0].status_code == 200)
        check_whole_log(http)
        revision = served[0]["number"]
        if after:
            break
    if revision == 1:
        assert merge(http, proposals["trees"], []).status_code == 200
    # The other proposal is looked at again, against what is served now.
    view = settled(http, proposals["port"])
    assert (view["state"], view["parent_revision"]) == ("awaiting_approval", 2)
    approve(http, people, proposals["port"])
    assert merge(http, proposals["port"], []).json()["revision"] == 3
    http.close()
    killable.kill()


def merge(http: httpx.Client, proposal: str, told: list[httpx.Response]) -> httpx.Response:
    try:
        told.append(http.post("/adapters/merge", json={"proposal_id": proposal}))
    except httpx.TransportError:
        return httpx.Response(503)
    return told[-1]
