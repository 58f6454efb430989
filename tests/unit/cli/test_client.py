"""How calls reach a server and how its answers are read."""

from __future__ import annotations

import contextlib
import socket

import pytest

from cambium.cli.client import _application, connect, segment
from cambium.cli.failures import CommandFailed


def test_the_token_goes_with_every_call(stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.answers["GET /adapters"] = (200, {"adapters": []})
    with connect(None) as client:
        client.get("/adapters")
    monkeypatch.setenv("CAMBIUM_TOKEN", "secret")
    with connect(None) as client:
        client.get("/adapters")
    assert [h.get("authorization") for h in stage.headers] == [None, "Bearer secret"]


def test_no_server_is_said_with_a_mend(cambium, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("CAMBIUM_URL", f"http://127.0.0.1:{port}")
    ended = cambium("adapters")
    assert ended.status == 3
    assert ended.out == ""
    assert len(ended.err.splitlines()) == 1
    assert f"no server answers at http://127.0.0.1:{port}" in ended.err
    assert "cambium serve" in ended.err


@pytest.mark.parametrize(
    "address", ["ftp://x", "127.0.0.1:8321", "http://", "http://[::1", "nonsense"]
)
def test_an_address_that_is_none_is_a_wrong_call(
    cambium, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("CAMBIUM_URL", address)
    ended = cambium("adapters")
    assert (ended.status, len(ended.err.splitlines())) == (2, 1)
    assert "CAMBIUM_URL" in ended.err


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ((200, "<html>"), 3),
        ((200, ["a list"]), 3),
        ((200, {"other": []}), 3),
        ((200, {"adapters": "none"}), 3),
        ((502, "bad gateway"), 3),
        ((404, "not here"), 2),
        ((302, {}), 3),
        ((409, {"detail": "no", "code": "illegal_transition"}), 1),
        ((500, {"detail": "first line\nsecond \x1b[31mline"}), 3),
    ],
)
def test_every_odd_answer_is_one_line(cambium, stage, answer, status: int) -> None:
    stage.answers["GET /adapters"] = answer
    ended = cambium("adapters")
    assert (ended.status, ended.out, len(ended.err.splitlines())) == (status, "", 1)
    assert "\x1b" not in ended.err


def test_an_application_in_process_lives_as_long_as_the_block(local) -> None:
    stage, application = local
    alive = []

    @contextlib.asynccontextmanager
    async def lifespan(_: object):
        alive.append("open")
        yield
        alive.append("closed")

    stage.answers["POST /x"] = lambda body: (200, {"seen": body})
    with _application(application(lifespan=lifespan)) as client:
        assert client.in_process
        assert client.post("/x", {"a": 1}) == {"seen": {"a": 1}}
        assert alive == ["open"]
    assert alive == ["open", "closed"]


def test_an_application_that_cannot_start_raises_its_own_error(local) -> None:
    _, application = local

    @contextlib.asynccontextmanager
    async def lifespan(_: object):
        raise ValueError("held")
        yield

    with pytest.raises(ValueError, match="held"), _application(application(lifespan=lifespan)):
        pass


def test_an_error_inside_an_application_is_an_answer(local) -> None:
    stage, application = local

    def broken(_: object):
        raise KeyError("bug")

    stage.answers["GET /x"] = broken
    with _application(application()) as client, pytest.raises(CommandFailed) as caught:
        client.get("/x")
    assert caught.value.status == 3


def test_a_name_stays_one_segment_of_the_path() -> None:
    assert segment("a/../b?c") == "a%2F..%2Fb%3Fc"
    assert segment("name@sha256:00") == "name@sha256:00"
    for name in ("", ".", ".."):
        with pytest.raises(CommandFailed):
            segment(name)
