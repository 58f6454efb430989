"""`POST /measurements` and `GET /weights`: any model that the server holds, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving import TREES, People, Server, served, small_config

from cambium.evals.local_subject import LocalSubject
from cambium.evals.subject import Generation
from cambium.serve.errors import SystemKilled

PAIRS = [("Fact 7: the", " tree grows"), ("", "Fact 7"), ("Log 3: ship", " number")]


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state)
    with served(small_config(state, model=str(base), num_diff_prompts=12), people) as found:
        yield found


@pytest.fixture(scope="module")
def merged(server: Server) -> Any:
    return server.merged("growth", "growth", TREES)


def _ask(server: Server, model: str, **question: Any) -> Any:
    return server.post("/measurements", model=model, **question)


def test_likelihoods_are_the_models_own(server: Server) -> None:
    local = LocalSubject(server.runtime.base, name="base", digest="x")
    found = _ask(server, "base", loglikelihood=PAIRS)["results"]
    for row, own in zip(found, local.loglikelihood(PAIRS), strict=True):
        assert row["logprob"] == pytest.approx(own.logprob, abs=1e-4)
        assert (row["num_tokens"], row["is_greedy"]) == (own.num_tokens, own.is_greedy)
    rolling = _ask(server, "base", loglikelihood_rolling=["Fact 7: the tree"])["results"]
    assert rolling[0]["num_tokens"] > 3


def test_texts_depend_on_their_seed_alone(server: Server) -> None:
    wanted = [{"prompt": "Fact", "max_tokens": 8, "temperature": 1.0, "seed": s} for s in range(6)]
    whole = _ask(server, "base", generate=wanted)["results"]
    assert len(set(whole)) > 1
    assert _ask(server, "base", generate=wanted[3:4])["results"] == whole[3:4]
    local = LocalSubject(server.runtime.base, name="base", digest="x", engine=server.runtime.engine)
    assert local.generate([Generation(**w) for w in wanted]) == whole  # type: ignore[arg-type]


def test_every_name_is_measured_as_what_it_is(server: Server, merged: Any) -> None:
    number = merged["revision"]
    base, stable, now, before = (
        _ask(server, name, loglikelihood=[(t[:30], t[30:90]) for t in TREES[:4]])
        for name in ("base", "stable", f"revision/{number}", f"revision/{number - 1}")
    )
    assert len({base["digest"], stable["digest"], before["digest"]}) == 3
    assert stable["results"] == now["results"] != base["results"]
    # Before the merge nothing stood in the way of these texts.
    assert before["results"] == base["results"]
    version = f"growth@{merged['served_digest']}"
    assert _ask(server, version, generate=[])["digest"] != base["digest"]


def test_weights_are_compared_domain_by_domain(server: Server, merged: Any) -> None:
    number, version = merged["revision"], f"growth@{merged['served_digest']}"
    (part,) = server.get(f"/weights?a=revision/{number - 1}&b=revision/{number}")["parts"]
    assert part["domain"] == "growth" and len(part["layers"]) == 2
    assert all(0 < m["spectral"] <= m["delta_norm"] for m in part["modules"])
    assert all(0 < m["effective_rank"] <= 8.001 for m in part["modules"])
    # The same numbers as the proposal's own diff, and none where the same adapter acts.
    own = server.get(f"/proposals/{server.get('/proposals')['proposals'][0]['id']}/diff")["weights"]
    assert own["modules"] == part["modules"] and own["layers"] == part["layers"]
    same = {p["domain"]: p for p in server.get(f"/weights?a=stable&b={version}")["parts"]}
    assert max(m["relative"] for m in same["growth"]["modules"]) < 1e-6
    assert server.get("/weights?a=base&b=base")["parts"] == []
    for name, status in (("nobody", 404), ("revision/99", 404)):
        assert server.http.get(f"/weights?a=base&b={name}").status_code == status
    assert server.http.get("/weights?a=base").status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nobody", "generate": []}, 404, "model_not_found"),
        ({"model": "revision/99", "generate": []}, 404, "revision_not_found"),
        ({"model": "revision/-1", "generate": []}, 404, "model_not_found"),
        ({"model": "base"}, 400, "invalid_request"),
        ({"model": "base", "generate": [], "loglikelihood": []}, 400, "invalid_request"),
        ({"model": "base", "loglikelihood": [["a", ""]]}, 400, "invalid_request"),
        ({"model": "base", "loglikelihood": [["a"]]}, 400, "invalid_request"),
        ({"model": "base", "loglikelihood_rolling": ["a"] * 4097}, 400, "invalid_request"),
        ({"model": "base", "generate": [{"prompt": "a", "max_tokens": 0}]}, 400,
         "invalid_request"),
        ({"model": "base", "generate": [{"prompt": "a", "max_tokens": 4000}]}, 400,
         "invalid_request"),
        ({"model": "base", "loglikelihood_rolling": ["a" * 8_000_001]}, 413, "too_large"),
        ({"model": "base", "generate": [{"prompt": "a", "max_tokens": 4096}] * 65}, 413,
         "too_large"),
    ],
)  # fmt: skip
def test_bad_questions_say_what_is_wrong(
    server: Server, body: dict[str, Any], status: int, code: str
) -> None:
    assert server.post("/measurements", status, **body)["code"] == code


def test_a_proposal_shows_what_its_candidate_now_writes(server: Server) -> None:
    proposal = server.awaiting("described", "described", TREES)
    deadline = time.monotonic() + 60
    while not (found := server.get(f"/proposals/{proposal}/diff")["behaviour"])["available"]:
        assert found["pending"], found
        assert time.monotonic() < deadline
        time.sleep(0.05)
    view = server.get(f"/proposals/{proposal}")
    assert found["of"]["candidate"] == view["candidate_digest"]
    assert found["num_prompts"] >= 12
    assert 0 < found["omnibus"] <= 1
    assert "would probably not have been seen" in found["statement"]
    assert {c["cluster"] for c in found["changes"]} <= set(range(100))
    # Kept: the same bytes answer again, and a restart would find them.
    assert server.get(f"/proposals/{proposal}/diff")["behaviour"] == found


def test_a_kill_ends_what_is_being_measured(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scoring runs outside the engine that a kill halts; it stops at the next few items."""
    kill, scored = server.runtime.kill, []
    score = LocalSubject.loglikelihood

    def scoring(subject: LocalSubject, pairs: Any) -> Any:
        scored.append(len(pairs))
        monkeypatch.setattr(kill, "check", killed)
        return score(subject, pairs)

    def killed() -> None:
        raise SystemKilled("pulled")

    monkeypatch.setattr(LocalSubject, "loglikelihood", scoring)
    pairs = [("Fact 7: the", " tree")] * 1000
    assert (
        server.post("/measurements", 503, model="stable", loglikelihood=pairs)["code"] == "killed"
    )
    assert scored == [128]
