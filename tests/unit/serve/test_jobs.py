from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
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

    def first() -> None:
        began.set()
        assert may_go.wait(WAIT_S)
        done.append("first")

    runner.submit("first", first)
    assert began.wait(WAIT_S)
    runner.submit("second", lambda: done.append("old"))
    runner.submit("second", lambda: done.append("new"))
    runner.submit("first", lambda: done.append("first again"))
    runner.submit("last", lambda: ended.set())
    assert runner.pending == ("first", "second", "first", "last")
    may_go.set()
    assert ended.wait(WAIT_S)
    runner.close()
    assert done == ["first", "new", "first again"]


def test_a_failing_job_does_not_end_the_runner(caplog: pytest.LogCaptureFixture) -> None:
    runner, done = JobRunner(), threading.Event()

    def fail() -> None:
        raise RuntimeError("no")

    runner.submit("bad", fail)
    runner.submit("good", lambda: done.set())
    assert done.wait(WAIT_S)
    runner.close()
    assert "bad" in caplog.text


@pytest.mark.parametrize("end", [JobRunner.close, JobRunner.halt])
def test_the_running_job_is_broken_off_and_the_rest_dropped(
    end: Callable[[JobRunner], None], caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Callable[[], None]] = []
    began, is_ending, dropped = threading.Event(), threading.Event(), threading.Event()

    @contextmanager
    def breakable(check: Callable[[], None]) -> Iterator[None]:
        asked.append(check)
        yield

    runner = JobRunner(breakable=breakable)

    def run() -> None:
        asked[0]()  # nobody has said anything yet
        began.set()
        assert is_ending.wait(WAIT_S)
        while True:
            asked[0]()

    runner.submit("running", run)
    assert began.wait(WAIT_S)
    runner.submit("queued", dropped.set)
    is_ending.set()
    end(runner)
    assert runner.wait_idle(WAIT_S)
    runner.close()
    assert not dropped.is_set() and "failed" not in caplog.text


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
    runner.submit("theirs", lambda: (done.append("theirs"), ended.set()))
    assert tried.wait(WAIT_S)
    assert "theirs" in runner.pending
    runner.submit("mine", lambda: done.append("mine"))
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
