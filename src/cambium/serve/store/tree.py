"""A lane's Merkle tree: the roots of its perfect subtrees, in a table of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, insert, or_, select

from cambium.serve.store.schema import AuditNode, RequestNode
from cambium.trust.audit import log_broken
from cambium.trust.merkle import appended

NodeTable = type[AuditNode] | type[RequestNode]
# A proof in a tree of 2^30 leaves asks for fewer.
AT_ONCE = 64


def _asking(table: NodeTable) -> Select[*tuple[Any, ...]]:
    """Returns a select of `AT_ONCE` nodes: built once, since building takes longer than asking."""
    # Not as pairs in a list: SQLite would look at every row.
    each = [_is_at(table, str(i)) for i in range(AT_ONCE)]
    return select(table.level, table.position, table.hash).where(or_(*each))


def _is_at(table: NodeTable, name: str) -> ColumnElement[bool]:
    level, position = bindparam(f"level_{name}"), bindparam(f"position_{name}")
    return (table.level == level) & (table.position == position)


_ASKING = {table: _asking(table) for table in (AuditNode, RequestNode)}
_ONE = {table: select(table.hash).where(_is_at(table, "")) for table in _ASKING}
_SIZE = {table: select(func.max(table.position)).where(table.level == 0) for table in _ASKING}


class Tree:
    """The tree of one lane, within one transaction."""

    def __init__(self, connection: Connection, table: NodeTable) -> None:
        self._connection = connection
        self._table = table

    def size(self) -> int:
        """Returns how many leaves there are; the newest entry has this number."""
        last = self._connection.execute(_SIZE[self._table]).scalar()
        return 0 if last is None else last + 1

    def node(self, level: int, position: int) -> bytes:
        """Returns the root of a perfect subtree.

        Raises:
            AuditBroken: it is not there, though the tree says it is that large.
        """
        place = {"level_": level, "position_": position}
        found = self._connection.execute(_ONE[self._table], place).scalar()
        if found is None:
            raise log_broken((position << level) + 1, "a node of its tree is missing")
        return found

    def nodes(self, wanted: Collection[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """Returns the roots of perfect subtrees by (level, position), all in one query.

        Raises:
            AuditBroken: one is not there.
        """
        found: dict[tuple[int, int], bytes] = {}
        asked = list(wanted)
        for at in range(0, len(asked), AT_ONCE):
            some = asked[at : at + AT_ONCE]
            places = [*some, *[(-1, -1)] * (AT_ONCE - len(some))]
            values = {f"level_{i}": level for i, (level, _) in enumerate(places)}
            values |= {f"position_{i}": position for i, (_, position) in enumerate(places)}
            rows = self._connection.execute(_ASKING[self._table], values)
            found |= {(level, position): hash_ for level, position, hash_ in rows}
        for level, position in set(wanted) - found.keys():
            raise log_broken((position << level) + 1, "a node of its tree is missing")
        return found

    def extend(self, leaves: Sequence[bytes], *, size: int) -> None:
        """Adds leaves after the first `size`, with every node that they complete."""
        fresh: dict[tuple[int, int], bytes] = {}

        def node(level: int, position: int) -> bytes:
            found = fresh.get((level, position))
            return self.node(level, position) if found is None else found

        for index, leaf in enumerate(leaves, start=size):
            for level, position, found in appended(leaf, index, node):
                fresh[level, position] = found
        rows = [{"level": v, "position": p, "hash": found} for (v, p), found in fresh.items()]
        if rows:
            self._connection.execute(insert(self._table), rows)
