"""Opening, locking, transactions, threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from cambium.core.canonical import digest_json
from cambium.core.errors import CambiumError, ConfigError
from cambium.core.nouns import ProposalState
from cambium.serve.errors import StateCorrupt, StateLocked
from cambium.serve.store.records import ProposalRow, RevisionRow, TraceRow
from cambium.serve.store.state import State
from cambium.serve.store.writing import MAX_CONNECTIONS

HOLDER = """
import sys
from pathlib import Path
from cambium.serve.store.state import State
state = State.open(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def trace(name: str) -> TraceRow:
    return TraceRow(request_id=name, at=1, record={"text": "x" * 200})


def test_what_was_written_is_there_after_reopening(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    with State.open(folder) as state:
        digest = state.blobs.put(b"weights")
        with state.transaction() as tx:
            tx.put_trace(trace("a"))
    with State.open(folder) as state, state.read() as view:
        assert view.get_trace("a") == trace("a")
        assert state.blobs.get(digest) == b"weights"
    assert folder.stat().st_mode & 0o077 == 0


def test_a_second_opening_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    with State.open(tmp_path), pytest.raises(StateLocked, match=f"process {os.getpid()}"):
        State.open(tmp_path)
    State.open(tmp_path).close()


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(StateLocked, match=f"process {holder.pid}"):
            State.open(tmp_path)
        with State.open(tmp_path, exclusive=False) as watching, watching.read() as view:
            assert view.list_adapters() == []
        holder.send_signal(signal.SIGKILL)
    State.open(tmp_path).close()


def test_an_open_for_reading_cannot_write_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no state"):
        State.open(tmp_path / "none", exclusive=False)
    assert not (tmp_path / "none").exists()
    with State.open(tmp_path) as state, State.open(tmp_path, exclusive=False) as watching:
        with state.transaction() as tx:
            tx.put_trace(trace("a"))
        with watching.read() as view:
            assert view.get_trace("a") == trace("a")
        with pytest.raises(StateLocked, match="reading only"), watching.transaction():
            pass


def test_a_read_refuses_to_write(state: State) -> None:
    with pytest.raises(CambiumError, match=r"read-?only"), state.read() as view:
        view.put_trace(trace("a"))
    with state.transaction() as tx:  # and the connection writes again afterwards
        tx.put_trace(trace("a"))


def test_a_read_sees_one_moment(state: State) -> None:
    with state.read() as view:
        assert view.state_version() == 0
        with state.transaction() as tx:
            tx.bump_state_version()
        assert view.state_version() == 0
    with state.read() as view:
        assert view.state_version() == 1


def test_an_error_leaves_nothing(state: State) -> None:
    with pytest.raises(KeyError), state.transaction() as tx:
        tx.put_trace(trace("a"))
        tx.bump_state_version()
        raise KeyError
    with state.transaction() as tx:
        assert tx.state_version() == 0
        with pytest.raises(CambiumError):
            tx.get_trace("a")


def test_a_transaction_inside_another_is_refused_not_hung(state: State) -> None:
    with state.transaction() as outer:
        outer.put_trace(trace("a"))
        with pytest.raises(CambiumError, match="already"), state.transaction():
            pass
    with state.read() as view:
        assert view.get_trace("a") == trace("a")


def test_a_closed_state_says_so(tmp_path: Path) -> None:
    state = State.open(tmp_path)
    state.close()
    state.close()
    with pytest.raises(CambiumError, match="closed"), state.transaction():
        pass
    with pytest.raises(CambiumError, match="closed"), state.read():
        pass


def test_a_file_that_is_no_database_is_refused_and_unlocked(tmp_path: Path) -> None:
    (tmp_path / "cambium.db").write_bytes(b"not a database, certainly not" * 200)
    for _ in range(2):
        with pytest.raises(StateCorrupt, match="damaged"):
            State.open(tmp_path)


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(ConfigError, match="cannot hold"):
        State.open(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot hold"):
        State.open(tmp_path / "file" / "state")


def test_a_database_elsewhere(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}"
    with State.open(tmp_path / "state", url=url) as state, state.transaction() as tx:
        tx.bump_state_version()
    assert (tmp_path / "other.db").is_file()
    assert not (tmp_path / "state" / "cambium.db").exists()


def test_opening_clears_what_interrupted_writes_left(tmp_path: Path) -> None:
    with State.open(tmp_path) as state:
        name = state.blobs.put(b"x").removeprefix("sha256:")
    partial = tmp_path / "blobs" / "sha256" / name[:2] / ".partial-00"
    partial.write_bytes(b"ha")
    State.open(tmp_path).close()
    assert not partial.exists()


def test_a_sweep_keeps_every_blob_that_a_row_names(state: State) -> None:
    named = {place: state.blobs.put(place.encode()) for place in ("record", "manifest", "trace")}
    with state.transaction() as tx:
        tx.put_proposal(
            ProposalRow(id="p", state=ProposalState.CHECKING, created_at=1, updated_at=1,
                        record={"looks": [{"router": named["record"]}]})
        )  # fmt: skip
        manifest: dict[str, object] = {"bank": {"law": {"router": named["manifest"]}}}
        tx.add_revision(RevisionRow(number=1, digest=digest_json(manifest), manifest=manifest,
                                    signature={}, at=1))  # fmt: skip
        tx.put_trace(TraceRow(request_id="r", at=1, record={"seen": named["trace"]}))
    assert state.sweep_blobs(grace_s=0) == 1
    assert set(state.blobs.digests()) == {named["record"], named["manifest"]}


def test_threads_lose_no_write_and_break_no_chain(state: State) -> None:
    num_threads, num_each = 8, 12
    start = threading.Barrier(num_threads)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            start.wait()
            for n in range(num_each):
                with state.transaction() as tx:
                    tx.put_trace(trace(f"{number}-{n}"))
                    tx.audit("answer", body={"version": tx.bump_state_version()}, at=n)
                with state.read() as view:
                    assert view.get_trace(f"{number}-{n}")
        except BaseException as error:  # noqa: BLE001  (whatever it is, the test must see it)
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with state.read() as view:
        entries = view.audit_entries()
        assert view.state_version() == num_threads * num_each
    assert [e.body["version"] for e in entries] == list(range(1, num_threads * num_each + 1))
    assert [e.seq for e in entries] == list(range(1, len(entries) + 1))


def test_readers_beyond_the_pool_are_told_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with State.open(tmp_path / "state") as state, ExitStack() as open_views:
        monkeypatch.setattr(state._engine.pool, "_timeout", 0.01)
        for _ in range(MAX_CONNECTIONS):
            open_views.enter_context(state.read())
        with pytest.raises(StateLocked, match="in use"), state.read():
            pass
