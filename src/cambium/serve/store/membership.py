"""One process among those that share a database: it says that it lives, and knows when to doubt it.

A row is a lease: who does not renew it for `LEASE_S` is taken for dead, loses the row, and with it
all that it claimed. Each writing transaction looks for the row first, so that whoever was taken for
dead writes nothing more. Well before that, after `CURRENT_S` without word from the database, a
process stops believing what it has in memory.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from contextlib import suppress

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

PERIOD_S = 0.5
CURRENT_S = 4.0
LEASE_S = 8.0
# By the database's clock, which all processes share.
_NOW = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"
_JOIN = text(f"INSERT INTO processes (id, address, seen_at) VALUES (:id, :address, {_NOW})")
_RENEW = text(f"UPDATE processes SET seen_at = {_NOW} WHERE id = :id")
_REAP = text(f"DELETE FROM processes WHERE seen_at < {_NOW} - :lease_ms RETURNING id")
_LEAVE = text("DELETE FROM processes WHERE id = :id")
_log = logging.getLogger(__name__)


class Membership:
    """Renews this process's row, and ends the rows of those who renew theirs no more."""

    def __init__(self, engine: Engine, *, address: str) -> None:
        """Joins; `address` is where others send those who ask for what this process holds."""
        self._engine = engine
        self._address = address
        self._connection: Connection | None = None
        self._heard_at = time.monotonic()
        self._stop = threading.Event()
        self.num_taken_over = 0
        self.id = self._join(self._connect())
        self._thread = threading.Thread(target=self._run, name="membership", daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Returns whether the database has said lately that this process counts."""
        return time.monotonic() - self._heard_at < CURRENT_S

    def beat(self) -> None:
        """Renews the row, or joins anew under another id if it is gone."""
        sent = time.monotonic()
        connection = self._connect()
        if connection.execute(_RENEW, {"id": self.id}).rowcount == 0:
            _log.warning("this process was taken for dead, and joins anew")
            self.id = self._join(connection)
        gone = connection.execute(_REAP, {"lease_ms": int(LEASE_S * 1000)}).scalars().all()
        self._heard_at = sent
        if gone:
            self.num_taken_over += len(gone)
            _log.warning("processes that are gone: %s", ", ".join(gone))

    def close(self) -> None:
        """Leaves: whatever this process held is free."""
        self._stop.set()
        self._thread.join()
        with suppress(SQLAlchemyError):  # a database that is gone finds out by itself
            self._connect().execute(_LEAVE, {"id": self.id})
        self._drop()

    def _run(self) -> None:
        is_silent = False
        while not self._stop.wait(PERIOD_S):
            try:
                self.beat()
                is_silent = False
            except SQLAlchemyError as error:
                if not is_silent:
                    _log.warning("no word from the database: %s", str(error).split("\n")[0])
                is_silent = True
                self._drop()

    def _join(self, connection: Connection) -> str:
        id = secrets.token_hex(6)
        connection.execute(_JOIN, {"id": id, "address": self._address})
        return id

    def _connect(self) -> Connection:
        """Returns a connection of its own, which waits for no writer and no pool."""
        if self._connection is None:
            connection = self._engine.connect()
            self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(SQLAlchemyError):
                self._connection.close()
            self._connection = None
