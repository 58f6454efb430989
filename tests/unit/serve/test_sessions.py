from __future__ import annotations

from pathlib import Path

import pytest

from cambium.serve.errors import Unauthenticated
from cambium.serve.sessions import SESSION_S, Sessions
from cambium.serve.store.state import State
from cambium.serve.tokens import TokenOrder, Tokens


class Clock:
    now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(tmp_path: Path, clock: Clock):
    with State.open(tmp_path) as state:
        yield Tokens(state, now_ms=clock)


@pytest.fixture
def made(tokens: Tokens) -> tuple[str, str]:
    row, token = tokens.make(TokenOrder(name="a", tenant="*", roles=["operator"]))
    return row.token_id, token


def test_a_session_is_its_tokens_and_is_not_the_token(
    tokens: Tokens, clock: Clock, made: tuple[str, str]
) -> None:
    token_id, token = made
    sessions = Sessions(tokens, now_ms=clock)
    cookie = sessions.open(token)
    assert sessions.find(cookie).token_id == token_id
    assert token not in cookie and token.rpartition("_")[2] not in cookie
    with pytest.raises(Unauthenticated):
        tokens.find(cookie)
    with pytest.raises(Unauthenticated):
        sessions.open(token + "x")


def test_it_ends_with_its_time_its_token_and_its_process(
    tokens: Tokens, clock: Clock, made: tuple[str, str]
) -> None:
    token_id, token = made
    sessions = Sessions(tokens, now_ms=clock)
    cookie = sessions.open(token)
    with pytest.raises(Unauthenticated):
        Sessions(tokens, now_ms=clock).find(cookie)
    clock.now += (SESSION_S - 1) * 1000
    assert sessions.find(cookie).token_id == token_id
    clock.now += 1000
    with pytest.raises(Unauthenticated):
        sessions.find(cookie)
    cookie = sessions.open(token)
    tokens.revoke(token_id)
    with pytest.raises(Unauthenticated):
        sessions.find(cookie)


def test_a_cookie_that_was_changed_is_none(
    tokens: Tokens, clock: Clock, made: tuple[str, str]
) -> None:
    sessions = Sessions(tokens, now_ms=clock)
    cookie = sessions.open(made[1])
    token_id, until, seal = cookie.split(".")
    wrong = ["", ".", "..", cookie + "0", cookie[:-1], f"x{cookie}", f"{token_id}.{until}",
             f"{token_id}.{int(until) + 1}.{seal}", f"{token_id}.-1.{seal}",
             f"{token_id}.{'9' * 5000}.{seal}", f"{token_id}.²{until}.{seal}", f"é.{until}.é",
             f"other.{until}.{seal}"]  # fmt: skip
    for changed in wrong:
        with pytest.raises(Unauthenticated):
            sessions.find(changed)
