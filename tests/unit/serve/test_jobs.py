from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.postgres import fresh_database

from cambium.serve.jobs import JobRunner, claims_on
from cambium.serve.store.state import State

WAIT_S = 10


def test_jobs_run_in_order_and_a_queued_one_is_replaced() -> None:
    runner, done = JobRunner(), list[str]()
    began, may_go, ended = threading.Event(), threading.Event(), threading.Event()

    def first(stop: threading.Event) -> None:
        began.set()
        assert may_go.wait(WAIT_S)
        done.append("first")

    runner.submit("first", first)
    assert began.wait(WAIT_S)
    runner.submit("second", lambda stop: done.append("old"))
    runner.submit("second", lambda stop: done.append("new"))
    runner.submit("first", lambda stop: done.append("first again"))
    runner.submit("last", lambda stop: ended.set())
    assert runner.pending == ("first", "second", "first", "last")
    may_go.set()
    assert ended.wait(WAIT_S)
    runner.close()
    assert done == ["first", "new", "first again"]


def test_a_failing_job_does_not_end_the_runner(caplog: pytest.LogCaptureFixture) -> None:
    runner, done = JobRunner(), threading.Event()

    def fail(stop: threading.Event) -> None:
        raise RuntimeError("no")

    runner.submit("bad", fail)
    runner.submit("good", lambda stop: done.set())
    assert done.wait(WAIT_S)
    runner.close()
    assert "bad" in caplog.text


def test_closing_stops_the_running_job_and_drops_the_rest() -> None:
    runner, began, dropped = JobRunner(), threading.Event(), threading.Event()

    def run(stop: threading.Event) -> None:
        began.set()
        assert stop.wait(WAIT_S)

    runner.submit("running", run)
    assert began.wait(WAIT_S)
    runner.submit("queued", lambda stop: dropped.set())
    runner.close()
    assert not dropped.is_set()
    assert runner.pending == ()


def test_a_job_that_another_process_has_waits_and_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cambium.serve.jobs.RETRY_S", 0.01)
    elsewhere, held, done = {"theirs"}, list[str](), list[str]()
    tried, ended = threading.Event(), threading.Event()

    @contextmanager
    def hold(name: str) -> Iterator[bool]:
        tried.set()
        held.append(name)
        yield name not in elsewhere

    runner = JobRunner(hold)
    runner.submit("theirs", lambda stop: (done.append("theirs"), ended.set()))
    assert tried.wait(WAIT_S)
    assert "theirs" in runner.pending
    runner.submit("mine", lambda stop: done.append("mine"))
    elsewhere.clear()
    assert ended.wait(WAIT_S)
    runner.close()
    assert sorted(done) == ["mine", "theirs"] and held.count("theirs") > 1


def test_work_on_a_file_is_everybodys_own(tmp_path: Path) -> None:
    with State.open(tmp_path) as state, claims_on(state)("p") as mine, claims_on(state)("p") as too:
        assert mine and too


def test_work_on_a_shared_state_is_one_processs(tmp_path: Path) -> None:
    with State.open(tmp_path, url=fresh_database()) as one, State.open(tmp_path) as two:
        with claims_on(one)("p") as mine, claims_on(two)("p") as theirs:
            assert (mine, theirs) == (True, False)
        with claims_on(two)("p") as theirs:
            assert theirs
