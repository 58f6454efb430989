"""By clicking and signing: from a fresh server to a merged and to a refused proposal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tests.browser.conftest import Room, listening
from tests.serving import PORT, TREES, People, small_config


@pytest.fixture(scope="module")
def room(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state)
    config = small_config(state, model=str(base), num_diff_prompts=12)
    with listening(config, people, tmp_path_factory.mktemp("keys")) as found:
        yield found


def sign_with(page: Page, button: str, file: Path, *, passphrase: str = "") -> None:
    """Opens a dialog, chooses the file of a key and signs."""
    page.get_by_role("button", name=button, exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    dialog.get_by_label("File of the private key").set_input_files(file)
    if passphrase:
        dialog.get_by_label("Passphrase of the file").fill(passphrase)
    dialog.get_by_role("button", name=button, exact=True).click()


def another(page: Page, file: Path, *, passphrase: str = "") -> None:
    """Approves with another key than this browser's, which has signed."""
    page.get_by_role("button", name="Sign with another key").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("File of the private key").set_input_files(file)
    if passphrase:
        dialog.get_by_label("Passphrase of the file").fill(passphrase)
    dialog.get_by_role("button", name="Approve", exact=True).click()


def test_from_a_fresh_server_to_a_merge_and_back(room: Room, page: Page) -> None:
    room.follow(page)
    page.goto(room.url)
    expect(page.get_by_text("None yet.")).to_be_visible()
    room.server.create("trees")
    room.server.teach("trees", TREES)

    page.get_by_role("link", name="Live", exact=True).click()
    page.get_by_role("button", name="Propose").click()
    page.get_by_label("Into the domain").fill("trees")
    page.get_by_role("dialog").get_by_role("button", name="Propose").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("trees into trees")
    # The page follows the gates by itself.
    expect(page.locator(".state").first).to_have_text("awaiting approval")
    expect(page.get_by_role("button", name="Merge", exact=True)).to_have_count(0)

    sign_with(page, "Approve", room.keys["approver-1"])
    expect(page.locator("#said")).to_have_text("Your approval is in the log.")
    expect(page.locator(".status")).to_contain_text("1 of 2 approvals (approver-1)")
    expect(page.get_by_text("You have signed, as approver-1.")).to_be_visible()
    expect(page.get_by_role("button", name="Approve", exact=True)).to_have_count(0)
    # What the server sends anew says so too, and the same key counts once.
    room.server.answer("base")
    another(page, room.keys["approver-1"])
    expect(page.get_by_role("alert")).to_contain_text("Refused:")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    # An encrypted key asks for its passphrase, and says when it is the wrong one.
    another(page, room.keys["approver-3"], passphrase="wrong")
    expect(page.get_by_role("alert")).to_contain_text("does not open with this passphrase")
    page.get_by_role("dialog").get_by_label("Passphrase of the file").fill("correct horse")
    page.get_by_role("dialog").get_by_role("button", name="Approve", exact=True).click()
    expect(page.locator(".state").first).to_have_text("mergeable")
    expect(page.locator("#governance")).to_contain_text("approver-3")
    expect(page.get_by_text("You have signed, as approver-1 and approver-3.")).to_be_visible()

    page.get_by_role("button", name="Merge", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Merge", exact=True).click()
    expect(page.locator(".state").first).to_have_text("merged")
    served = room.server.get("/revisions")["revisions"][-1]
    assert (served["number"], served["kind"], served["served"]) == (2, "merge", True)

    page.get_by_role("link", name="Revisions and drift").click()
    sign_with(page, "Sign a rollback to 1", room.keys["approver-1"])
    expect(page.get_by_text("1 of 2 signed: approver-1")).to_be_visible()
    assert len(room.server.get("/revisions")["revisions"]) == 2
    sign_with(page, "Sign a rollback to 1", room.keys["approver-2"])
    page.get_by_role("button", name="Roll back to 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back to 1").click()
    expect(page.get_by_role("cell", name="rollback to 1", exact=True)).to_be_visible()
    served = room.server.get("/revisions")["revisions"][-1]
    assert (served["number"], served["of"], served["bank"]) == (3, 1, {})
    assert room.server.get("/signatures")["signatures"] == []
    # The one refusal, of the second signature by one key; no broken script, nothing from elsewhere.
    assert [c for c in room.complaints if "409 (Conflict)" not in c] == []


def test_a_proposal_is_refused_with_a_reason(room: Room, page: Page) -> None:
    room.server.create("port")
    room.server.teach("port", PORT)
    proposal = room.server.propose("port", "port")
    room.server.settled(proposal)
    page.goto(f"{room.url}/review/{proposal}")
    page.get_by_role("button", name="Request another look").click()
    page.get_by_role("dialog").get_by_role("button", name="Request another look").click()
    expect(page.locator("#said")).to_have_text("Looked once more.")
    assert room.server.get(f"/proposals/{proposal}")["gates"][0]["looks"] == 2

    # Somebody else has one more look taken: what was read is not what would be signed.
    expect(page.locator("#evals")).to_contain_text("2 of 4 taken")
    page.locator("#behaviour summary").first.click()
    room.server.post("/gates/align_review", proposal_id=proposal)
    expect(page.locator("#said")).to_contain_text("The evidence has changed")
    expect(page.locator("#evals")).to_contain_text("3 of 4 taken")

    page.get_by_role("button", name="Reject", exact=True).click()
    page.get_by_label("Why? It goes into the log.").fill("It says <b>nothing</b> new.")
    page.get_by_role("dialog").get_by_role("button", name="Reject", exact=True).click()
    expect(page.locator(".status")).to_contain_text("It says <b>nothing</b> new.")
    assert room.server.get(f"/proposals/{proposal}")["state"] == "rejected"
    expect(page.get_by_role("button", name="Approve")).to_have_count(0)


def test_what_a_stuck_candidate_writes_comes_when_it_is_asked_for(room: Room, page: Page) -> None:
    room.server.create("few")
    room.server.teach("few", TREES[:4])
    proposal = room.server.propose("few", "few")
    assert room.server.settled(proposal)["state"] == "checking"
    page.goto(f"{room.url}/review/{proposal}")
    page.get_by_role("button", name="Compare what it writes").click()
    page.get_by_role("dialog").get_by_role("button", name="Compare what it writes").click()
    expect(page.locator("#said")).to_contain_text("Asked for")
    # No reload from here on: the page follows.
    expect(page.locator("#behaviour")).to_contain_text("groups changed their share")
    expect(page.get_by_role("button", name="Compare what it writes")).to_have_count(0)
    assert room.server.get(f"/proposals/{proposal}")["state"] == "checking"
