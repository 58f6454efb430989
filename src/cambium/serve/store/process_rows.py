"""Rows of the processes that share a state, and of what each has claimed."""

from __future__ import annotations

from sqlalchemy import delete, insert, select

from cambium.serve.store.rows import Rows
from cambium.serve.store.schema import Claim, Process


class ProcessRows(Rows):
    """Who shares the state. A process whose row is gone has lost all that it claimed."""

    def find_process(self, process: str | None) -> str | None:
        """Returns the address of a living process; None of one that is gone, or of none."""
        found = select(Process.address).where(Process.id == process)
        return self._connection.execute(found).scalar()

    def count_processes(self) -> int:
        """Returns how many processes share the state."""
        return len(self._connection.execute(select(Process.id)).all())

    def claim(self, name: str, *, process: str) -> bool:
        """Takes a piece of work for a living process, unless another one has it."""
        holder = self._connection.execute(select(Claim.process).where(Claim.name == name)).scalar()
        if holder is None:
            self._connection.execute(insert(Claim).values(name=name, process=process))
        return holder in (None, process)

    def release(self, name: str, *, process: str) -> None:
        """Gives a piece of work back; nothing happens if another process has it by now."""
        mine = delete(Claim).where(Claim.name == name, Claim.process == process)
        self._connection.execute(mine)
