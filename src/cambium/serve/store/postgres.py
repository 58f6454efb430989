"""PostgreSQL with the rules that SQLite gives by itself: one writer at a time, views that stand.

The driver, `psycopg`, comes with the extra `postgres` and is imported when such a state is opened.
"""

from __future__ import annotations

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from cambium.core.errors import ConfigError
from cambium.serve.errors import StateLocked
from cambium.serve.store.writing import MAX_CONNECTIONS, is_for_writing

# Keys of advisory locks in the state's database: who writes, and which server it belongs to.
WRITER_LOCK = 0x63616D6269756D00
OWNER_LOCK = 0x63616D6269756D01
CLAIM_TIMEOUT_S = 2
_LOCK_TIMEOUT = "55P03"
_SETTINGS = "-c synchronous_commit=on -c lock_timeout=5s -c client_encoding=utf8"
_CONNECT_TIMEOUT_S = 5


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
            connect_args={"options": _SETTINGS, "connect_timeout": _CONNECT_TIMEOUT_S},
        )
    except ImportError as error:
        raise ConfigError(
            "the driver of PostgreSQL is missing", mend="pip install 'cambium[postgres]'"
        ) from error
    event.listen(engine, "begin", _begin)
    return engine


def claim(engine: Engine) -> Connection:
    """Takes the database for one server, as long as the connection that comes back is open.

    Raises:
        StateLocked: another server has it.
        ConfigError: what it commits is not on disk then.
    """
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        for setting in ("fsync", "full_page_writes"):
            if connection.exec_driver_sql(f"SHOW {setting}").scalar() != "on":
                raise ConfigError(f"the database runs with {setting} off, so commits can be lost",
                                  mend=f"set {setting} = on")  # fmt: skip
        # The database may notice a moment late that the server before was killed.
        connection.exec_driver_sql(f"SET lock_timeout = '{CLAIM_TIMEOUT_S}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({OWNER_LOCK})")
    except OperationalError as error:
        connection.close()
        if getattr(error.orig, "sqlstate", None) != _LOCK_TIMEOUT:
            raise
        raise StateLocked("another server holds the database",
                          mend="talk to that server, or stop it first") from error  # fmt: skip
    except BaseException:
        connection.close()
        raise
    return connection


def _begin(connection: Connection) -> None:
    if connection.get_isolation_level() == "AUTOCOMMIT":
        return
    if is_for_writing(connection):
        # Given back with the transaction: whoever waits here then reads what was committed.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
