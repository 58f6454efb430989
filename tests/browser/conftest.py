"""A real browser before a real server: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.serving import WAIT_S, People, Server, one_encoder, tiny_base

from cambium.bench.pages import FLAGS
from cambium.serve.app import create_app
from cambium.serve.config import ServerConfig
from cambium.serve.main import Server as WebServer
from cambium.serve.runtime import Runtime
from cambium.serve.store.key_files import save_key

CHROMIUM = os.environ.get("CAMBIUM_CHROMIUM") or shutil.which("chromium")
PATIENCE_MS = 30_000
SERIOUS = ("serious", "critical")


@dataclass(kw_only=True)
class Room:
    """A server that listens, its people's key files, and pages that look at it."""

    url: str
    server: Server
    keys: dict[str, Path]
    complaints: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        """Writes down what the page's console complains of, and what it asks of elsewhere."""
        page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

        def asked(url: str) -> None:
            if not url.startswith((self.url, "data:", "blob:")):
                self.complaints.append(f"asked for {url}")

        page.on("request", lambda request: asked(request.url))


class Client:
    """What `tests.serving.Server` needs of a test client, over a socket."""

    def __init__(self, url: str, app: object) -> None:
        import httpx

        self.app = app
        self._http = httpx.Client(base_url=url, timeout=WAIT_S)
        self.get, self.post, self.delete = self._http.get, self._http.post, self._http.delete
        self.close = self._http.close


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For one file's tests: while it is open, an event loop runs in this thread."""
    if CHROMIUM is None:
        reason = "needs a browser: install Debian's chromium, or set CAMBIUM_CHROMIUM"
        if os.environ.get("CAMBIUM_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    yield context.new_page()
    context.close()


@contextmanager
def listening(config: ServerConfig, people: People, folder: Path) -> Iterator[Room]:
    """Serves over a socket from a thread of this process."""
    with one_encoder():
        runtime = Runtime(config)
    app = create_app(config, opened=runtime)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        web = WebServer(uvicorn.Config(app, log_level="warning", access_log=False), runtime)
        thread = threading.Thread(target=web.run, kwargs={"sockets": [bound]})
        thread.start()
        wait_until(lambda: web.started or not thread.is_alive())
        client = Client(url, app)
        try:
            yield Room(url=url, server=Server(http=client, people=people),  # type: ignore[arg-type]
                       keys=key_files(people, folder))  # fmt: skip
        finally:
            client.close()
            web.stop()
            thread.join()


def key_files(people: People, folder: Path) -> dict[str, Path]:
    """Writes the people's private keys as `cambium init` does; the third's is encrypted."""
    folder.mkdir(exist_ok=True)
    named = {f"approver-{i}": key for i, key in enumerate(people.approvers, 1)}
    named["operator"] = people.operator
    for name, key in named.items():
        secret = b"correct horse" if name == "approver-3" else None
        save_key(key, folder / f"{name}.key", passphrase=secret)
    return {name: folder / f"{name}.key" for name in named}


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
