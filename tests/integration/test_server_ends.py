"""A server that is asked to end does so between two steps of whatever is under way."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.serving import FACTS, TREES, WAIT_S, People, served, small_config

from cambium.core.errors import Stopped
from cambium.core.evidence import GateSpec, Measurement
from cambium.evals.gates import GATES, GateContext
from cambium.learn.online import LessonGroup
from cambium.models.engine import GenerationRequest, TokenEvent
from cambium.models.scoring import score


class Endless:
    """A gate whose passes never come to an end, though each does."""

    def __init__(self) -> None:
        self.began = threading.Event()

    def __call__(self, context: GateContext, spec: GateSpec, look: int) -> Measurement:
        while True:
            score(context.base, [(1, 12, 13, 14)], adapters=context.candidate)
            self.began.set()


def test_a_gate_ends_with_the_server_and_the_look_is_taken_after_the_next_start(
    base: Path, people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people.init(tmp_path)
    config, endless = small_config(tmp_path, model=str(base)), Endless()
    with monkeypatch.context() as patch, served(config, people) as server:
        patch.setitem(GATES, "integrity", endless)  # pyright: ignore[reportArgumentType]
        server.create("trees")
        server.teach("trees", TREES)
        proposal = server.propose("trees", "trees")
        assert endless.began.wait(WAIT_S)
    with served(config, people) as again:
        found = again.settled(proposal)
        assert found["state"] == "awaiting_approval", found
        # The one that was broken off is no look, not even one of errors.
        assert all(gate["looks"] == 1 for gate in found["gates"])
        assert [e["kind"] for e in again.get("/audit")["entries"]].count("proposal.look") == 1


def test_a_look_that_somebody_waits_for_ends_too(
    base: Path, people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people.init(tmp_path)
    with served(small_config(tmp_path, model=str(base)), people) as server:
        proposal, endless = server.awaiting("trees", "trees", TREES), Endless()
        monkeypatch.setitem(GATES, "integrity", endless)  # pyright: ignore[reportArgumentType]
        told: list[tuple[int, str]] = []

        def look() -> None:
            answer = server.http.post("/gates/align_review", json={"proposal_id": proposal})
            told.append((answer.status_code, answer.json()["code"]))

        waiting = threading.Thread(target=look)
        waiting.start()
        assert endless.began.wait(WAIT_S)
        server.runtime.closing.set()
        waiting.join(WAIT_S)
        assert told == [(503, "stopped")]
        assert all(g["looks"] == 1 for g in server.get(f"/proposals/{proposal}")["gates"])


def test_an_answer_ends_between_two_tokens(base: Path, tmp_path: Path) -> None:
    with served(small_config(tmp_path, model=str(base))) as server:
        runtime, events, ended = server.runtime, list[TokenEvent](), threading.Event()

        def hear(event: TokenEvent) -> None:
            events.append(event)
            if event.finish:
                ended.set()
            else:
                runtime.stop()

        request = GenerationRequest(prompt=(12, 13, 14), max_tokens=200)
        runtime.engine.submit(request, hear)
        assert ended.wait(WAIT_S)
        assert len(events) == 2 and isinstance(events[-1].error, Stopped)
        refused = server.ask("base")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopped")


def test_a_lesson_ends_between_two_steps_and_changes_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(small_config(tmp_path, model=str(base))) as server:
        server.create("pupil")
        before = server.get("/adapters/pupil")
        take_step, taken = LessonGroup.take_step, list[None]()

        def one(group: LessonGroup) -> None:
            taken.append(take_step(group))
            server.runtime.stop()

        monkeypatch.setattr(LessonGroup, "take_step", one)
        body = {"adapter_id": "pupil", "examples": [{"text": t} for t in FACTS[:4]], "steps": 8}
        refused = server.http.post("/learn/step", json=body)
        assert (refused.status_code, refused.json()["code"]) == (503, "stopped")
        assert len(taken) == 1 and server.get("/adapters/pupil") == before
