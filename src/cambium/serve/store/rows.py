"""What every group of rows shares: statements in, frozen records out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar, cast

import sqlalchemy
from sqlalchemy import Connection, Insert, Select, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from cambium.serve.errors import StateCorrupt
from cambium.serve.store.blobs import BlobStore
from cambium.serve.store.schema import Table

Record = TypeVar("Record")


class Rows:
    """One database transaction and the blobs beside it."""

    def __init__(self, connection: Connection, *, blobs: BlobStore) -> None:
        self._connection = connection
        self._blobs = blobs

    def _all(self, kind: type[Record], statement: Select[*tuple[Any, ...]]) -> list[Record]:
        rows = self._connection.execute(statement).mappings()
        return [kind(**row) for row in rows]

    def _first(self, kind: type[Record], statement: Select[*tuple[Any, ...]]) -> Record | None:
        row = self._connection.execute(statement.limit(1)).mappings().first()
        return None if row is None else kind(**row)

    def _add(self, table: type[Table], record: object, **more: object) -> None:
        self._connection.execute(_insert(table), values_of(record) | more)

    def _add_numbered(self, table: type[Table], record: object) -> int:
        values = values_of(record)
        del values["id"]
        key = self._connection.execute(_insert(table), values).inserted_primary_key
        return int(key[0]) if key else 0

    def _add_once(self, table: type[Table], record: object) -> None:
        """Inserts the record unless its primary key is there; what is there is not changed."""
        statement = _insert_new(table, self._connection.dialect.name)
        self._connection.execute(statement, values_of(record))

    def _put(self, table: type[Table], record: object, **more: object) -> None:
        """Inserts the record, or replaces the row that has its primary key."""
        values = values_of(record) | more
        statement = _upsert(table, tuple(values), self._connection.dialect.name)
        self._connection.execute(statement, values)

    def _put_all(self, table: type[Table], records: Sequence[object]) -> None:
        """Inserts or replaces many, of one kind, in one statement."""
        values = [values_of(record) for record in records]
        statement = _upsert(table, tuple(values[0]), self._connection.dialect.name)
        self._connection.execute(statement, values)

    def _open_insert(self, table: type[Table]) -> sqlite.Insert | postgresql.Insert:
        """Returns an insert that can say what to do on a conflict."""
        return _open_insert(table, self._connection.dialect.name)

    def _need_blob(self, digest: str | None) -> None:
        if digest is not None and not self._blobs.has(digest):
            raise StateCorrupt(
                f"a row would name the blob {digest}, which is missing",
                mend="put the blob before the row",
            )


def columns(table: type[Table], record: type[Any]) -> Select[*tuple[Any, ...]]:
    """Returns a select of the columns that the record's fields name."""
    chosen: list[Any] = [getattr(table, field.name) for field in fields(record)]
    return select(*chosen)


def values_of(record: Any) -> dict[str, object]:
    """Returns the record's fields by name."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


# A statement is made once, and its values are sent beside it: to build one around its values takes
# as long as the database takes to run it.
@cache
def _insert(table: type[Table]) -> Insert:
    return insert(_table(table))


@cache
def _insert_new(table: type[Table], dialect: str) -> Insert:
    """Returns an insert that leaves a row alone whose primary key is there."""
    return _open_insert(table, dialect).on_conflict_do_nothing(index_elements=_keys(table))


@cache
def _upsert(table: type[Table], names: tuple[str, ...], dialect: str) -> Insert:
    """Returns an insert of these columns that replaces a row whose primary key is there."""
    keys, statement = _keys(table), _open_insert(table, dialect)
    others = {name: statement.excluded[name] for name in names if name not in keys}
    return statement.on_conflict_do_update(index_elements=keys, set_=others)


def _open_insert(table: type[Table], dialect: str) -> sqlite.Insert | postgresql.Insert:
    """Returns an insert that can say what to do on a conflict."""
    ours = dialect == "sqlite"
    return sqlite.insert(_table(table)) if ours else postgresql.insert(_table(table))


def _table(table: type[Table]) -> sqlalchemy.Table:
    return cast(sqlalchemy.Table, table.__table__)


def _keys(table: type[Table]) -> list[str]:
    return [column.name for column in table.__table__.primary_key]
