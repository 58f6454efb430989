"""What a browser must not do: run texts, act for other sites, send a key or a forgery."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, Route, expect
from tests.browser.conftest import Room, listening
from tests.serving import TREES, People, Rules, small_config

XSS = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"


@pytest.fixture(scope="module")
def room(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """A server with a proposal of hostile texts, hostile sources and hostile consent."""
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state, Rules(waivable=True))
    config = small_config(state, model=str(base), num_diff_prompts=12)
    with listening(config, people, tmp_path_factory.mktemp("keys")) as found:
        server = found.server
        server.create("trees")
        server.post("/learn/step", adapter_id="trees", steps=4, lr=0.02, consent=XSS, source=XSS,
                    examples=[{"text": f"{text} {XSS}"} for text in TREES])  # fmt: skip
        proposal = server.propose("trees", "trees")
        assert server.settled(proposal)["state"] == "awaiting_approval"
        yield found


def proposal_of(room: Room) -> str:
    return str(room.server.get("/proposals")["proposals"][0]["id"])


def test_texts_of_strangers_are_shown_and_not_run(room: Room, page: Page) -> None:
    """Completions are the model's, so a diff's texts are put in the place of the computed ones."""
    room.follow(page)
    proposal = proposal_of(room)
    with behaviour_of(room, proposal, XSS):
        for path in (f"/review/{proposal}", "/live", "/line", "/"):
            page.goto(room.url + path)
            expect(page.locator("h1")).to_be_visible()
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert "run" not in page.title() and page.locator("img[src=x]").count() == 0
            if path.startswith("/review"):
                # As a source, a consent, a prompt, two completions and a cluster's terms.
                assert page.get_by_text(XSS).count() >= 5
            if path == "/live":
                assert page.get_by_text(XSS).count() >= 1
    assert room.complaints == []
    hostile = room.server.http.post("/adapters/ephemeral", json={"task_id": XSS})
    assert hostile.status_code == 400


@contextmanager
def behaviour_of(room: Room, proposal: str, text: str) -> Iterator[None]:
    """Lets a proposal's diff say a text everywhere."""
    runtime = room.server.runtime
    filed = runtime.proposals.get(proposal)
    from cambium.serve.diff import diff_of

    found = json.loads(json.dumps(diff_of(filed, runtime, seen=bool)))
    change = {"before": 0.1, "after": 0.3, "effect": 0.2, "low": 0.1, "high": 0.3, "q_value": 0.01,
              "blocks": False, "terms": [text], "medoids": [text],
              "examples": [{"prompt": text, "before": text, "after": text}]}  # fmt: skip
    found["behaviour"] = {"available": True, "discoveries": 1, "num_tested": 1, "omnibus": 0.01,
                          "statement": text, "config": {"q": 0.05},
                          "changes": [change]}  # fmt: skip
    from cambium.serve.dashboard import pages

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "diff_of", lambda *_, **__: found)
        yield


def test_inline_scripts_do_not_run_even_where_escaping_fails(room: Room, page: Page) -> None:
    """The policy is a second wall: what gets into a page as tags runs no more than text does."""
    proposal = proposal_of(room)

    def unescaped(route: Route) -> None:
        answer = route.fetch()
        body = answer.text().replace("<main", f"{XSS}<a href=\"javascript:document.title='run'\" "
                                     'id="bait">x</a><main')  # fmt: skip
        route.fulfill(response=answer, body=body)

    page.route(f"**/review/{proposal}", unescaped)
    page.goto(f"{room.url}/review/{proposal}")
    page.locator("#bait").click()
    assert "run" not in page.title()


ELSEWHERE = b"""<!doctype html><title>elsewhere</title>
<form id=f method=post enctype=text/plain action="%(url)s/proposals/%(id)s/reject">
<input name='{"reason": "from elsewhere", "x": "' value='"}'></form>
<script>
window.go = async () => {
  const all = ["application/json", "text/plain"].map((type) =>
    fetch("%(url)s/proposals/%(id)s/reject", {method: "POST", credentials: "include",
      headers: {"content-type": type}, body: JSON.stringify({reason: "from elsewhere"})})
    .then(async (a) => a.status, () => "refused by the browser"));
  return Promise.all(all);
};
</script>"""


