"""SQLite, set for durability, with one writer at a time."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

from cambium.core.errors import ConfigError
from cambium.serve.store.writing import MAX_CONNECTIONS, is_for_writing

_PRAGMAS = ("busy_timeout = 5000", "synchronous = FULL", "foreign_keys = ON")


def open_sqlite(url: URL) -> Engine:
    """Returns an engine whose every commit is on disk when it returns.

    Raises:
        ConfigError: on first use, where the file system cannot do write-ahead logging.
    """
    engine = create_engine(url, hide_parameters=True, pool_size=4, max_overflow=MAX_CONNECTIONS - 4)
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def _set_up(connection: Any, _record: object) -> None:
    # None: Python's driver begins nothing by itself, so that `_begin` alone decides.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    mode = cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    cursor.close()
    if mode != "wal":
        raise ConfigError(
            f"the database's journal mode is {mode!r}, not WAL", mend="use a local file system"
        )


def _begin(connection: Connection) -> None:
    writes = is_for_writing(connection)
    # IMMEDIATE takes the write lock at once: a transaction never fails half-way for want of it.
    connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
