from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from cambium.models.compute_thread import MAX_WAIT_S, ComputeThread

NEVER = 1e8  # on a clock that counts seconds


@pytest.fixture
def compute() -> Iterator[ComputeThread]:
    thread = ComputeThread(2)
    yield thread
    thread.close()


class Held:
    """A pass that is under way until `let_go`."""

    def __init__(self, compute: ComputeThread, *, is_answer: bool = False) -> None:
        self._free, started = threading.Event(), threading.Event()

        def work() -> None:
            started.set()
            self._free.wait(10)

        self.thread = in_thread(lambda: compute.run(work, is_answer=is_answer))
        started.wait(10)

    def let_go(self) -> None:
        self._free.set()
        self.thread.join(10)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def queue_up(
    compute: ComputeThread, work: Callable[[], object], *, is_answer: bool
) -> threading.Thread:
    """Starts a thread that asks for a pass, and returns once it stands in line."""
    line = compute._answers if is_answer else compute._others
    standing = len(line)
    thread = in_thread(lambda: compute.run(work, is_answer=is_answer))
    while len(line) == standing:
        threading.Event().wait(0.001)
    return thread


def test_everything_runs_on_one_thread_with_all_cores_and_others_have_one(
    compute: ComputeThread,
) -> None:
    assert torch.get_num_threads() == 1
    assert compute.run(torch.get_num_threads) == 2
    names = {compute.run(lambda: threading.current_thread().name) for _ in range(3)}
    assert names == {"compute"}
    found: list[int] = []
    in_thread(lambda: found.append(torch.get_num_threads())).join(10)
    assert found == [1]


def test_closing_gives_the_cores_back() -> None:
    compute = ComputeThread(2)
    compute.close()
    assert torch.get_num_threads() == 2
    with pytest.raises(RuntimeError, match="closed"):
        compute.run(lambda: 1)


def test_the_callers_modes_go_with_the_work(compute: ComputeThread) -> None:
    def modes() -> tuple[bool, bool]:
        return torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    assert compute.run(modes) == (False, True)
    with torch.no_grad():
        assert compute.run(modes) == (False, False)
    with torch.inference_mode():
        assert compute.run(modes) == (True, False)


def test_an_error_is_the_callers_and_the_thread_goes_on(compute: ComputeThread) -> None:
    with pytest.raises(ZeroDivisionError):
        compute.run(lambda: 1 / 0)
    assert compute.run(lambda: compute.run(lambda: "inside")) == "inside"


def test_others_come_in_the_order_of_asking(compute: ComputeThread) -> None:
    order: list[int] = []
    held = Held(compute)
    threads = [queue_up(compute, lambda i=i: order.append(i), is_answer=False) for i in range(6)]
    held.let_go()
    for thread in threads:
        thread.join(10)
    assert order == list(range(6))


def test_a_pass_leaves_time_to_answers_before_another(compute: ComputeThread) -> None:
    compute.expect_answers(True)
    order: list[str] = []
    held = Held(compute)
    held.let_go()
    compute._others_from = NEVER
    other = queue_up(compute, lambda: order.append("other"), is_answer=False)
    for _ in range(5):
        compute.run(lambda: order.append("answer"), is_answer=True)
    assert order == ["answer"] * 5
    compute._others_from = 0.0
    compute.run(lambda: order.append("answer"), is_answer=True)
    other.join(10)
    assert sorted(order[5:]) == ["answer", "other"]


def test_the_time_left_to_answers_is_over_without_any(compute: ComputeThread) -> None:
    compute.expect_answers(True)
    compute._leave_time(0.01)
    over = compute._others_from
    assert over > time.monotonic()
    assert compute.run(time.monotonic) >= over


def test_nobody_waits_for_long_after_a_long_pass(compute: ComputeThread) -> None:
    compute.expect_answers(True)
    compute._leave_time(3600.0)
    assert 0 < compute._others_from - time.monotonic() <= MAX_WAIT_S


def test_nothing_is_left_when_no_answer_is_under_way(compute: ComputeThread) -> None:
    compute.expect_answers(True)
    Held(compute).let_go()
    compute._others_from = NEVER
    other = queue_up(compute, lambda: None, is_answer=False)
    compute.expect_answers(False)
    other.join(10)
    assert not other.is_alive()
    Held(compute).let_go()
    assert compute._others_from == 0


def test_closing_runs_what_waits_whatever_is_owed() -> None:
    compute = ComputeThread(2)
    compute.expect_answers(True)
    done: list[bool] = []
    compute._others_from = NEVER
    other = queue_up(compute, lambda: done.append(True), is_answer=False)
    compute.close()
    other.join(10)
    assert done == [True]


def test_the_server_lets_every_thread_start_with_one_core() -> None:
    code = (
        "from cambium.cli.operate import _one_thread_each as one; import sys\n"
        "assert 'torch' not in sys.modules\n"
        "n = one()\n"
        "import torch\n"
        "print(n, torch.get_num_threads())"
    )
    command = [sys.executable, "-c", code]
    for given, expected in (("3", "3 1"), ("0", None), ("many", None)):
        environment = {"PATH": "", "OMP_NUM_THREADS": given}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        cores, own = done.stdout.split()
        assert own == "1" and int(cores) >= 1
        assert expected in (None, done.stdout.strip())