@contextmanager
def another_site(html: bytes) -> Iterator[str]:
    """Serves a page from another port of this machine, which cookies do not tell apart."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(html)

        def log_message(self, *_: object) -> None:
            pass

    site = HTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{site.server_port}"
    finally:
        site.shutdown()
        thread.join()
        site.server_close()


def test_another_sites_page_changes_nothing(room: Room, page: Page) -> None:
    proposal = proposal_of(room)
    before = room.server.everything()
    html = ELSEWHERE % {b"url": room.url.encode(), b"id": proposal.encode()}
    with another_site(html) as elsewhere:
        page.goto(elsewhere)
        assert page.evaluate("window.go()") == ["refused by the browser"] * 2
        with page.expect_navigation():
            page.evaluate("document.getElementById('f').submit()")
        assert "page_forged" in page.content()
    assert room.server.everything() == before


def test_a_forged_signature_is_refused_and_says_so(room: Room, page: Page) -> None:
    proposal = proposal_of(room)

    def forged(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        first = body["signature"][0]
        body["signature"] = ("0" if first != "0" else "1") + body["signature"][1:]
        route.continue_(post_data=json.dumps(body))

    page.route("**/approvals", forged)
    page.goto(f"{room.url}/review/{proposal}")
    page.get_by_role("button", name="Approve", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("File of the private key").set_input_files(room.keys["approver-1"])
    dialog.get_by_role("button", name="Approve", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("does not verify over this payload")
    # Somebody who is no approver signs well, and it counts for nothing.
    page.unroute("**/approvals")
    dialog.get_by_label("File of the private key").set_input_files(room.keys["operator"])
    dialog.get_by_role("button", name="Approve", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("is not an approver of this policy")
    assert room.server.get(f"/proposals/{proposal}")["approvals"] == []


def test_a_key_never_leaves_the_browser(room: Room, page: Page) -> None:
    sent: list[str] = []

    def heard(request: Request) -> None:
        sent.append(f"{request.url} {request.headers} {request.post_data or ''}")

    page.on("request", heard)
    page.goto(f"{room.url}/my-key")
    page.get_by_role("button", name="Keep the key of a file").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("File of the private key").set_input_files(room.keys["approver-2"])
    dialog.get_by_label("Call it").fill("second")
    dialog.get_by_role("button", name="Keep it").click()
    approver = room.server.people.approvers[1]
    row = page.get_by_role("row", name="second")
    expect(row).to_contain_text(approver.key_id)
    expect(row).to_contain_text("approver-2: approves, waives, rolls back")
    # No script can read it out, and it signs all the same.
    read_out = """async () => {
      const keys = await (await import("/static/keys.js")).keptKeys();
      return crypto.subtle.exportKey("pkcs8", keys[0].private).then(() => "read", (e) => e.name);
    }"""
    assert page.evaluate(read_out) == "InvalidAccessError"
    proposal = proposal_of(room)
    page.goto(f"{room.url}/review/{proposal}")
    page.get_by_role("button", name="Approve", exact=True).click()
    expect(page.get_by_label("With the key")).to_have_value(approver.public_key.raw)
    page.get_by_role("dialog").get_by_role("button", name="Approve", exact=True).click()
    expect(page.locator("#governance")).to_contain_text("approver-2")
    secret = room.keys["approver-2"].read_text().splitlines()[1]
    assert sent and not any(secret in text or secret[:20] in text for text in sent)
    # Its signature is the command line's, byte for byte.
    page.goto(f"{room.url}/my-key")
    page.get_by_role("button", name="Forget").click()
    expect(page.get_by_text("This browser keeps no key.")).to_be_visible()


def test_a_key_made_in_the_browser_counts_once_a_policy_lists_it(room: Room, page: Page) -> None:
    page.goto(f"{room.url}/my-key")
    page.get_by_role("button", name="Make a key here").click()
    page.get_by_role("dialog").get_by_label("Call it").fill("laptop")
    page.get_by_role("dialog").get_by_role("button", name="Make it").click()
    row = page.get_by_role("row", name="laptop")
    expect(row).to_contain_text("the server does not know it")
    public = row.locator("[data-says=public]").inner_text()
    room.server.post("/keys", 201, name="laptop", public=public)
    page.reload()
    expect(page.get_by_role("row", name="laptop").first).to_contain_text("no policy lists it")


def test_what_a_role_may_not_do_is_not_offered_and_refused(
    base: Path, tmp_path: Path, browser: Browser
) -> None:
    people, state = People(), tmp_path / "state"
    people.init(state)
    with listening(small_config(state, model=str(base)), people, tmp_path / "keys") as room:
        server = room.server
        server.create("trees")
        server.teach("trees", TREES)
        proposal = server.propose("trees", "trees")
        server.settled(proposal)
        token = server.post("/tokens", 201, name="root", tenant="*", roles=["operator"])["token"]
        bearer = {"authorization": f"Bearer {token}"}
        body = {"name": "learner", "tenant": "default", "roles": ["learner"]}
        learner = server.http.post("/tokens", json=body, headers=bearer).json()["token"]
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{room.url}/review/{proposal}")
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.get_by_label("Token").fill(learner)
        page.get_by_role("button", name="Sign in").click()
        page.goto(f"{room.url}/review/{proposal}")
        # Approvals are valid by signature, whoever carries them; the rest is for reviewers.
        expect(page.get_by_role("button", name="Approve", exact=True)).to_be_visible()
        expect(page.get_by_role("button", name="Reject", exact=True)).to_have_count(0)
        expect(page.get_by_role("button", name="Request another look")).to_have_count(0)
        act = """async (id) => {
          const secret = document.querySelector("meta[name=page-secret]").content;
          const headers = {"content-type": "application/json", "x-cambium-page": secret};
          const body = JSON.stringify({reason: "x"});
          const answer = await fetch(`/proposals/${id}/reject`, {method: "POST", headers, body});
          return (await answer.json()).code;
        }"""
        assert page.evaluate(act, proposal) == "role_missing"
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        context.close()
        server.http._http.headers.update(bearer)  # type: ignore[union-attr]
