from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from cambium.serve.lesson_turns import LessonTurns

WAIT_S = 20


def test_calls_that_wait_for_an_adapter_hold_no_thread() -> None:
    async def crowd() -> list[str]:
        gate, order = threading.Event(), list[str]()

        def work(name: str) -> None:
            assert name == "other" or gate.wait(WAIT_S)
            order.append(name)

        with ThreadPoolExecutor(2) as threads:
            turns = LessonTurns(threads, per_tenant=2)
            crowd = [
                asyncio.create_task(
                    turns.run(lambda n=f"one {i}": work(n), adapter="a", tenant="t")
                )
                for i in range(6)
            ]
            await asyncio.sleep(0)
            other = turns.run(lambda: work("other"), adapter="b", tenant="u")
            await asyncio.wait_for(other, WAIT_S)
            gate.set()
            await asyncio.gather(*crowd)
            assert not turns._adapters
        return order

    assert asyncio.run(crowd()) == ["other", *(f"one {i}" for i in range(6))]


def test_a_tenant_leaves_threads_to_the_others() -> None:
    async def crowd() -> str:
        gate = threading.Event()
        with ThreadPoolExecutor(3) as threads:
            turns = LessonTurns(threads, per_tenant=2)
            held = [
                asyncio.create_task(
                    turns.run(lambda: gate.wait(WAIT_S), adapter=f"a{i}", tenant="many")
                )
                for i in range(5)
            ]
            await asyncio.sleep(0)
            done = turns.run(lambda: "done", adapter="b", tenant="few")
            found = await asyncio.wait_for(done, WAIT_S)
            gate.set()
            assert all(await asyncio.gather(*held))
        return found

    assert asyncio.run(crowd()) == "done"


def test_an_error_gives_the_turn_on() -> None:
    async def two() -> int:
        def fail() -> int:
            raise ValueError("no")

        with ThreadPoolExecutor(1) as threads:
            turns = LessonTurns(threads, per_tenant=1)
            bad, good = (
                asyncio.create_task(turns.run(work, adapter="a", tenant="t"))
                for work in (fail, lambda: 3)
            )
            found = await asyncio.gather(bad, good, return_exceptions=True)
        assert isinstance(found[0], ValueError)
        return int(str(found[1]))

    assert asyncio.run(two()) == 3
