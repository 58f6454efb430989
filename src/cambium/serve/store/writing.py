"""Which connections write: one at a time, in every database."""

from __future__ import annotations

from sqlalchemy import Connection

MAX_CONNECTIONS = 32
_WRITES = "cambium_writes"


def for_writing(connection: Connection) -> Connection:
    """Returns the connection, whose next transaction is the database's one writer."""
    return connection.execution_options(**{_WRITES: True})


def is_for_writing(connection: Connection) -> bool:
    """Returns whether `for_writing` gave this connection."""
    return bool(connection.get_execution_options().get(_WRITES, False))
