"""Rows of bearer tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cambium.core.errors import DataError
from cambium.serve.store.records import TokenRow
from cambium.serve.store.state import State

ROW = TokenRow(
    token_id="t1",
    hash="aa",
    name="ann",
    tenant="acme",
    roles=("client", "learner"),
    requests_per_minute=60,
    created_at=5,
)


def test_a_token_is_kept_as_it_was_given(state: State) -> None:
    later = replace(ROW, token_id="t0", hash="bb", created_at=6, expires_at=9)
    with state.transaction() as tx:
        tx.add_token(later)
        tx.add_token(ROW)
    with state.read() as view:
        assert view.list_tokens() == [ROW, later]


def test_a_token_is_revoked_once(state: State) -> None:
    with state.transaction() as tx:
        tx.add_token(ROW)
        assert tx.revoke_token("t1", at=7)
        assert not tx.revoke_token("t1", at=8)
        assert not tx.revoke_token("t2", at=8)
        assert tx.list_tokens() == [replace(ROW, revoked_at=7)]


@pytest.mark.parametrize("change", [{"hash": "bb"}, {"token_id": "t2"}])
def test_no_two_tokens_share_an_id_or_a_hash(state: State, change: dict[str, str]) -> None:
    with state.transaction() as tx:
        tx.add_token(ROW)
    with pytest.raises(DataError), state.transaction() as tx:
        tx.add_token(replace(ROW, **change))
