"""Rows of what happened: what stood behind each answer, and what was learned, newest first."""

from __future__ import annotations

from sqlalchemy import ColumnElement, String, cast, func, select, true

from cambium.serve.errors import TraceNotFound
from cambium.serve.store.records import LearnRecord, TraceRow
from cambium.serve.store.rows import Rows, columns
from cambium.serve.store.schema import Adapter, LearnStep, Trace

_TRACES = columns(Trace, TraceRow)
# As canonical JSON writes a monitor that held something back.
_NOT_OK = '"ok":false'


class TraceRows(Rows):
    """Traces by request, and what the pages that follow them count; None is every tenant."""

    def put_trace(self, row: TraceRow) -> None:
        """Keeps what stood behind an answer."""
        self._put(Trace, row)

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
