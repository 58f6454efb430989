"""Pages that follow the server, a request's trace, and models side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tests.browser.conftest import Room, listening
from tests.serving import TREES, People, Rules, small_config

# Counts the events at which a page would be taken anew, once it has had the time for that.
HEAR = """() => {
  let heard = 0;
  new EventSource("/events").addEventListener("change", () =>
    setTimeout(() => (document.body.dataset.heard = String(++heard)), 1100));
}"""


@pytest.fixture
def room(base: Path, tmp_path: Path) -> Iterator[Room]:
    people = People()
    people.init(tmp_path / "state")
    config = small_config(tmp_path / "state", model=str(base))
    with listening(config, people, tmp_path / "keys") as found:
        yield found


def test_the_live_page_follows_and_its_history_survives(
    base: Path, tmp_path: Path, page: Page
) -> None:
    people = People()
    people.init(tmp_path / "state", Rules(margin=0.05))
    config = small_config(tmp_path / "state", model=str(base))
    with listening(config, people, tmp_path / "keys") as room:
        page.goto(f"{room.url}/live")
        expect(page.locator("#following")).to_have_text("live")
        expect(page.locator("#requests")).to_contain_text("None yet.")
        # No click and no reload from here on.
        room.server.create("trees")
        expect(page.locator("#adapters")).to_contain_text("not taught yet")
        room.server.teach("trees", TREES)
        expect(page.locator("#adapters")).to_contain_text("alignment green")
        expect(page.locator("#lessons")).to_contain_text("15 examples")
        room.server.quarantine("harm")
        expect(page.locator("#adapters")).to_contain_text("quarantined")
        asked = room.server.ask("trees").headers["x-cambium-request-id"]
        expect(page.locator("#requests")).to_contain_text(asked[:12])
        expect(page.locator("#now")).to_contain_text("10000.0 per 10,000 requests")
    expect(page.locator("#following")).to_have_text("not connected; trying again")
    with listening(config, people, tmp_path / "again") as room:
        page.goto(f"{room.url}/live")
        expect(page.locator("#requests")).to_contain_text(asked[:12])
        expect(page.locator("#lessons")).to_contain_text("trees")
        page.get_by_role("link", name=asked[:12]).click()
        expect(page.get_by_role("heading", level=1)).to_contain_text(asked)
        trace = room.server.get(f"/traces/{asked}")
        for said in (trace["adapters"][0]["adapter"], str(trace["adapters"][0]["delta_norm"]),
                     trace["attestation"], "No tripwire is installed"):  # fmt: skip
            expect(page.locator("main")).to_contain_text(said)
        page.goto(f"{room.url}/trace/req-nobody")
        expect(page.locator("main")).to_contain_text("no answered request has the id")


def test_what_is_open_stays_open_while_a_page_follows(room: Room, page: Page) -> None:
    room.server.create("trees")
    room.server.teach("trees", TREES)
    page.goto(f"{room.url}/live")
    expect(page.locator("#following")).to_have_text("live")
    page.get_by_role("button", name="Propose").click()
    page.get_by_label("Into the domain").fill("half a wo")
    # Two events a page would follow, the second after the first was dealt with.
    page.evaluate(HEAR)
    for number in (1, 2):
        room.server.answer("base")
        page.wait_for_selector(f"body[data-heard='{number}']")
    expect(page.get_by_label("Into the domain")).to_have_value("half a wo")
    page.keyboard.press("Escape")
    room.server.answer("base")
    expect(page.locator("#requests tbody tr")).to_have_count(3)
    # Whoever stood on a button stands on it still, in what has come instead.
    room.server.teach("trees", TREES)
    expect(page.locator("#adapters")).to_contain_text("8 of")
    expect(page.get_by_role("button", name="Propose")).to_be_focused()


def test_models_side_by_side(room: Room, page: Page) -> None:
    room.follow(page)
    room.server.create("trees")
    room.server.teach("trees", [f"{t} <b>bold</b>" for t in TREES], steps=8)
    page.goto(f"{room.url}/playground?model=trees")
    page.get_by_label("Prompt").fill("Fact 7: the tree <i>")
    page.get_by_label("Tokens").fill("12")
    page.get_by_role("button", name="Continue it").click()
    expect(page.locator("#compared article")).to_have_count(2)
    _, taught = page.locator("#compared article").all()
    # What stands there is what the API answers, and what the API says of each token.
    body = {"model": "trees", "prompt": "Fact 7: the tree <i>", "max_tokens": 12,
            "temperature": 0, "logprobs": 0}  # fmt: skip
    (choice,) = room.server.http.post("/v1/completions", json=body).json()["choices"]
    assert taught.locator(".written").inner_text() == choice["text"]
    shown = [float(t.split(" ")[0]) for t in
             taught.locator(".token").evaluate_all("all => all.map(t => t.title)")]  # fmt: skip
    told = [round(2.718281828459045**v, 3) for v in choice["logprobs"]["token_logprobs"]]
    assert shown == pytest.approx(told, abs=2e-3)
    assert page.locator("#compared i, #compared b").count() == 0
    # Drawn instead: the same seed draws the same, and so does the API.
    page.get_by_label("Temperature").fill("0.9")
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Continue it").click()
    expect(page.locator("#compared")).to_contain_text("drawn from each at temperature 0.9")
    body |= {"temperature": 0.9, "seed": 7}
    (choice,) = room.server.http.post("/v1/completions", json=body).json()["choices"]
    _, taught = page.locator("#compared article").all()
    assert taught.locator(".written").inner_text() == choice["text"]
    taught.get_by_role("link", name="trace").click()
    expect(page.locator("main")).to_contain_text("by playground")
    assert room.complaints == []


def test_a_comparison_that_cannot_be_is_refused_in_words(room: Room, page: Page) -> None:
    page.goto(f"{room.url}/playground")
    page.get_by_label("Prompt").fill("tree " * 400)
    page.get_by_role("button", name="Continue it").click()
    expect(page.get_by_role("alert")).to_contain_text("leaves no room for 48 more")
