from __future__ import annotations

import threading

import pytest

from cambium.serve.jobs import JobRunner

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
