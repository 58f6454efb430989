"""Where calls to learn wait for their turn, outside of the threads that they learn in.

A call that waits in a thread for an earlier one of its adapter does nothing there; enough of them
would keep every other adapter from learning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar
from weakref import WeakValueDictionary

_Result = TypeVar("_Result")


class LessonTurns:
    """One call of an adapter at a time, in the order in which they came, and so many of a tenant.

    Args:
        per_tenant: how many of the threads one tenant's calls may have.
    """

    def __init__(self, threads: Executor, *, per_tenant: int) -> None:
        self._threads = threads
        self._per_tenant = per_tenant
        # Each is there as long as a call holds it or waits for it.
        self._adapters: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tenants: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, work: Callable[[], _Result], *, adapter: str, tenant: str) -> _Result:
        """Returns what `work` returns, in a thread, when it is this call's turn."""
        own = self._adapters.setdefault(adapter, asyncio.Lock())
        room = self._tenants.setdefault(tenant, asyncio.Semaphore(self._per_tenant))
        async with own, room:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
