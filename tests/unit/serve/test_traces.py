from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cambium.serve import traces
from cambium.serve.errors import TraceNotFound
from cambium.serve.store.records import TraceRow
from cambium.serve.store.state import State
from cambium.serve.traces import TraceLane
from cambium.trust.keys import generate_key

KEY = generate_key()


def row(name: str) -> TraceRow:
    return TraceRow(request_id=name, at=1, record={"name": name})


def test_a_trace_is_read_at_once_and_written_by_the_end(tmp_path: Path) -> None:
    with State.open(tmp_path) as state:
        for turn in range(20):  # the last one comes just before the end
            lane = TraceLane(state, lambda tx: KEY)
            lane.record(row(f"t-{turn}"))
            assert lane.get(f"t-{turn}") == row(f"t-{turn}")
            lane.close()
            with state.read() as tx:
                assert tx.get_trace(f"t-{turn}") == row(f"t-{turn}")
        with pytest.raises(TraceNotFound):
            lane.get("t-20")


def test_traces_that_cannot_be_written_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "MAX_PENDING", 5)
    with State.open(tmp_path) as writer:
        writer.close()
        lane = TraceLane(writer, lambda tx: KEY)  # a closed state refuses every write
        for n in range(9):
            lane.record(row(f"t-{n}"))
        assert lane.get("t-8") == row("t-8")
        assert len(lane._pending) == 5
        lane.close()


def test_what_is_amended_while_it_is_written_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with State.open(tmp_path) as state:
        lane = TraceLane(state, lambda tx: KEY)
        lane.record(row("t"))
        lane.amend("unknown", learning="x")
        lane.close()
        lane._pending["t"] = row("t")
        whole = state.transaction

        def meanwhile() -> Any:
            monkeypatch.setattr(state, "transaction", whole)
            lane.amend("t", learning="learned")
            return whole()

        monkeypatch.setattr(state, "transaction", meanwhile)
        lane._flush()
        assert lane.get("t").record["learning"] == "learned"
        lane._flush()
        with state.read() as tx:
            assert tx.get_trace("t").record == {"name": "t", "learning": "learned"}
        assert not lane._pending
