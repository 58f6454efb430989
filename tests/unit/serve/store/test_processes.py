"""Several processes on one PostgreSQL state: who counts, who is taken for dead, who holds what."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import psycopg
import pytest
from tests.postgres import fresh_database

from cambium.serve.errors import StateLocked
from cambium.serve.store.folder_lock import FolderLock, Holder, lock_holders
from cambium.serve.store.membership import LEASE_S, Membership
from cambium.serve.store.state import State


def silence(url: str, process: str | None, *, for_s: float = 2 * LEASE_S) -> None:
    """Makes a process look as if it had not been heard of for so long."""
    with psycopg.connect(url, autocommit=True) as other:
        other.execute(
            "UPDATE processes SET seen_at = seen_at - %s WHERE id = %s", (for_s * 1000, process)
        )


def beat(state: State) -> None:
    membership = state._membership
    assert membership is not None
    membership.beat()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process renews its row by itself: the test says when."""
    monkeypatch.setattr(Membership, "_run", lambda self: None)


def test_two_processes_write_one_log(tmp_path: Path) -> None:
    url = fresh_database()
    with State.open(tmp_path, url=url) as one, State.open(tmp_path) as two:
        assert one.is_shared and one.process != two.process

        def write(state: State, name: str) -> None:
            for n in range(20):
                with state.transaction() as tx:
                    tx.audit(name, body={"version": tx.bump_state_version()}, at=n)

        threads = [
            threading.Thread(target=write, args=(s, f"{i}")) for i, s in enumerate((one, two, one))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with two.read() as view:
            entries = view.audit_entries()
            assert view.count_processes() == 2
        assert [e.seq for e in entries] == [e.body["version"] for e in entries] == [*range(1, 61)]
    with State.open(tmp_path) as again, again.read() as view:
        assert view.count_processes() == 1  # who closes leaves


def test_work_is_one_processs_until_it_is_given_back_or_that_process_is_gone(
    tmp_path: Path, quiet: None
) -> None:
    url = fresh_database()
    with State.open(tmp_path, url=url, address="http://one") as one, State.open(tmp_path) as two:
        assert one.process and two.process
        with one.transaction() as tx:
            assert tx.claim("p-1", process=one.process)
            assert tx.claim("p-2", process=one.process)
        with two.transaction() as tx:
            assert not tx.claim("p-1", process=two.process)
            tx.release("p-1", process=two.process)  # not its own to give
            assert not tx.claim("p-1", process=two.process)
            assert tx.find_process(one.process) == "http://one"
        with one.transaction() as tx:
            assert tx.claim("p-1", process=one.process)
            tx.release("p-1", process=one.process)
        with two.transaction() as tx:
            assert tx.claim("p-1", process=two.process)
        silence(url, one.process)
        beat(two)
        with two.transaction() as tx:
            assert tx.claim("p-2", process=two.process)
            assert tx.find_process(one.process) is None
        assert two.num_taken_over == 1


def test_who_was_taken_for_dead_writes_nothing_until_it_has_joined_anew(
    tmp_path: Path, quiet: None
) -> None:
    url = fresh_database()
    with State.open(tmp_path, url=url) as one, State.open(tmp_path) as two:
        before = one.process
        beat(two)  # a process that is heard of is left alone
        with one.transaction() as tx:
            tx.set_meta("a", value="one")
        silence(url, before)
        beat(two)
        with pytest.raises(StateLocked, match="for dead"), one.transaction() as tx:
            tx.set_meta("a", value="too late")
        with two.transaction() as tx:
            assert tx.get_meta("a") == "one"
        beat(one)
        assert one.process != before and not one.owns(before)
        with one.transaction() as tx:
            tx.set_meta("a", value="again")


def test_without_word_from_the_database_a_process_does_not_count(
    tmp_path: Path, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with State.open(tmp_path, url=fresh_database()) as state:
        assert state.is_current and state.owns(state.process)
        monkeypatch.setattr("cambium.serve.store.membership.CURRENT_S", 0.0)
        assert not state.is_current and not state.owns(state.process)
        monkeypatch.undo()
        beat(state)
        assert state.is_current


def test_a_file_is_still_one_processs(tmp_path: Path) -> None:
    with State.open(tmp_path) as state:
        assert (state.is_shared, state.process, state.is_current) == (False, None, True)
        assert state.owns(None) and state.owns("whoever")
        with pytest.raises(StateLocked, match=f"process {os.getpid()}"):
            State.open(tmp_path)
        with pytest.raises(StateLocked):  # nor can it move under its feet
            State.open(tmp_path, url=fresh_database())


def test_holders_are_told_apart(tmp_path: Path) -> None:
    assert lock_holders(tmp_path) == []
    me = os.getpid()
    alone = FolderLock(tmp_path)
    assert lock_holders(tmp_path) == [Holder(pid=me, obeyed=False)]
    with pytest.raises(StateLocked, match=f"process {me}"):
        FolderLock(tmp_path, shared=True)
    alone.share()
    other = FolderLock(tmp_path, shared=True)
    other.note(obeyed=True)
    assert lock_holders(tmp_path) == [Holder(pid=me, obeyed=False), Holder(pid=me, obeyed=True)]
    with pytest.raises(StateLocked, match=f"process {me}, {me}"):
        FolderLock(tmp_path)
    alone.release()
    assert lock_holders(tmp_path) == [Holder(pid=me, obeyed=True)]
    other.release()
    assert lock_holders(tmp_path) == []
