from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cambium.models.fair_lock import FairLock


def queue_up(lock: FairLock, body: Callable[[], None]) -> threading.Thread:
    """Starts a thread that wants the lock, and returns once it stands in line."""
    standing = len(lock._waiting)

    def run() -> None:
        with lock:
            body()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while len(lock._waiting) == standing:
        threading.Event().wait(0.001)
    return thread


def test_the_lock_is_handed_over_in_the_order_of_asking() -> None:
    lock, order = FairLock(), []
    with lock:
        threads = [queue_up(lock, lambda i=i: order.append(i)) for i in range(8)]
    for thread in threads:
        thread.join(10)
    assert order == list(range(8))


def test_whoever_releases_and_asks_again_goes_to_the_end() -> None:
    lock, order = FairLock(), []
    with lock:
        other = queue_up(lock, lambda: order.append("other"))
    with lock:
        order.append("again")
    other.join(10)
    assert order == ["other", "again"]


def test_only_one_holds_it() -> None:
    lock, inside, most = FairLock(), [0], [0]

    def work() -> None:
        for _ in range(200):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == [1] and inside == [0]


def test_an_exception_inside_frees_it() -> None:
    lock = FairLock()
    with pytest.raises(ValueError, match="inside"), lock:
        raise ValueError("inside")
    with lock:
        pass


@pytest.mark.parametrize("already_given", [False, True])
def test_an_interrupted_wait_leaves_no_gap(
    monkeypatch: pytest.MonkeyPatch, already_given: bool
) -> None:
    lock = FairLock()
    lock.__enter__()

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if already_given:
                lock.__exit__(None, None, None)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cambium.models.fair_lock.threading.Event", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            lock.__enter__()
    if not already_given:
        lock.__exit__(None, None, None)
    taken = threading.Thread(target=lambda: lock.__enter__(), daemon=True)
    taken.start()
    taken.join(10)
    assert not taken.is_alive()
