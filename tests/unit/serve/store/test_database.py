"""Durable settings, and a schema that migrations and tables agree on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect

from cambium.core.canonical import canonical_json
from cambium.core.errors import ConfigError
from cambium.serve.store.database import database_url, migrate, open_engine
from cambium.serve.store.schema import Table
from cambium.serve.store.state import State
from cambium.serve.store.writing import for_writing
from cambium.trust.audit import grow
from cambium.trust.merkle import GrowingTree, tree_root


def engine_at(path: Path) -> Engine:
    return open_engine(database_url(None, default=path))


def test_migrations_make_exactly_the_tables(tmp_path: Path) -> None:
    engine = engine_at(tmp_path / "a.db")
    with engine.connect() as connection, for_writing(connection).begin():
        migrate(connection)
        migrate(connection)  # nothing left to do
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Table.metadata) == []
        found = inspect(connection)
        checks = [c["name"] for c in found.get_check_constraints("examples")]
        assert checks == ["ck_examples_consented"]
        assert set(found.get_table_names()) == {*Table.metadata.tables, "alembic_version"}
    engine.dispose()


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    engine = engine_at(tmp_path / "a.db")
    with engine.connect() as connection, for_writing(connection).begin():
        migrate(connection)
        connection.exec_driver_sql("DROP TABLE traces")
        connection.exec_driver_sql("ALTER TABLE keys DROP COLUMN role")
        context = MigrationContext.configure(connection)
        kinds = {change[0] for change in compare_metadata(context, Table.metadata)}
    assert kinds == {"add_table", "add_column", "add_index"}
    engine.dispose()


def test_an_interrupted_migration_leaves_nothing(tmp_path: Path) -> None:
    engine = engine_at(tmp_path / "a.db")
    with pytest.raises(RuntimeError), engine.connect() as connection:  # noqa: SIM117
        with for_writing(connection).begin():
            migrate(connection)
            raise RuntimeError
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == []
    engine.dispose()


def test_a_log_that_was_a_chain_becomes_a_tree(tmp_path: Path) -> None:
    engine = engine_at(tmp_path / "cambium.db")
    bodies = [{"n": n, "é": [1.5, None, "\\"]} for n in range(11)]
    with engine.connect() as connection, for_writing(connection).begin():
        migrate(connection, to="0003")
        for n, body in enumerate(bodies):
            row = (n + 1, n, 'a "kind"', canonical_json(body).decode(), f"before {n}", f"hash {n}")
            connection.exec_driver_sql("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?)", row)
        connection.exec_driver_sql("INSERT INTO heads VALUES (11, 'hash 10', 'k', 's')")
    engine.dispose()
    with State.open(tmp_path) as state, state.transaction() as tx:
        entries = tx.audit_entries()
        assert [e.body for e in entries] == bodies
        tree = GrowingTree()
        for entry in entries:
            grow(tree, entry)
        assert tree_root(11, tx.audit_node) == tree.root()
        assert tx.latest_checkpoint() is None
        assert tx.audit("next", body={}, at=12).seq == 12


def test_a_state_of_a_later_version_is_refused(tmp_path: Path) -> None:
    State.open(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "cambium.db")
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    for exclusive in (True, False):
        with pytest.raises(ConfigError, match="9999"):
            State.open(tmp_path, exclusive=exclusive)


def test_every_connection_is_durable_and_checks_references(tmp_path: Path) -> None:
    engine = engine_at(tmp_path / "a.db")
    pragmas = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            for name, value in pragmas.items():
                assert connection.exec_driver_sql(f"PRAGMA {name}").scalar() == value
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "mysql://u:secret@h/db", "sqlite://", "sqlite:///:memory:",
     "sqlite:///file:x?mode=memory&uri=true"],
)  # fmt: skip
def test_only_a_file_or_postgresql_is_a_database(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        State.open(tmp_path / "state", url=url)
    assert "secret" not in refused.value.one_line()
    assert not (tmp_path / "state").exists()


def test_what_became_a_column_is_filled_from_what_was_written_before(tmp_path: Path) -> None:
    engine = engine_at(tmp_path / "cambium.db")
    with engine.connect() as connection, for_writing(connection).begin():
        migrate(connection, to="0005")
        for number, record in enumerate(('{"tenant": "acme"}', "{}"), 1):
            row = (f"req-{number}", number, record)
            connection.exec_driver_sql("INSERT INTO traces (request_id, at, record) "
                                       "VALUES (?, ?, ?)", row)  # fmt: skip
        logged = [("proposal.filed", '{"proposal":"p-1"}'), ("policy.signed", '{"policy":"x"}')]
        for seq, (kind, body) in enumerate(logged, 1):
            connection.exec_driver_sql("INSERT INTO audit (seq, at, kind, body, hash) "
                                       "VALUES (?, ?, ?, ?, ?)",
                                       (seq, seq, kind, body, f"hash {seq}"))  # fmt: skip
    engine.dispose()
    with State.open(tmp_path) as state, state.read() as tx:
        found = {row.request_id: row.tenant for row in tx.newest_traces(limit=9)}
        entries, total = tx.audit_of("p-1")
    assert found == {"req-1": "acme", "req-2": "default"}
    assert ([e.kind for e in entries], total) == (["proposal.filed"], 1)
