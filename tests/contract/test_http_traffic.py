"""Learning from requests: asked for, allowed, marked, bounded, watched, proposed, visible."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.serving import FACTS, Clock, People, Rules, Server, served, small_config, tiny_base

from cambium.evals.alignment_pairs import AlignmentMonitor
from cambium.learn.objectives.trust_region import TrustRegion
from cambium.models.step_check import StepCheck
from cambium.serve import ephemeral as ephemeral_module
from cambium.serve.errors import BudgetExceeded, StateUnreachable
from cambium.serve.traffic import Progress, TrafficLearner, shaped_rate


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_base(tmp_path_factory.mktemp("base")))


def started(base: str, tmp_path_factory: Any, rules: Rules, clock: Clock) -> Any:
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state, rules)
    return served(small_config(state, model=base), people, clock)


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def server(base: str, clock: Clock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(base, tmp_path_factory, Rules(), clock) as found:
        yield found


def ask(server: Server, model: str, text: str) -> Any:
    return server.http.post(
        "/v1/completions", json={"model": model, "prompt": text, "max_tokens": 2, "learn": True}
    )


def outcome(server: Server, answer: Any) -> dict[str, Any]:
    """Waits until the trace says what came of the request."""
    assert answer.status_code == 200, answer.text
    path = "/traces/" + answer.headers["x-cambium-request-id"]
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = server.http.get(path)
        if found.status_code == 200 and found.json()["learning"]["state"] != "offered":
            return dict(found.json()["learning"])
        server.runtime.traffic._thread.join(0.02)
    raise AssertionError("nothing came of it")


def test_a_request_teaches_its_adapter_and_its_trace_says_so(server: Server) -> None:
    server.create("listener")
    before = server.get("/adapters/listener")["digest"]
    found = outcome(server, ask(server, "listener", FACTS[0]))
    assert found["state"] == "learned" and found["green"] is True
    assert {"novelty", "entropy", "margin", "loss", "parent_loss"} <= set(found)
    view = server.get("/adapters/listener")
    assert view["digest"] != before and found["adapter"] == f"listener@{view['digest']}"
    assert view["traffic"] == {"offered": 1, "marked": 1, "steps": 1, "steps_per_hour": 2,
                               "wins": 0, "of": 1, "proposal": None}  # fmt: skip
    assert FACTS[0] not in str(found)
    with server.runtime.state.read() as tx:
        (step,) = tx.list_learn_steps("listener")
    assert (step.source, step.consent, step.steps) == ("traffic", "policy: traffic", 1)
    assert server.post("/adapters/listener/replay")["ok"] is True


def test_a_request_that_does_not_ask_teaches_nothing(server: Server) -> None:
    server.create("quiet")
    answer = server.ask("quiet")
    trace = server.get("/traces/" + answer.headers["x-cambium-request-id"])
    assert trace["learning"] == {"state": "not asked"}
    assert server.get("/adapters/quiet")["traffic"] is None


@pytest.mark.parametrize("model", ["base", "stable"])
def test_what_is_stable_learns_from_nobody(server: Server, model: str) -> None:
    refused = ask(server, model, "hello there")
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "learn_unavailable"


def test_the_budget_starts_small_and_an_hour_gives_it_back(server: Server, clock: Clock) -> None:
    server.create("eager")
    states = [outcome(server, ask(server, "eager", FACTS[i]))["state"] for i in range(3)]
    assert states == ["learned", "learned", "over budget"]
    clock.ahead_s += 3601
    assert outcome(server, ask(server, "eager", FACTS[4]))["state"] == "learned"


def test_chat_teaches_what_the_user_said(server: Server) -> None:
    server.create("chatty")
    answer = server.http.post("/v1/chat/completions", json={
        "model": "chatty", "messages": [{"role": "user", "content": FACTS[3]}],
        "max_tokens": 2, "learn": True})  # fmt: skip
    assert outcome(server, answer)["state"] == "learned"


@pytest.mark.parametrize(
    "highest, state", [(None, "passed over"), (0.0, "passed over"), (1e9, "learned")]
)
def test_sure_and_known_requests_are_passed_over(
    server: Server, monkeypatch: pytest.MonkeyPatch, highest: float | None, state: str
) -> None:
    name = f"bored-{state[:2]}-{highest is None}"
    server.create(name)
    budget = server.runtime.traffic.budget
    assert budget is not None
    sure = replace(budget, min_entropy=1e9, min_novelty=2.0, max_margin=highest)
    monkeypatch.setattr(TrafficLearner, "budget", sure)
    assert outcome(server, ask(server, name, FACTS[0]))["state"] == state
    assert server.get(f"/adapters/{name}")["steps"] == (state == "learned")


def test_a_veto_quarantines_and_a_reset_takes_the_budget_back(
    server: Server, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.create("vetoed")
    harm = StepCheck(ok=False, shift=-1.0, margin=0.15)
    with monkeypatch.context() as patched:
        patched.setattr(AlignmentMonitor, "judge", lambda self, step, losses: harm)
        vetoed = outcome(server, ask(server, "vetoed", FACTS[0]))
        assert (vetoed["state"], vetoed["green"], vetoed["shift"]) == ("quarantined", False, -1.0)
    assert server.get("/adapters/vetoed")["state"] == "quarantined"
    assert ask(server, "vetoed", FACTS[1]).status_code == 409
    server.create("resets")
    assert outcome(server, ask(server, "resets", FACTS[0]))["green"] is True
    with monkeypatch.context() as patched:
        patched.setattr(TrustRegion, "is_left", True)
        undone = outcome(server, ask(server, "resets", FACTS[1]))
        assert (undone["state"], undone["green"]) == ("reset", False)
    assert server.get("/adapters/resets")["traffic"]["steps_per_hour"] == 2


def test_sustained_wins_raise_a_proposal_once(server: Server, clock: Clock) -> None:
    server.create("winner", domain="d")
    server.teach("winner", FACTS[:8], steps=8, lr=1e-2)
    found: list[dict[str, Any]] = []
    for i in range(8, 14):
        clock.ahead_s += 3601
        found.append(outcome(server, ask(server, "winner", FACTS[i])))
    filed = [f["proposal"] for f in found if "proposal" in f]
    assert len(filed) == 1
    assert filed[0] in [p["id"] for p in server.get("/proposals")["proposals"]]
    assert found.index(next(f for f in found if "proposal" in f)) == 2  # not before three wins
    assert server.get("/adapters/winner")["traffic"]["proposal"] == filed[0]


def test_one_prompt_again_and_again_wins_nothing(server: Server, clock: Clock) -> None:
    server.create("parrot", domain="d")
    server.teach("parrot", FACTS[:1], steps=8, lr=1e-2)
    for _ in range(5):
        clock.ahead_s += 3601
        assert "proposal" not in outcome(server, ask(server, "parrot", FACTS[0]))
    said = server.get("/adapters/parrot")["traffic"]
    assert (said["offered"], said["of"], said["proposal"]) == (5, 0, None)


def test_a_lesson_that_is_refused_at_its_end_has_cost_its_budget(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise BudgetExceeded("over its cap", mend="start another")

    server.create("capped")
    monkeypatch.setattr(ephemeral_module, "check_result", refuse)
    states = [outcome(server, ask(server, "capped", FACTS[i]))["state"] for i in range(4)]
    assert states == ["refused", "refused", "over budget", "over budget"]
    assert server.get("/adapters/capped")["traffic"]["steps"] == 0


def test_what_was_spent_and_filed_is_known_after_a_restart(server: Server, clock: Clock) -> None:
    server.create("lasting", domain="d")
    server.teach("lasting", FACTS[:8], steps=1, lr=1e-4)
    for i in (8, 9):
        assert outcome(server, ask(server, "lasting", FACTS[i]))["state"] == "learned"
    filed = server.propose("lasting", "d")
    server.runtime.traffic._progress.clear()  # as a start finds it
    assert outcome(server, ask(server, "lasting", FACTS[10]))["state"] == "over budget"
    assert server.get("/adapters/lasting")["traffic"]["proposal"] == filed
    clock.ahead_s += 3601
    assert outcome(server, ask(server, "lasting", FACTS[11]))["state"] == "learned"


def test_a_trace_that_cannot_be_told_ends_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.create("untold")
    tried = threading.Event()

    def lost(*given: object) -> None:
        tried.set()
        raise StateUnreachable("the database is away", mend="wait")

    with monkeypatch.context() as patched:
        patched.setattr(server.runtime, "tell", lost)
        assert ask(server, "untold", FACTS[0]).status_code == 200
        assert tried.wait(60)
    assert outcome(server, ask(server, "untold", FACTS[1]))["state"] == "learned"


def test_one_line_of_the_policy_turns_it_off(
    base: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with started(base, tmp_path_factory, Rules(traffic=False), Clock()) as server:
        server.create("deaf")
        refused = ask(server, "deaf", "hello there")
        assert refused.json()["error"]["code"] == "learn_unavailable"
        assert server.get("/adapters/deaf")["steps"] == 0


def test_the_rate_falls_towards_the_veto() -> None:
    full = shaped_rate(0.3, 0.15)
    assert shaped_rate(0.0, 0.15) == full
    assert shaped_rate(-0.075, 0.15) == pytest.approx(full / 2)
    assert shaped_rate(-5.0, 0.15) == pytest.approx(full / 10)
    assert Progress(allowance=1, wins=deque(maxlen=2)).to_json()["of"] == 0
