"""The commands' way to a server: over HTTP, or to one that runs inside this very process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from cambium.cli.failures import BROKEN, WRONG_CALL, CommandFailed, from_problem, status_of_http
from cambium.cli.output import hide_loading_bars
from cambium.serve.errors import StateLocked

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8321"
# One call may train for minutes; reaching the server may not.
READ_TIMEOUT_S = 900.0
CONNECT_TIMEOUT_S = 5.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Client:
    """Sends JSON and reads JSON objects.

    Every method raises `CommandFailed` for an answer other than 2xx or one that is not a JSON
    object. `in_process` says whether the server ends with this command.
    """

    def __init__(self, send: Callable[..., httpx.Response], *, in_process: bool) -> None:
        self._send = send
        self.in_process = in_process

    def get(self, path: str, **params: str | int) -> dict[str, Any]:
        """Returns the answer to a GET."""
        return self._read(self._send("GET", path, params=params))

    def post(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        """Returns the answer to a POST."""
        return self._read(self._send("POST", path, json=body))

    def delete(self, path: str) -> dict[str, Any]:
        """Returns the answer to a DELETE."""
        return self._read(self._send("DELETE", path))

    def download(self, path: str) -> bytes:
        """Returns the bytes that answer to a GET."""
        response = self._send("GET", path)
        if not response.is_success:
            self._read(response)
        return bytes(response.content)

    def rows(self, path: str, field: str, **params: str | int) -> list[dict[str, Any]]:
        """Returns the list that the answer to a GET holds under `field`."""
        return rows_of(self.get(path, **params), field)

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.is_success and isinstance(answer, dict):
            return answer
        if isinstance(answer, dict) and not response.is_success:
            raise from_problem(response.status_code, answer)
        status = BROKEN if response.is_success else status_of_http(response.status_code)
        raise CommandFailed(
            f"{response.url} answered {response.status_code} without a JSON object: "
            "is CAMBIUM_URL a Cambium server?",
            status=status,
        )


def rows_of(answer: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """Returns the list of objects under `field`; a missing one is a failure, not an empty list."""
    rows = answer.get(field)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CommandFailed(f"the server's answer has no list {field!r}: use a server of this "
                            "version", status=BROKEN)  # fmt: skip
    return rows


def segment(name: str) -> str:
    """Returns `name` as one segment of a path, whatever characters it holds."""
    if name in ("", ".", ".."):
        raise CommandFailed(f"{name!r} is not a name: give one", status=WRONG_CALL)
    return quote(name, safe="@:")


@contextmanager
def connect(state: Path | None) -> Iterator[Client]:
    """Gives a client of the server at `CAMBIUM_URL`, or of the state folder opened here.

    Raises:
        CommandFailed: the address is not HTTP, or another process holds the state.
    """
    if state is None:
        with _remote() as client:
            yield client
        return
    try:
        with _in_process(state) as client:
            yield client
    except StateLocked as error:
        raise CommandFailed(
            f"{error.message}: leave out --state and set CAMBIUM_URL to that server",
            status=WRONG_CALL,
        ) from error


@contextmanager
def _remote() -> Iterator[Client]:
    import httpx

    address = os.environ.get("CAMBIUM_URL") or DEFAULT_URL
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, ValueError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise CommandFailed(f"CAMBIUM_URL is {address!r}: set an http address", status=WRONG_CALL)
    token = os.environ.get("CAMBIUM_TOKEN")
    with httpx.Client(
        base_url=url,
        headers={"authorization": f"Bearer {token}"} if token else {},
        timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        # A proxy could not reach this machine's loopback.
        trust_env=url.host not in _LOOPBACK,
    ) as session:

        def send(method: str, path: str, **content: Any) -> httpx.Response:
            try:
                return session.request(method, path, **content)
            except httpx.TimeoutException as error:
                line = f"{address} did not answer in time: look at its log"
                raise CommandFailed(line, status=BROKEN) from error
            except httpx.HTTPError as error:
                line = f"no server answers at {address}: {error}"
                mend = "start `cambium serve`, set CAMBIUM_URL, or give --state DIR"
                raise CommandFailed(f"{line}: {mend}", status=BROKEN) from error

        yield Client(send, in_process=False)


@contextmanager
def _in_process(state: Path) -> Iterator[Client]:
    """Runs the server's application without a socket; its lifespan takes and frees the lock."""
    from cambium.serve.app import create_app
    from cambium.serve.config import ServerConfig

    hide_loading_bars()
    with _application(create_app(ServerConfig(state=state, in_process=True))) as client:
        yield client


@contextmanager
def _application(app: Any) -> Iterator[Client]:
    """Gives a client of a Starlette application that lives as long as the block."""
    import httpx
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal() as portal:
        lifespan = app.router.lifespan_context(app)
        with portal.wrap_async_context_manager(lifespan):
            session = httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app, raise_app_exceptions=False),
                base_url="http://127.0.0.1",
                timeout=None,
            )

            def send(method: str, path: str, **content: Any) -> httpx.Response:
                return portal.call(partial(session.request, method, path, **content))

            try:
                yield Client(send, in_process=True)
            finally:
                portal.call(session.aclose)
