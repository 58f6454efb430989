"""The kill switch by hand: hard to press by accident, honest after it, lifted by a quorum."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect
from tests.browser.conftest import listening
from tests.browser.test_review import sign_with
from tests.serving import People, small_config


def test_killed_and_revived_by_clicking(base: Path, tmp_path: Path, page: Page) -> None:
    people, state = People(), tmp_path / "state"
    people.init(state)
    with listening(small_config(state, model=str(base)), people, tmp_path / "keys") as room:
        page.goto(f"{room.url}/stop")
        page.get_by_role("button", name="Stop everything").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("File of the private key").set_input_files(room.keys["operator"])
        stop = dialog.get_by_role("button", name="Stop everything")
        # Neither a click alone, nor a careless word, presses it.
        stop.click()
        dialog.get_by_label("Why?").fill("a drill")
        stop.click()
        dialog.get_by_label("Write STOP").fill("stop")
        stop.click()
        assert room.server.get("/kill")["killed"] is False
        dialog.get_by_label("Write STOP").fill("STOP")
        stop.click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Killed")
        expect(page.get_by_text("By operator.")).to_be_visible()
        assert room.server.get("/kill")["reason"] == "a drill"
        assert room.server.ask("stable").status_code == 503
        # Every page says so, and none offers what nobody would do.
        page.goto(room.url)
        expect(page.get_by_role("alert")).to_contain_text("Killed. Nothing is learned")

        page.goto(f"{room.url}/stop")
        sign_with(page, "Sign a revival", room.keys["approver-1"])
        expect(page.get_by_text("1 of 2 signed to revive: approver-1")).to_be_visible()
        # The operator who stopped it cannot lift it.
        sign_with(page, "Sign a revival", room.keys["operator"])
        expect(page.get_by_role("alert").last).to_contain_text("is not an approver")
        page.keyboard.press("Escape")
        sign_with(page, "Sign a revival", room.keys["approver-2"])
        page.get_by_role("button", name="Revive").click()
        page.get_by_role("dialog").get_by_role("button", name="Revive").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Stop everything")
        assert room.server.ask("stable").status_code == 200
