"""Everybody can read the pages: axe's rules, in light and dark, on a phone, by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from tests.browser.conftest import SERIOUS, Room, listening
from tests.serving import PORT, TREES, People, Rules, small_config

# How far a finger could push the page to the side.
SIDEWAYS = "() => { window.scrollTo(10_000, 0); return window.scrollX; }"
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def room(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """A server on which much has happened: merged, rolled back, refused, waiting."""
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state, Rules(waivable=True))
    config = small_config(state, model=str(base), num_diff_prompts=12)
    with listening(config, people, tmp_path_factory.mktemp("keys")) as found:
        found.server.merged("trees", "trees", TREES)
        found.server.rollback(1)
        found.server.awaiting("port", "port", PORT)
        found.server.answer("stable")
        yield found


def paths(room: Room) -> list[str]:
    proposals = [p["id"] for p in room.server.get("/proposals")["proposals"]]
    request = room.server.ask("base").headers["x-cambium-request-id"]
    return ["/", *(f"/review/{p}" for p in proposals), "/line", "/live", "/my-key",
            f"/trace/{request}", "/playground", "/stop", "/sign-in"]  # fmt: skip


def violations(page: Page) -> list[tuple[str, Any]]:
    # What is folded away counts too.
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = Axe().run(page).response["violations"]
    return [(v["id"], [n["html"][:200] for n in v["nodes"]][:3])
            for v in found if v["impact"] in SERIOUS]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_violation(room: Room, browser: Browser, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)  # axe is put in by a script
    page = context.new_page()
    for path in paths(room):
        page.goto(room.url + path)
        assert violations(page) == [], path
        for button in page.locator("[data-opens]").all()[:4]:
            button.click()
            assert violations(page) == [], (path, "dialog")
            page.keyboard.press("Escape")
    context.close()


def test_axe_would_have_found_one(room: Room, browser: Browser) -> None:
    context = browser.new_context(bypass_csp=True)
    page = context.new_page()
    page.goto(room.url)
    page.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<input>')")
    assert [name for name, _ in violations(page)] == ["label"]
    context.close()


def test_pages_fit_a_phone(room: Room, browser: Browser) -> None:
    context = browser.new_context(viewport=PHONE)
    page = context.new_page()
    for path in paths(room):
        page.goto(room.url + path)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(SIDEWAYS) == 0, path
    context.close()


def test_a_decision_can_be_made_by_keyboard(room: Room, page: Page) -> None:
    waiting = next(p for p in room.server.get("/proposals")["proposals"]
                   if p["state"] == "awaiting_approval")  # fmt: skip
    page.goto(f"{room.url}/review/{waiting['id']}")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    # From the content on: the first thing to reach is the decision.
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Approve", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    focused = page.evaluate("document.activeElement.closest('dialog') !== null")
    assert focused
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Approve", exact=True)).to_be_focused()
