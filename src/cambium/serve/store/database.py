"""The SQLite engine, set for durability, and the migrations that bring its schema up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from cambium.core.errors import ConfigError

_WRITES = "cambium_writes"
_MIGRATIONS = Path(__file__).parent / "migrations"
_MAX_CONNECTIONS = 32
_PRAGMAS = ("busy_timeout = 5000", "synchronous = FULL", "foreign_keys = ON")


def database_url(text: str | None, *, default: Path) -> URL:
    """Returns the URL of a SQLite file: `text`, or the default path.

    Raises:
        ConfigError: `text` is not a URL, or names another database, or one in memory.
    """
    if text is None:
        return URL.create("sqlite", database=str(default))
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise ConfigError("the database is not a URL", mend="use sqlite:///PATH") from error
    in_memory = url.database in (None, "", ":memory:") or url.query
    if url.drivername not in ("sqlite", "sqlite+pysqlite") or in_memory:
        raise ConfigError(
            f"the database {url.render_as_string(hide_password=True)!r} is not a SQLite file",
            mend="use sqlite:///PATH",
        )
    return url


def open_engine(url: URL) -> Engine:
    """Returns an engine whose every commit is on disk when it returns.

    Raises:
        ConfigError: on first use, where the file system cannot do write-ahead logging.
    """
    engine = create_engine(url, pool_size=4, max_overflow=_MAX_CONNECTIONS - 4)
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def for_writing(connection: Connection) -> Connection:
    """Returns the connection, whose next transaction is the database's one writer."""
    return connection.execution_options(**{_WRITES: True})


def migrate(connection: Connection, *, to: str = "head") -> None:
    """Brings the schema up to date, or to a step on the way, in the connection's transaction.

    Raises:
        ConfigError: a later version of the program wrote the database.
    """
    config = _config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, to)
    except CommandError as error:
        raise ConfigError(
            f"the state was written by another version ({error})", mend="use that version or later"
        ) from error


def require_current_schema(connection: Connection) -> None:
    """Checks that nothing is left to migrate.

    Raises:
        ConfigError: the database has another schema than this program's.
    """
    found = MigrationContext.configure(connection).get_current_revision()
    wanted = ScriptDirectory.from_config(_config()).get_current_head()
    if found != wanted:
        raise ConfigError(
            f"the state has the schema {found}, and this program reads {wanted}",
            mend="use the server's version, or open the state without a server first",
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


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
    writes = connection.get_execution_options().get(_WRITES, False)
    # IMMEDIATE takes the write lock at once: a transaction never fails half-way for want of it.
    connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
