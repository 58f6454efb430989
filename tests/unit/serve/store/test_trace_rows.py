"""Traces and lessons, newest first, for one tenant or all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cambium.serve.adapter_states import AdapterState
from cambium.serve.errors import TraceNotFound
from cambium.serve.store.records import AdapterRecord, LearnRecord, TraceRow
from cambium.serve.store.state import State

MINUTE = 60_000
GREEN = {"alignment": {"ok": True}, "trust_region": {"ok": True}}
RESET = {"alignment": {"ok": True}, "trust_region": {"ok": False}}


def test_a_trace_is_found_by_its_request(state: State) -> None:
    row = TraceRow(request_id="req-1", at=5, record={"adapters": [], "text": "é\u0000\n"})
    with state.transaction() as tx:
        tx.put_trace(row)
    with state.read() as view:
        assert view.get_trace("req-1") == row
        with pytest.raises(TraceNotFound):
            view.get_trace("req-2")


@pytest.fixture
def busy(state: State) -> State:
    """Seven requests of two tenants, and a green and a red lesson of each."""
    with state.transaction() as tx:
        for i in range(7):
            tenant = "a" if i % 2 else "b"
            tx.put_trace(TraceRow(request_id=f"req-{i}", at=i * MINUTE // 2, record={},
                                  tenant=tenant))  # fmt: skip
        for tenant in "ab":
            name = f"{tenant}:x"
            tx.put_adapter(AdapterRecord(
                name=name, digest="", state=AdapterState.EPHEMERAL, tenant=tenant, domain=None,
                scope="text", config_json="", parent_revision=1, created_at=1, expires_at=None,
                weights_blob=None))  # fmt: skip
            lesson = LearnRecord(adapter=name, at=100, digest_before="", digest_after="",
                                 losses=(2.0, 1.5), steps=2, num_examples=1, consent=None,
                                 source=None, monitors=GREEN)  # fmt: skip
            tx.add_learn_step(lesson)
            tx.add_learn_step(replace(lesson, at=200, monitors=RESET))
    return state


def test_the_newest_come_first_and_a_tenant_sees_its_own(busy: State) -> None:
    with busy.read() as tx:
        assert [t.request_id for t in tx.newest_traces(limit=3)] == ["req-6", "req-5", "req-4"]
        assert [t.request_id for t in tx.newest_traces(limit=9, tenant="a")] == [
            "req-5", "req-3", "req-1"]  # fmt: skip
        assert tx.newest_traces(limit=9, tenant="c") == []
        assert [(r.adapter, r.at) for r in tx.newest_lessons(limit=3)] == [
            ("b:x", 200), ("b:x", 100), ("a:x", 200)]  # fmt: skip
        assert {r.adapter for r in tx.newest_lessons(limit=9, tenant="a")} == {"a:x"}


def test_requests_are_counted_by_the_minute(busy: State) -> None:
    with busy.read() as tx:
        assert tx.requests_by_minute(since=0) == {0: 2, 1: 2, 2: 2, 3: 1}
        assert tx.requests_by_minute(since=MINUTE, tenant="b") == {1: 1, 2: 1, 3: 1}


def test_the_last_so_many_requests_and_what_was_held_back_meanwhile(busy: State) -> None:
    with busy.read() as tx:
        assert tx.back_to(3) == (3, 2 * MINUTE)
        assert tx.back_to(100) == (7, 0)
        assert tx.back_to(100, tenant="nobody") == (0, 0)
        assert tx.held_back(since=0) == 2
        assert tx.held_back(since=0, tenant="a") == 1
        assert tx.held_back(since=201) == 0
