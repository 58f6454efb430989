"""Which database a state folder belongs to, and how a state moves from its file to another."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, Connection, func, insert, select

from cambium.core.errors import ConfigError
from cambium.serve.store.database import database_url, open_engine, require_current_schema
from cambium.serve.store.durable import write_durably
from cambium.serve.store.schema import Table

DATABASE_FILE = "cambium.db"
URL_FILE = "database.url"
MOVED = ".moved"
# Rows that are numbered by the database, which has to go on where the old one stopped.
_NUMBERED = ("learn_steps", "examples")


def chosen_database(folder: Path, text: str | None) -> URL:
    """Returns the database of a state: the one asked for, the one it moved to, or its own file.

    Raises:
        ConfigError: the URL cannot be used.
    """
    kept = folder / URL_FILE
    if text is None and kept.is_file():
        text = kept.read_text(encoding="utf-8").strip()
    return database_url(text, default=folder / DATABASE_FILE)


def remember(folder: Path, url: URL) -> None:
    """Notes where the state lies, for its owner alone: the URL may hold a password."""
    url = url.set(drivername=url.get_backend_name())
    kept, text = folder / URL_FILE, url.render_as_string(hide_password=False) + "\n"
    if kept.is_file() and kept.read_text(encoding="utf-8") == text:
        return
    write_durably(kept, text.encode())


def move(folder: Path, target: Connection, *, fresh: bool) -> None:
    """Copies what the folder's own file holds into an empty database, in its transaction.

    Raises:
        ConfigError: the file is of another version of the program, or the database is another
            state's.
    """
    if not (folder / DATABASE_FILE).is_file():
        return
    engine = open_engine(database_url(None, default=folder / DATABASE_FILE))
    try:
        with engine.connect() as source, source.begin():
            try:
                require_current_schema(source)
            except ConfigError as error:
                mend = "open it once without --db, which brings it up to date"
                raise ConfigError(f"{folder / DATABASE_FILE}: {error.message}", mend=mend) from None
            if fresh:
                _copy(source, target)
            elif _servers(source) != _servers(target) or not _log(source) <= _log(target):
                raise ConfigError("that database holds another state than this folder",
                                  mend="name an empty one, or that folder")  # fmt: skip
    finally:
        engine.dispose()


def put_away(folder: Path) -> None:
    """Renames the file that a database took over, so that nothing goes on in it."""
    for suffix in ("-wal", "-shm", ""):
        path = folder / f"{DATABASE_FILE}{suffix}"
        if path.exists():
            path.rename(folder / f"{DATABASE_FILE}{MOVED}{suffix}")


def _servers(connection: Connection) -> set[str]:
    keys = Table.metadata.tables["keys"].c
    return set(connection.execute(select(keys.key_id).where(keys.role == "server")).scalars())


def _log(connection: Connection) -> set[tuple[int, str]]:
    """Returns every lasting act: a state that no server has had yet differs in these alone."""
    entries = Table.metadata.tables["audit"].c
    return {(seq, leaf) for seq, leaf in connection.execute(select(entries.seq, entries.hash))}


def _copy(source: Connection, target: Connection) -> None:
    for table in Table.metadata.sorted_tables:
        rows = [dict(row) for row in source.execute(select(table)).mappings()]
        if rows:
            target.execute(insert(table), rows)
    if target.dialect.name == "postgresql":
        for name in _NUMBERED:
            column = Table.metadata.tables[name].c.id
            last = target.execute(select(func.max(column))).scalar()
            if last is not None:
                sequence = func.pg_get_serial_sequence(name, "id")
                target.execute(select(func.setval(sequence, last)))
