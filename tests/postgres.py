"""A real PostgreSQL for tests, started once, with a database for whoever asks."""

from __future__ import annotations

import atexit
import itertools
import tempfile
import warnings
from functools import cache
from typing import Any

import psycopg

_numbers = itertools.count()


@cache
def _server() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pgserver.postgres_server

        # A short path: a socket's name has at most 107 characters.
        server = pgserver.postgres_server.get_server(
            tempfile.mkdtemp(prefix="pg"), cleanup_mode="delete"
        )
    atexit.register(server.cleanup)
    return server


def fresh_database() -> str:
    """Returns the URL of an empty database."""
    name = f"t{next(_numbers)}"
    url = str(_server().get_uri())
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # pyright: ignore[reportArgumentType]
    return url.replace("/postgres?", f"/{name}?")
