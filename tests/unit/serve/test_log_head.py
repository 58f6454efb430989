from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cambium.core.errors import AuditBroken
from cambium.serve.log_head import check_log, sign_newest
from cambium.serve.store.state import State
from cambium.trust.audit import Checkpoint, verify_log
from cambium.trust.keys import generate_key

KEY = generate_key()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State.open(tmp_path) as found:
        yield found


def sign(state: State) -> Checkpoint:
    with state.transaction() as tx:
        return sign_newest(tx, KEY)


def log(state: State, number: int) -> None:
    with state.transaction() as tx:
        for i in range(number):
            tx.audit("thing", body={"i": i}, at=i)


def test_each_checkpoint_extends_the_one_before(state: State) -> None:
    log(state, 3)
    assert sign(state).size == 3
    assert sign(state).size == 3
    log(state, 2)
    signed = sign(state)
    with state.read() as tx:
        assert tx.latest_checkpoint() == signed
        entries = tx.audit_entries()
    assert verify_log(entries, checkpoint=signed, server_public=KEY.public_key) == 5
    assert check_log(state, KEY.public_key) == 5


def test_an_empty_log_has_no_checkpoint(state: State) -> None:
    with pytest.raises(AuditBroken):
        sign(state)


@pytest.mark.parametrize(
    "edit",
    [
        "DELETE FROM audit WHERE seq >= 3",
        "DELETE FROM audit WHERE seq = 4",
        "DELETE FROM audit WHERE seq = 6",
        "UPDATE audit SET hash = 'sha256:' || seq WHERE seq = 4",
        "UPDATE audit_nodes SET hash = zeroblob(32) WHERE level = 1 AND position = 0",
        "UPDATE audit_nodes SET hash = zeroblob(32) WHERE level = 0 AND position = 2",
        "DELETE FROM audit_nodes WHERE level = 1 AND position = 0",
        "UPDATE audit SET at = 99 WHERE seq = 5",
        "UPDATE checkpoints SET size = 2",
    ],
)
def test_a_log_that_forgets_is_not_signed(state: State, tmp_path: Path, edit: str) -> None:
    log(state, 3)
    sign(state)
    log(state, 3)
    with closing(sqlite3.connect(tmp_path / "cambium.db")) as db, db:
        db.execute(edit)
    with pytest.raises(AuditBroken):
        sign(state)


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE audit SET at = 99 WHERE seq = 2",
        "UPDATE audit SET hash = 'sha256:' || seq WHERE seq = 1",
        "DELETE FROM audit WHERE seq <= 2",
        "DELETE FROM audit WHERE seq = 3",
        "UPDATE checkpoints SET root = 'sha256:0'",
    ],
)
def test_what_was_signed_is_hashed_again_at_the_start(
    state: State, tmp_path: Path, edit: str
) -> None:
    log(state, 3)
    sign(state)
    assert check_log(state, KEY.public_key) == 3
    log(state, 1)
    with closing(sqlite3.connect(tmp_path / "cambium.db")) as db, db:
        db.execute(edit)
    with pytest.raises(AuditBroken):
        check_log(state, KEY.public_key)


def test_a_long_log_is_read_in_pages(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cambium.serve.log_head.PAGE", 4)
    assert check_log(state, KEY.public_key) == 0
    for number in (1, 3, 1, 8):
        log(state, number)
        assert check_log(state, KEY.public_key) == sign(state).size - number
        assert check_log(state, KEY.public_key) == sign(state).size
