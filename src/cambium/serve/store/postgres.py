"""PostgreSQL with the rules that SQLite gives by itself: one writer at a time, views that stand.

The driver, `psycopg`, comes with the extra `postgres` and is imported when such a state is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from cambium.core.errors import ConfigError
from cambium.serve.store.writing import MAX_CONNECTIONS, is_for_writing

# The key of the advisory lock in the state's database: who writes, of all processes.
WRITER_LOCK = 0x63616D6269756D00
# And who opens it: what a first start does, from the tables to the folder's file, takes many steps.
OPENER_LOCK = WRITER_LOCK + 1
OPENER_WAITS_S = 60
_CONNECTING = {
    "options": "-c synchronous_commit=on -c lock_timeout=5s -c client_encoding=utf8",
    "connect_timeout": 5,
    # A machine that is gone says nothing: who waits for it finds out in seconds.
    "keepalives_idle": 2,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 6000,
}


def open_postgres(url: URL) -> Engine:
    """Returns an engine whose every commit is on disk when it returns.

    Raises:
        ConfigError: the driver is missing; on first use, where the database does not sync.
    """
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            hide_parameters=True,
            pool_size=4,
            max_overflow=MAX_CONNECTIONS - 4,
            pool_pre_ping=True,
            connect_args=_CONNECTING,
        )
    except ImportError as error:
        raise ConfigError(
            "the driver of PostgreSQL is missing", mend="pip install 'cambium[postgres]'"
        ) from error
    event.listen(engine, "begin", _begin)
    return engine


@contextmanager
def alone_at_opening(engine: Engine) -> Iterator[None]:
    """Lets processes open the state one after another; the next one sees all that this one did."""
    with engine.connect() as connection:
        connection.detach()  # it ends here, whatever becomes of the engine meanwhile
        transaction = connection.begin()
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{OPENER_WAITS_S}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({OPENER_LOCK})")
        try:
            yield
        finally:
            with suppress(SQLAlchemyError):  # a database that is gone holds no lock
                transaction.rollback()


def check_durable(connection: Connection) -> None:
    """Refuses a database whose commits can be lost.

    Raises:
        ConfigError: what it commits is not on disk then.
    """
    for setting in ("fsync", "full_page_writes"):
        if connection.exec_driver_sql(f"SHOW {setting}").scalar() != "on":
            raise ConfigError(f"the database runs with {setting} off, so commits can be lost",
                              mend=f"set {setting} = on")  # fmt: skip


def _begin(connection: Connection) -> None:
    if connection.get_isolation_level() == "AUTOCOMMIT":
        return
    if is_for_writing(connection):
        # Given back with the transaction: whoever waits here then reads what was committed.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
