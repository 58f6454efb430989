"""What PostgreSQL does differently, and how a state gets there."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, inspect, make_url
from tests.postgres import fresh_database

from cambium.core.errors import ConfigError, DataError
from cambium.serve.adapter_states import AdapterState
from cambium.serve.errors import StateLocked, StateUnreachable
from cambium.serve.store.failures import known_errors
from cambium.serve.store.folder_lock import FolderLock
from cambium.serve.store.moving import URL_FILE, remember
from cambium.serve.store.postgres import WRITER_LOCK
from cambium.serve.store.records import AdapterRecord, ExampleRecord, KeyRow
from cambium.serve.store.schema import Table
from cambium.serve.store.state import State


def key(key_id: str, **changes: str) -> KeyRow:
    fields = {"name": "ann", "role": "approver", "public": key_id, **changes}
    return KeyRow(key_id=key_id, enrolled_at=2**40, **fields)


def test_migrations_make_exactly_the_tables(tmp_path: Path) -> None:
    with (
        State.open(tmp_path, url=fresh_database()) as state,
        state._connection_for_reading() as connection,
    ):
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Table.metadata) == []
        found = inspect(connection)
        checks = [c["name"] for c in found.get_check_constraints("examples")]
        assert checks == ["ck_examples_consented"]


def test_an_empty_database_takes_over_what_the_file_holds(tmp_path: Path) -> None:
    adapter = AdapterRecord(
        name="a", digest="sha256:0", state=AdapterState.EPHEMERAL, tenant="default", domain=None,
        scope="text", config_json="{}", parent_revision=1, created_at=2**40, expires_at=None,
        weights_blob=None,
    )  # fmt: skip
    with State.open(tmp_path) as state:
        blob = state.blobs.put(b"text")
        example = ExampleRecord(adapter="a", digest="sha256:1", blob=blob, kind="text", source=None,
                                consent="yes", at=1)  # fmt: skip
        with state.transaction() as tx:
            tx.put_key(key("k-1"))
            tx.put_adapter(adapter)
            tx.add_example(example)
            tx.audit("first", body={"n": 1}, at=1)
    url = fresh_database()
    with State.open(tmp_path, url=url) as state, state.transaction() as tx:
        assert tx.list_keys() == [key("k-1")]
        assert tx.get_adapter("a") == adapter
        # What the database numbers itself goes on where the file stopped.
        other = ExampleRecord(adapter="a", digest="sha256:2", blob=blob, kind="text", source=None,
                              consent="yes", at=2)  # fmt: skip
        assert tx.add_example(other)
        assert len({e.id for e in tx.list_examples("a")}) == 2
        assert tx.audit("second", body={}, at=2).seq == 2
    # The folder belongs there from now on, also for whoever does not name it.
    with State.open(tmp_path) as state, state.read() as view:
        assert view.audit_size() == 2
    with State.open(tmp_path, url=url) as state, state.read() as view:
        assert view.audit_size() == 2
    kept = tmp_path / URL_FILE
    assert make_url(kept.read_text().strip()) == make_url(url)
    assert kept.stat().st_mode & 0o077 == 0


def test_writers_wait_for_each_other_and_lose_nothing(tmp_path: Path) -> None:
    with State.open(tmp_path, url=fresh_database()) as state:

        def write(name: str) -> None:
            for n in range(10):
                with state.transaction() as tx:
                    tx.audit(name, body={"n": n}, at=n)

        threads = [threading.Thread(target=write, args=(f"t{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with state.read() as view:
            entries = view.audit_entries()
        assert [e.seq for e in entries] == list(range(1, 41))


def test_a_writer_that_never_ends_is_told_of(tmp_path: Path) -> None:
    url = fresh_database()
    with State.open(tmp_path, url=url) as state, psycopg.connect(url) as other:
        other.execute(f"SELECT pg_advisory_lock({WRITER_LOCK})")  # pyright: ignore[reportArgumentType]
        with pytest.raises(StateLocked), state.transaction() as tx:
            tx.set_meta("a", value="b")


def test_a_view_stands_while_others_write(tmp_path: Path) -> None:
    with State.open(tmp_path, url=fresh_database()) as state, state.read() as view:
        assert view.get_meta("a") is None
        with state.transaction() as tx:
            tx.set_meta("a", value="b")
        assert view.get_meta("a") is None


def test_a_row_that_contradicts_another_is_the_callers_mistake(tmp_path: Path) -> None:
    with State.open(tmp_path, url=fresh_database()) as state:
        with state.transaction() as tx:
            tx.put_key(key("k-1"))
        for wrong in (key("k-2", public="k-1"), key("k-3", name="a\0b")):
            with pytest.raises(DataError), state.transaction() as tx:
                tx.put_key(wrong)
        with state.read() as view:
            assert view.list_keys() == [key("k-1")]


def test_a_database_that_does_not_sync_is_refused(tmp_path: Path) -> None:
    url = fresh_database()

    def set_to(value: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET full_page_writes = {value}")  # pyright: ignore[reportArgumentType]
            connection.execute("SELECT pg_reload_conf()")
        for _ in range(10_000):
            with psycopg.connect(url) as connection:
                if connection.execute("SHOW full_page_writes").fetchone() == (value,):
                    return
        raise AssertionError(value)

    set_to("off")
    try:
        with pytest.raises(ConfigError, match="full_page_writes"):
            State.open(tmp_path, url=url)
    finally:
        set_to("on")
    State.open(tmp_path, url=url).close()


@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1:1/none"])
def test_a_database_that_is_not_there_is_said_so(tmp_path: Path, url: str) -> None:
    with pytest.raises(StateUnreachable, match="cannot be reached") as refused:
        State.open(tmp_path, url=url)
    assert "\n" not in refused.value.one_line() and "refused" in refused.value.message
    assert not (tmp_path / URL_FILE).exists()


def test_connections_that_broke_are_replaced(tmp_path: Path) -> None:
    url = fresh_database()
    with State.open(tmp_path, url=url) as state:
        before = state.process
        with psycopg.connect(url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        with known_errors(), state.transaction() as tx:
            tx.set_meta("a", value="b")
        with state.read() as view:
            assert view.get_meta("a") == "b"
        assert state.process == before  # nobody had the time to take it for dead


def test_nothing_goes_on_in_a_file_that_was_taken_over(tmp_path: Path) -> None:
    with State.open(tmp_path) as state, state.transaction() as tx:
        tx.put_key(key("k-1"))
    url = fresh_database()
    State.open(tmp_path, url=url).close()
    assert not (tmp_path / "cambium.db").exists() and (tmp_path / "cambium.db.moved").is_file()
    with State.open(tmp_path) as state, state.read() as view:
        assert view.list_keys() == [key("k-1")]


def test_a_move_that_breaks_off_leaves_the_file_in_charge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with State.open(tmp_path) as state, state.transaction() as tx:
        tx.put_key(key("k-1"))
    url = fresh_database()

    def breaks(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("cambium.serve.store.state.remember", breaks)
        with pytest.raises(RuntimeError):
            State.open(tmp_path, url=url)
    with State.open(tmp_path) as state, state.transaction() as tx:
        tx.put_key(key("k-2"))
    with State.open(tmp_path, url=url) as state, state.read() as view:
        assert {row.key_id for row in view.list_keys()} == {"k-1", "k-2"}


def test_another_states_database_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    url = fresh_database()
    for name in ("a", "b"):
        with State.open(tmp_path / name) as state, state.transaction() as tx:
            tx.put_key(key(f"server-{name}", role="server"))
    State.open(tmp_path / "a", url=url).close()
    with pytest.raises(ConfigError, match="another state"):
        State.open(tmp_path / "b", url=url)
    with State.open(tmp_path / "b") as state, state.read() as view:
        assert [row.key_id for row in view.list_keys()] == ["server-b"]
    with State.open(tmp_path / "a") as state, state.read() as view:
        assert [row.key_id for row in view.list_keys()] == ["server-a"]


def test_states_that_no_server_has_had_yet_do_not_become_one(tmp_path: Path) -> None:
    url = fresh_database()
    for name in ("a", "b"):
        with State.open(tmp_path / name) as state, state.transaction() as tx:
            tx.audit("policy.signed", body={"policy": name}, at=1)
    State.open(tmp_path / "a", url=url).close()
    with pytest.raises(ConfigError, match="another state"):
        State.open(tmp_path / "b", url=url)
    assert (tmp_path / "b" / "cambium.db").is_file()


def test_who_opens_while_another_moves_the_file_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with State.open(tmp_path) as state, state.transaction() as tx:
        tx.put_key(key("k-1"))
    url, moving, go_on = fresh_database(), threading.Event(), threading.Event()

    def remember_late(folder: Path, where: URL) -> None:
        moving.set()
        assert go_on.wait(60)
        remember(folder, where)

    monkeypatch.setattr("cambium.serve.store.state.remember", remember_late)
    with (
        psycopg.connect(url, autocommit=True) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        first = threads.submit(State.open, tmp_path, url=url)
        assert moving.wait(60)
        second = threads.submit(State.open, tmp_path, url=url)
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not second.done() and other.execute(waiting).fetchone() is None:
            pass
        go_on.set()
        with first.result() as one, second.result() as two:
            for state in (one, two):
                with state.read() as view:
                    assert view.list_keys() == [key("k-1")]


def test_who_chose_the_file_before_it_moved_does_not_begin_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(fresh_database())

    class LateLock(FolderLock):
        def __init__(self, folder: Path, *, shared: bool = False) -> None:
            remember(folder, url)
            super().__init__(folder, shared=shared)

    with monkeypatch.context() as patch:
        patch.setattr("cambium.serve.store.state.FolderLock", LateLock)
        with pytest.raises(StateLocked, match="moved"):
            State.open(tmp_path)
    assert not (tmp_path / "cambium.db").exists()
    State.open(tmp_path).close()  # and the lock was given back
