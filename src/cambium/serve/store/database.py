"""Which database holds the state, and the migrations that bring its schema up to date."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError

from cambium.core.errors import ConfigError
from cambium.serve.store.postgres import open_postgres
from cambium.serve.store.sqlite import open_sqlite

_MIGRATIONS = Path(__file__).parent / "migrations"
_SQLITE = ("sqlite", "sqlite+pysqlite")
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")


def database_url(text: str | None, *, default: Path) -> URL:
    """Returns the URL of a SQLite file or a PostgreSQL database: `text`, or the default path.

    Raises:
        ConfigError: `text` is not a URL, or names another database, or one in memory.
    """
    if text is None:
        return URL.create("sqlite", database=str(default))
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise ConfigError(
            "the database is not a URL", mend="use sqlite:///PATH or postgresql://…"
        ) from error
    in_memory = url.database in (None, "", ":memory:") or url.query
    if url.drivername in _POSTGRES:
        return url.set(drivername="postgresql")
    if url.drivername not in _SQLITE or in_memory:
        raise ConfigError(
            f"{url.render_as_string(hide_password=True)!r} is no SQLite file and no PostgreSQL",
            mend="use sqlite:///PATH or postgresql://…",
        )
    return url


def open_engine(url: URL) -> Engine:
    """Returns an engine whose every commit is on disk when it returns.

    Raises:
        ConfigError: the database's driver is missing; on first use, where it cannot be durable.
    """
    return open_sqlite(url) if url.get_backend_name() == "sqlite" else open_postgres(url)


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


def has_schema(connection: Connection) -> bool:
    """Returns whether any migration was ever made."""
    return MigrationContext.configure(connection).get_current_revision() is not None


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
