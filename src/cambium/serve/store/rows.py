"""What every group of rows shares: statements in, frozen records out."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, insert, select
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
        self._connection.execute(insert(table).values(**values_of(record), **more))

    def _add_numbered(self, table: type[Table], record: object) -> int:
        values = values_of(record)
        del values["id"]
        key = self._connection.execute(insert(table).values(**values)).inserted_primary_key
        return int(key[0]) if key else 0

    def _add_once(self, table: type[Table], record: object) -> None:
        """Inserts the record unless its primary key is there; what is there is not changed."""
        statement = self._insert(table).values(**values_of(record))
        self._connection.execute(statement.on_conflict_do_nothing(index_elements=_keys(table)))

    def _put(self, table: type[Table], record: object, **more: object) -> None:
        """Inserts the record, or replaces the row that has its primary key."""
        values = values_of(record) | more
        keys = _keys(table)
        statement = self._insert(table).values(**values)
        others = {name: statement.excluded[name] for name in values if name not in keys}
        self._connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=others))

    def _insert(self, table: type[Table]) -> sqlite.Insert | postgresql.Insert:
        """Returns an insert that can say what to do on a conflict."""
        ours = self._connection.dialect.name == "sqlite"
        return sqlite.insert(table) if ours else postgresql.insert(table)

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


def _keys(table: type[Table]) -> list[str]:
    return [column.name for column in table.__table__.primary_key]
