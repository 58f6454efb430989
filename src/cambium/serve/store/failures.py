"""Turns what the disk and the database raise into the errors that callers know."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError as RefusedValue
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cambium.core.errors import CambiumError, ConfigError, DataError
from cambium.serve.errors import StateCorrupt, StateLocked, StateUnreachable, StorageFull

# EFBIG is how a limit on the size of files shows; to the caller it is a full disk too.
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# SQLite says SQLITE_FULL only for ENOSPC; a quota shows as a refused write.
_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})
_PRIMARY = 0xFF
RETRY_AFTER_S = 2


def storage_full() -> StorageFull:
    """Returns the error for a disk that took no more."""
    return StorageFull(
        "the disk refused a write; nothing was changed",
        mend="free space on the disk of the state folder and try again",
    )


@contextmanager
def known_errors() -> Iterator[None]:
    """Raises the project's errors in place of the database's and the disk's.

    Raises:
        StorageFull: the disk or its quota is full.
        StateLocked: another process held the database for longer than the busy timeout, or all
            connections are in use.
        StateCorrupt: the file is not a database, or a damaged one.
        DataError: a row that contradicts a key or a reference.
        ConfigError: the database cannot be opened.
        StateUnreachable: it is gone, or says nothing.
        CambiumError: anything else the database refuses.
    """
    try:
        yield
    except StatementError as error:
        raise _known(error) from error
    except PoolTimeout as error:
        raise StateLocked(
            "all connections to the database are in use", mend="try again later"
        ) from error
    except OSError as error:
        if error.errno in FULL_ERRNOS:
            raise storage_full() from error
        raise


@contextmanager
def told_why() -> Iterator[None]:
    """Says to whoever opens a state, in the driver's words, why its database cannot be reached."""
    try:
        yield
    except StateUnreachable as error:
        said = str(getattr(error.__cause__, "orig", "")).strip().split("\n")[0]
        raise StateUnreachable(f"the database cannot be reached ({said})",
                               mend="check --db and the database") from error  # fmt: skip


def _known(error: StatementError) -> CambiumError:
    cause = error.orig
    if isinstance(cause, CambiumError):  # a column type refused the value it was given
        return cause
    if isinstance(error, DBAPIError) and isinstance(cause, sqlite3.Error):
        return _from_sqlite(cause)
    if isinstance(error, RefusedValue):
        return DataError(f"the row holds what cannot be stored ({cause})", mend="send plain text")
    if isinstance(error, DBAPIError) and type(cause).__module__.startswith("psycopg"):
        return _from_postgres(cause)
    return CambiumError(f"the database refused a statement: {cause}")


def _from_sqlite(cause: sqlite3.Error) -> CambiumError:
    code = getattr(cause, "sqlite_errorcode", None) or 0
    primary = code & _PRIMARY
    if code in _FULL:
        return storage_full()
    if primary == sqlite3.SQLITE_BUSY:
        return StateLocked(
            "another process is writing to the database", mend="stop it, or try again later"
        )
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StateCorrupt(f"the database is damaged ({cause})", mend="restore it from a backup")
    if primary == sqlite3.SQLITE_CONSTRAINT:
        return DataError(f"the row contradicts what is stored ({cause})", mend="read it first")
    if primary == sqlite3.SQLITE_CANTOPEN:
        return ConfigError(
            f"the database cannot be opened ({cause})", mend="check the state folder's permissions"
        )
    return CambiumError(f"the database refused a statement ({cause})")


def _from_postgres(cause: BaseException | None) -> CambiumError:
    state = str(getattr(cause, "sqlstate", None) or "")
    said = str(cause).strip().split("\n")[0]
    if state in ("53100", "53400"):
        return storage_full()
    if state in ("55P03", "57014", "40001", "40P01"):
        return StateLocked(
            "another process is writing to the database", mend="stop it, or try again later"
        )
    if state in ("XX001", "XX002"):
        return StateCorrupt(f"the database is damaged ({said})", mend="restore it from a backup")
    if state[:2] in ("22", "23"):
        return DataError(f"the row contradicts what is stored ({said})", mend="read it first")
    if not state or state[:2] in ("08", "28", "3D", "57") or state == "53300":
        # Not in the driver's words, which name hosts: callers hear this.
        return StateUnreachable("the database cannot be reached", mend="try again later",
                                detail={"retry_after_s": RETRY_AFTER_S})  # fmt: skip
    return CambiumError(f"the database refused a statement ({said})")
