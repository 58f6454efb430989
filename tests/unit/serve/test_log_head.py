from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cambium.core.errors import AuditBroken
from cambium.serve.log_head import sign_newest
from cambium.serve.store.state import State
from cambium.trust.audit import SignedHead, verify_chain
from cambium.trust.keys import generate_key

KEY = generate_key()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State.open(tmp_path) as found:
        yield found


def sign(state: State) -> SignedHead:
    with state.transaction() as tx:
        return sign_newest(tx, KEY)


def log(state: State, number: int) -> None:
    with state.transaction() as tx:
        for i in range(number):
            tx.audit("thing", body={"i": i}, at=i)


def test_each_head_extends_the_one_before(state: State) -> None:
    log(state, 3)
    assert sign(state).seq == 3
    assert sign(state).seq == 3
    log(state, 2)
    head = sign(state)
    with state.read() as tx:
        assert tx.latest_head() == head
        entries = tx.audit_entries()
    assert verify_chain(entries, head=head, server_public=KEY.public_key) == 5


def test_an_empty_log_has_no_head(state: State) -> None:
    with pytest.raises(AuditBroken):
        sign(state)


@pytest.mark.parametrize(
    "edit",
    [
        "DELETE FROM audit WHERE seq >= 3",
        "DELETE FROM audit WHERE seq = 4",
        "UPDATE audit SET hash = prev || seq WHERE seq = 3",
        "UPDATE audit SET at = 99 WHERE seq = 5",
        "UPDATE heads SET seq = 2",
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
