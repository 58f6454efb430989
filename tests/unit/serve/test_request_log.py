"""Traces under a tree of their own: whoever kept a checkpoint finds every change."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cambium.cli.request_lane import verify_requests
from cambium.core.errors import AuditBroken
from cambium.serve.log_head import prove_entry, prove_growth, root_of
from cambium.serve.request_log import forget_requests, leaf_of, log_requests, newest_signed, page_of
from cambium.serve.store.records import TraceRow
from cambium.serve.store.state import State
from cambium.trust.audit import (
    REQUESTS,
    Checkpoint,
    check_checkpoint,
    check_grown,
    sign_checkpoint,
    to_bytes,
)
from cambium.trust.keys import generate_key
from cambium.trust.merkle import is_included

KEY = generate_key()
PUBLIC = KEY.public_key


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State.open(tmp_path) as found:
        yield found


def trace(name: str, **record: Any) -> TraceRow:
    return TraceRow(request_id=name, at=5, record={"name": name, **record}, tenant="acme")


def write(state: State, *traces: TraceRow) -> Checkpoint:
    with state.transaction() as tx:
        for row in traces:
            tx.put_trace(row)
        return log_requests(tx, traces, KEY)


def ten(state: State) -> Checkpoint:
    """Ten leaves of nine requests: the second is amended by the last."""
    write(state, *(trace(f"r{i}") for i in range(4)))
    write(state, *(trace(f"r{i}") for i in range(4, 9)))
    return write(state, trace("r1", learning="learned"))


def check(state: State, checkpoint: Checkpoint) -> int:
    with state.read() as tx:
        rows = page_of(tx, since=1, limit=1000)
    return verify_requests(rows, checkpoint=checkpoint, server_public=PUBLIC)


def test_every_trace_is_proved_and_the_whole_lane_verifies(state: State) -> None:
    signed = ten(state)
    assert signed.size == 10 == check(state, signed)
    with state.read() as tx:
        rows = page_of(tx, since=1, limit=1000)
        assert tx.request_leaves(["r1", "r2", "nobody"]) == {"r1": [2, 10], "r2": [3]}
        # The content of what was amended is gone, its hash is not.
        assert [row["seq"] for row in rows if "record" not in row] == [2]
        assert (rows[9]["earlier"], rows[9]["record"]["learning"]) == ([2], "learned")
        for row in rows:
            proof = prove_entry(tx.request_tree, row["seq"], 10)
            steps = [to_bytes(step) for step in proof["proof"]]
            leaf = leaf_of(row["seq"], row) if "record" in row else to_bytes(row["hash"])
            assert is_included(leaf, row["seq"] - 1, 10, steps, to_bytes(signed.root))
        assert page_of(tx, since=9, limit=1)[0]["request_id"] == "r8"
    # What comes later is not yet under a checkpoint that was kept.
    write(state, trace("later"), trace("r3", learning="no"))
    assert check(state, signed) == 10


def test_a_checkpoint_of_one_lane_is_none_of_the_other(state: State) -> None:
    signed = ten(state)
    check_checkpoint(signed, PUBLIC, REQUESTS)
    with pytest.raises(AuditBroken):
        check_checkpoint(signed, PUBLIC)
    other = sign_checkpoint(KEY, signed.size, to_bytes(signed.root))
    with pytest.raises(AuditBroken):
        check_checkpoint(other, PUBLIC, REQUESTS)


EDITS = [
    "UPDATE traces SET record = '{}' WHERE request_id = 'r4'",
    "UPDATE traces SET record = '{}' WHERE request_id = 'r1'",
    "UPDATE traces SET tenant = 'globex' WHERE request_id = 'r4'",
    "UPDATE traces SET at = 6 WHERE request_id = 'r4'",
    "DELETE FROM traces WHERE request_id = 'r4'",
    "DELETE FROM traces WHERE request_id = 'r8'",
    "DELETE FROM request_leaves WHERE seq = 4",
    "DELETE FROM request_leaves WHERE seq = 2",
    # As if the removed one had been an earlier state of another.
    "UPDATE request_leaves SET request_id = 'r5' WHERE seq = 5",
    "UPDATE request_leaves SET request_id = 'r0' WHERE seq = 2",
    "UPDATE request_nodes SET hash = zeroblob(32) WHERE level = 0 AND position = 4",
    "DELETE FROM request_nodes WHERE level = 0 AND position = 4",
]


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_changed_or_removed_shows(state: State, tmp_path: Path, edit: str) -> None:
    signed = ten(state)
    with closing(sqlite3.connect(tmp_path / "cambium.db")) as database:
        assert database.execute(edit).rowcount == 1
        database.commit()
    with pytest.raises(AuditBroken):
        check(state, signed)


def rebuilt(state: State, leaves: list[bytes]) -> None:
    """Makes the tree over other leaves, as whoever can write the database could."""
    with state.transaction() as tx:
        tx._connection.exec_driver_sql("DELETE FROM request_nodes")
        tx.request_tree.extend(leaves, size=0)


def edited(leaves: list[bytes]) -> list[bytes]:
    row = {"request_id": "r4", "tenant": "acme", "at": 5, "record": {"name": "x"}, "earlier": []}
    return [*leaves[:4], leaf_of(5, row), *leaves[5:]]


def cut(leaves: list[bytes]) -> list[bytes]:
    return leaves[:8]


@pytest.mark.parametrize("harm", [edited, cut])
def test_a_rewritten_lane_is_not_signed_and_a_stolen_key_meets_the_witness(
    state: State, harm: Callable[[list[bytes]], list[bytes]]
) -> None:
    kept = ten(state)
    with state.read() as tx:
        leaves = [to_bytes(row["hash"]) for row in page_of(tx, since=1, limit=100)]
    rebuilt(state, harm(leaves))
    with pytest.raises(AuditBroken), state.transaction() as tx:
        newest_signed(tx, KEY)
    with pytest.raises(AuditBroken):
        write(state, trace("next"))
    with state.read() as tx:
        size = tx.request_tree.size()
        forged = sign_checkpoint(KEY, size, root_of(tx.request_tree, size), REQUESTS)
        proof = prove_growth(tx.request_tree, min(size, kept.size), size)["proof"]
    with pytest.raises(AuditBroken):
        check_grown(kept, forged, proof, PUBLIC, REQUESTS)


def test_a_true_lane_grows_under_its_witness(state: State) -> None:
    kept = ten(state)
    now = write(state, trace("next"), trace("r1", learning="again"))
    with state.read() as tx:
        proof = prove_growth(tx.request_tree, kept.size, now.size)["proof"]
        assert newest_signed(tx, KEY) == now
    check_grown(kept, now, proof, PUBLIC, REQUESTS)
    assert check(state, now) == 12


def test_what_is_deleted_by_age_leaves_its_leaf_and_is_said_in_the_log(state: State) -> None:
    old = [replace(trace(f"old{i}"), at=10) for i in range(3)]
    write(state, *old, replace(trace("young"), at=100), replace(trace("late"), at=10))
    signed = write(state, replace(trace("old1", learning="late"), at=10))
    # "old1" was amended after the young one, and "late" was written after it: they wait.
    assert forget_requests(state, lambda tx: KEY, before=50, now=200) == 2
    with state.read() as tx:
        entry = tx.last_audit_entry()
        assert entry is not None and entry.kind == "requests.forgotten"
        assert entry.body == {"up_to": 3, "before": 50, "traces": 2}
        assert set(tx.traces_of(["old0", "old1", "old2", "young", "late"])) == {
            "old1", "young", "late"}  # fmt: skip
        rows = page_of(tx, since=1, limit=100)
        assert newest_signed(tx, KEY) == signed
    proved = partial(verify_requests, rows, checkpoint=signed, server_public=PUBLIC)
    assert proved(forgotten=3) == 6
    with pytest.raises(AuditBroken, match="entry 1: its trace is gone"):
        proved()
    assert forget_requests(state, lambda tx: KEY, before=50, now=201) == 0
    assert forget_requests(state, lambda tx: KEY, before=1000, now=202) == 3
    assert write(state, trace("next")).size == 7
