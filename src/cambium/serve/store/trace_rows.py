"""Rows of what happened: what stood behind each answer, and what was learned, newest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, String, cast, delete, func, insert, select, true

from cambium.serve.errors import TraceNotFound
from cambium.serve.store.records import LearnRecord, TraceRow
from cambium.serve.store.rows import Rows, columns
from cambium.serve.store.schema import (
    Adapter,
    LearnStep,
    RequestCheckpoint,
    RequestLeaf,
    RequestNode,
    Trace,
)
from cambium.serve.store.tree import Tree
from cambium.trust.audit import Checkpoint

_TRACES = columns(Trace, TraceRow)
# A database takes so many values in one statement, and more.
_AT_ONCE = 500
# As canonical JSON writes a monitor that held something back.
_NOT_OK = '"ok":false'


class TraceRows(Rows):
    """Traces by request, and what the pages that follow them count; None is every tenant."""

    def put_trace(self, row: TraceRow) -> None:
        """Keeps what stood behind an answer."""
        self._put(Trace, row)

    def put_traces(self, rows: Sequence[TraceRow]) -> None:
        """Keeps what stood behind many answers, in one statement."""
        self._put_all(Trace, rows)

    def get_trace(self, request_id: str) -> TraceRow:
        """Returns what stood behind an answer.

        Raises:
            TraceNotFound: no answered request has this id.
        """
        row = self._first(TraceRow, _TRACES.where(Trace.request_id == request_id))
        if row is None:
            raise TraceNotFound(
                f"no answered request has the id {request_id!r:.100}",
                mend="use the x-cambium-request-id of an answer",
            )
        return row

    @property
    def request_tree(self) -> Tree:
        """Returns the tree over the traces, as they were written and amended."""
        return Tree(self._connection, RequestNode)

    def add_request_leaves(self, leaves: Mapping[int, str]) -> None:
        """Notes whose trace each of these leaves is of, by number."""
        rows = [{"seq": seq, "request_id": name} for seq, name in leaves.items()]
        self._connection.execute(insert(RequestLeaf), rows)

    def request_leaves(self, names: Sequence[str]) -> dict[str, list[int]]:
        """Returns the numbers of these requests' leaves, oldest first; the last is as it is now."""
        found: dict[str, list[int]] = {}
        for at in range(0, len(names), _AT_ONCE):
            some = RequestLeaf.request_id.in_(names[at : at + _AT_ONCE])
            chosen = select(RequestLeaf.request_id, RequestLeaf.seq).where(some)
            for name, seq in self._connection.execute(chosen.order_by(RequestLeaf.seq)):
                found.setdefault(name, []).append(seq)
        return found

    def requests_by_leaf(self, *, since: int, limit: int) -> dict[int, str]:
        """Returns whose leaves these are, by number, `limit` of them from `since` on."""
        chosen = select(RequestLeaf.seq, RequestLeaf.request_id).where(RequestLeaf.seq >= since)
        rows = self._connection.execute(chosen.order_by(RequestLeaf.seq).limit(limit))
        return {seq: name for seq, name in rows}

    def traces_of(self, names: Sequence[str]) -> dict[str, TraceRow]:
        """Returns those of these traces that are there, by request."""
        rows: list[TraceRow] = []
        for at in range(0, len(names), _AT_ONCE):
            some = Trace.request_id.in_(names[at : at + _AT_ONCE])
            rows += self._all(TraceRow, _TRACES.where(some))
        return {row.request_id: row for row in rows}

    def oldest_leaf_from(self, at: int) -> int:
        """Returns the first leaf of a trace from `at` on; one after the last if there is none."""
        young = select(Trace.request_id).where(Trace.at >= at)
        first = select(func.min(RequestLeaf.seq)).where(RequestLeaf.request_id.in_(young))
        found = self._connection.execute(first).scalar()
        return self.request_tree.size() + 1 if found is None else found

    def delete_traces(self, *, before: int, up_to: int) -> int:
        """Deletes old traces that have no leaf after `up_to`, and returns how many."""
        later = select(RequestLeaf.request_id).where(RequestLeaf.seq > up_to)
        old = delete(Trace).where(Trace.at < before, Trace.request_id.not_in(later))
        return self._connection.execute(old).rowcount

    def put_request_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keeps the latest signed checkpoint of the requests' lane in place of the one before."""
        self._connection.execute(delete(RequestCheckpoint))
        self._add(RequestCheckpoint, checkpoint)

    def request_checkpoint(self) -> Checkpoint | None:
        """Returns the latest signed checkpoint of the requests' lane, or None before the first."""
        return self._first(Checkpoint, columns(RequestCheckpoint, Checkpoint))

    def newest_traces(self, *, limit: int, tenant: str | None = None) -> list[TraceRow]:
        """Returns the latest traces, newest first."""
        ordered = _TRACES.where(_by(tenant)).order_by(Trace.at.desc(), Trace.request_id)
        return self._all(TraceRow, ordered.limit(limit))

    def requests_by_minute(self, *, since: int, tenant: str | None = None) -> dict[int, int]:
        """Returns how many requests were answered in each minute since 1970, from `since` ms on."""
        minute = (Trace.at // 60_000).label("minute")
        counted = select(minute, func.count()).where(Trace.at >= since, _by(tenant))
        return {int(m): n for m, n in self._connection.execute(counted.group_by("minute"))}

    def back_to(self, num_requests: int, *, tenant: str | None = None) -> tuple[int, int]:
        """Returns how many of the last `num_requests` there are, and when the first of them was."""
        newest = select(Trace.at).where(_by(tenant)).order_by(Trace.at.desc()).limit(num_requests)
        found = newest.subquery()
        count, first = self._connection.execute(
            select(func.count(), func.min(found.c.at)).select_from(found)
        ).one()
        return count, first or 0

    def newest_lessons(self, *, limit: int, tenant: str | None = None) -> list[LearnRecord]:
        """Returns the latest accepted calls to learn, newest first."""
        ordered = columns(LearnStep, LearnRecord).where(_learned_by(tenant))
        return self._all(LearnRecord, ordered.order_by(LearnStep.id.desc()).limit(limit))

    def held_back(self, *, since: int, tenant: str | None = None) -> int:
        """Returns how many calls to learn a monitor quarantined or reset, from `since` ms on."""
        text = cast(LearnStep.monitors, String)
        found = select(func.count()).select_from(LearnStep).where(
            LearnStep.at >= since, text.contains(_NOT_OK), _learned_by(tenant)
        )  # fmt: skip
        return self._connection.execute(found).scalar_one()


def _by(tenant: str | None) -> ColumnElement[bool]:
    return true() if tenant is None else Trace.tenant == tenant


def _learned_by(tenant: str | None) -> ColumnElement[bool]:
    if tenant is None:
        return true()
    return LearnStep.adapter.in_(select(Adapter.name).where(Adapter.tenant == tenant))
