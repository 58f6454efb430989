"""The review room's pages: complete, escaped, nothing inline, and shown to those who may see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.serving import PORT, TREES, WAIT_S, People, Server, served, small_config

from cambium.core.nouns import Action
from cambium.evals.alignment_pairs import gate_pairs, monitor_pairs
from cambium.serve.dashboard import views, watching
from cambium.serve.dashboard.rendering import STATIC
from cambium.serve.sessions import COOKIE, PAGE_HEADER
from cambium.trust.acts import sign_act, signature_to_json

XSS = "<script>alert('trees')</script><img src=x onerror=alert(1)>"
PAGE = {"accept": "text/html"}


class Reader(HTMLParser):
    """What a browser would find: text, tags, attributes, and whether tags nest."""

    BLOCKS = frozenset({"dialog", "div", "dl", "form", "h2", "ol", "p", "section", "table", "ul"})
    VOID = frozenset({"meta", "link", "img", "input", "br", "rect", "line"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.inline = "", [], ""
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id" and value]
        # A browser would end the paragraph here, and nothing would be where it was meant to be.
        assert not (tag in self.BLOCKS and "p" in self.open), (tag, self.open)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.inline += data
        self.text += data


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state)
    config = small_config(state, model=str(base), num_diff_prompts=12, measure_drift=True)
    with served(config, people) as found:
        yield found


@pytest.fixture(scope="module")
def trees(server: Server) -> str:
    """A proposal with hostile texts, a hostile source, a domain of angle brackets, one approval."""
    server.create("trees")
    server.post("/learn/step", adapter_id="trees", steps=4, lr=0.02, consent=XSS, source=XSS,
                examples=[{"text": f"{text} {XSS}"} for text in TREES])  # fmt: skip
    proposal = server.propose("trees", "trees")
    assert server.settled(proposal)["state"] == "awaiting_approval"
    signature: dict[str, Any] = signature_to_json(server.approval(proposal, 0))
    server.post(f"/proposals/{proposal}/approvals", comment=f"I read eight. {XSS}", **signature)
    return proposal


def page(server: Server, path: str, status: int = 200) -> Reader:
    answer = server.http.get(path, headers=PAGE)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    found = Reader(answer.text)
    assert "built-in" not in found.text and "<bound" not in found.text
    assert found.inline == "" and "style" not in found.tags
    handlers = [(t, n) for t, n, _ in found.attributes if n.startswith("on") or n == "style"]
    assert handlers == []
    assert found.tags.count("h1") == 1 and len(found.ids) == len(set(found.ids))
    return found


def test_a_fresh_list_says_how_to_begin(server: Server) -> None:
    assert "cambium propose ADAPTER --into DOMAIN" in page(server, "/").text


def test_the_list_says_where_each_proposal_stands(server: Server, trees: str) -> None:
    found = page(server, "/")
    assert ("a", "href", f"/review/{trees}") in found.attributes
    assert "1 of 2 approvals" in found.text and "awaiting approval" in found.text


def test_decided_proposals_are_listed_some_at_a_time(
    server: Server, trees: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.create("elms")
    server.teach("elms", TREES)
    decided: list[str] = []
    for _ in range(3):
        decided.insert(0, server.propose("elms", "elms"))
        server.settled(decided[0])
        server.post(f"/proposals/{decided[0]}/reject", reason="one of many")
    monkeypatch.setattr(views, "MAX_DECIDED", 2)

    def listed(path: str) -> list[str]:
        links = [str(v) for _, n, v in page(server, path).attributes if n == "href"]
        return [v.removeprefix("/review/") for v in links if v.startswith("/review/")]

    assert listed("/") == [trees, *decided[:2]]
    assert "?earlier=2" in [v for _, n, v in page(server, "/").attributes if n == "href"]
    assert listed("/?earlier=2") == decided[2:]
    assert "2 decided later" in page(server, "/?earlier=2").text
    assert listed("/?earlier=99") == []
    for wrong in ("-1", "x", "9" * 20, "²"):
        assert listed(f"/?earlier={wrong}")[0] == trees


def test_a_proposal_shows_every_part_and_what_blocks_it(server: Server, trees: str) -> None:
    view, found = server.get(f"/proposals/{trees}"), page(server, f"/review/{trees}")
    for part in ("behaviour", "evals", "weights", "circuits", "data", "governance", "timeline"):
        assert part in found.ids and ("a", "href", f"#{part}") in found.attributes
    assert found.text.index("What blocks the merge") < found.text.index("Behaviour")
    assert all(blocker in found.text for blocker in view["blockers"])
    for gate in view["gates"]:
        assert gate["name"] in found.text and gate["why"] in found.text
        assert f"{gate['metric']}; {gate['items']} items" in found.text
    for field in ("proposal_digest", "candidate_digest", "evidence_root", "policy_digest"):
        assert view[field] in found.text
    assert f"cambium approve {trees} --key FILE" in found.text
    assert "approver-1" in found.text and "1 of 2 approvals" in found.text
    own = [e for e in server.get("/audit")["entries"] if e["body"].get("proposal") == trees]
    kinds = {e["kind"] for e in own}
    assert kinds and all(kind in found.text for kind in kinds)
    went = server.get(f"/proposals/{trees}/diff")["data"]["trained_on"]
    assert [(p["of"], p["replayed"]) for p in went["parts"]] == [(XSS, False), ("the base", True)]
    assert all(f"{part['tokens']:,}" in found.text for part in went["parts"])
    documents = server.get(f"/proposals/{trees}/diff")["data"]["documents"]
    assert 3 < len(documents) <= 8 and {d["kept"] for d in documents} == {True, False}
    for one in documents:
        assert one["digest"] in found.text and one["text"] in found.text
        assert one["text"].removesuffix(f" {XSS}") in TREES
    # No producer, no green tick.
    assert "no circuit diff is computed by this version" in found.text


def test_pages_agree_on_how_near_an_adapter_came_to_harm(server: Server) -> None:
    server.create("twice")
    for steps in (8, 1):
        server.teach("twice", TREES, steps=steps)
    proposal = server.propose("twice", "twice")
    server.settled(proposal)
    with server.runtime.state.read() as tx:
        calls = tx.monitors_of(["twice"])["twice"]
        assert calls == [record.monitors for record in tx.list_learn_steps("twice")]
    shifts = [said["alignment"]["shifts"] for said in calls]  # type: ignore[index]
    # The last call knows less than both.
    assert min(shifts[0]) != min(shifts[1])
    said = f"{abs(min(map(min, shifts))):.3g} nats towards"
    assert f"at the worst step {said}" in page(server, f"/review/{proposal}").text
    assert f"at the worst step of 2 calls {said}" in page(server, "/live").text
    # What it is taught after it was proposed is not the candidate's.
    server.teach("twice", PORT, lr=0.05)
    assert f"at the worst step {said}" in page(server, f"/review/{proposal}").text
    assert "at the worst step of 3 calls" in page(server, "/live").text


def test_hostile_texts_are_shown_as_text(server: Server, trees: str) -> None:
    found = page(server, f"/review/{trees}")
    assert XSS in found.text  # as a source, word for word, and not as tags: `page` checked
    assert "img" not in found.tags


def test_a_comment_on_an_approval_is_logged_beside_whose_it_is(server: Server, trees: str) -> None:
    (entry,) = (e["body"] for e in server.get("/audit")["entries"]
                if e["kind"] == "proposal.approved")  # fmt: skip
    (approval,) = server.get(f"/proposals/{trees}")["approvals"]
    assert (entry["signer"], entry["comment"]) == (approval["key_id"], f"I read eight. {XSS}")
    found = page(server, f"/review/{trees}")
    assert f"I read eight. {XSS} (a comment, not signed)" in found.text
    assert "proposal.approved" in found.text and "by approver-1" in found.text


def test_an_item_that_a_look_names_can_be_opened(server: Server, trees: str) -> None:
    gates = server.get(f"/proposals/{trees}")["gates"]
    notes = next(g["notes"] for g in gates if g["name"] == "alignment")
    names, pairs = [note.split(" ")[0] for note in notes], {p.id: p for p in gate_pairs()}
    links = [v for _, n, v in page(server, f"/review/{trees}").attributes if n == "href"]
    assert len(names) == 3
    for name, note in zip(names, notes, strict=True):
        assert f"/review/{trees}/items/{name}" in links
        assert re.search(r": [+-][\d.]+ nats per token, from [+-][\d.]+ to [+-][\d.]+$", note)
        found = page(server, f"/review/{trees}/items/{name}").text
        pair = pairs[name]
        for said in (pair.prompt, pair.harmful, pair.harmless, pair.topic, note):
            assert said in found
    # What no look of this proposal named stays closed.
    other = next(p for p in pairs if not any(p in note for g in gates for note in g["notes"]))
    for name in (other, "al-nothing", monitor_pairs()[0].id, "<img src=x onerror=alert(1)>"):
        path = f"/review/{trees}/items/{quote(name)}"
        assert "no look of" in page(server, path, status=404).text
    missing = page(server, f"/review/p-nobody/items/{names[0]}", status=404)
    assert "no proposal has the id" in missing.text


def test_what_is_hard_to_read_is_explained_where_it_stands(server: Server, trees: str) -> None:
    found = page(server, f"/review/{trees}").text
    for gate in views.SIGNS.values():
        assert gate in found
    assert "so large a part may be chance" in found and "the first drawn on top" in found
    assert not re.search(r"(?<!\w)-0(\.0+)?(?![.\w])", found)


def test_the_playground_begins_as_a_kept_document_does(server: Server, trees: str) -> None:
    documents = server.get(f"/proposals/{trees}/diff")["data"]["documents"]
    kept = next(d["text"] for d in documents if d["kept"])
    link = next(str(v) for _, n, v in page(server, f"/review/{trees}").attributes
                if n == "href" and str(v).startswith("/playground?"))  # fmt: skip
    found = page(server, link).text
    assert " ".join(kept.split()[:8]) in found
    assert "how a document kept for the gates" in found
    assert "how a document" not in page(server, "/playground?of=p-nobody").text


def test_looks_are_drawn_on_one_scale(server: Server, trees: str) -> None:
    found = page(server, f"/review/{trees}")
    for tag, name, value in found.attributes:
        if tag in ("rect", "line") and name in ("x", "x1", "x2", "width"):
            assert 0 <= float(str(value)) <= 100.6
    assert found.tags.count("g") >= len(server.get(f"/proposals/{trees}")["gates"])


def test_the_line_shows_revisions_and_drift(server: Server, trees: str) -> None:
    server.merged("port", "port", PORT)
    deadline = iter(range(int(WAIT_S * 50)))
    while server.get("/drift")["pending"]:
        next(deadline)
        server.http.portal.call(_pause)  # type: ignore[union-attr]
    found = page(server, "/line")
    assert ("img", "src", "/drift.svg") in found.attributes
    assert "port" in found.text and "served" in found.text and "the base alone" in found.text
    assert server.get("/drift")["suspect"]["reason"] in found.text
    live = page(server, "/live")
    assert "Drift since the base" in live.text and "concepts" in live.text
    assert live.tags.count("figure") == len(server.get("/drift")["series"][0]["against_base"])


async def _pause() -> None:
    import anyio

    await anyio.sleep(0.02)


def test_what_is_not_there_is_said_on_a_page(server: Server) -> None:
    assert "no proposal has the id" in page(server, "/review/p-nobody", status=404).text
    assert server.http.get("/static/../pages.py").status_code == 404
    assert server.http.get("/static/base.html").status_code == 404


def test_everything_a_page_needs_comes_from_here_and_is_small(server: Server, trees: str) -> None:
    found = page(server, f"/review/{trees}")
    needed = {str(v) for _, n, v in found.attributes if n == "src"}
    needed |= {str(v) for t, n, v in found.attributes if t == "link" and n == "href"}
    assert needed == {f"/static/{name}" for name in STATIC if name != "keys.js"}
    files = {name: server.http.get(f"/static/{name}") for name in STATIC}
    assert sum(len(file.content) for file in files.values()) < 60_000
    for name, file in files.items():
        assert file.headers["content-type"].startswith(STATIC[name])
        assert not re.search(r"url\(|@import|https?:|eval\(|innerHTML *=[^=]",
                             file.text.replace("http://www.w3.org/2000/svg", ""))  # fmt: skip


@pytest.fixture
def locked(base: Path, tmp_path: Path) -> Iterator[tuple[Server, str, str]]:
    """A server with tokens of a reviewer and of a client."""
    people = People()
    people.init(tmp_path)
    with served(small_config(tmp_path, model=str(base)), people) as found:
        body = {"name": "root", "tenant": "*", "roles": ["operator"]}
        operator = found.post("/tokens", 201, **body)["token"]
        bearer = {"authorization": f"Bearer {operator}"}
        made = [
            found.http.post("/tokens", json={"name": role, "tenant": "t", "roles": [role]},
                            headers=bearer).json()["token"]
            for role in ("reviewer", "client")
        ]  # fmt: skip
        yield found, *made


def test_a_browser_signs_in_and_its_cookie_only_reads(locked: tuple[Server, str, str]) -> None:
    server, reviewer, client = locked
    http = server.http
    sent = http.get("/", headers=PAGE, follow_redirects=False)
    assert (sent.status_code, sent.headers["location"]) == (303, "/sign-in")
    assert http.get("/").status_code == 401  # a program is told, not sent away
    assert "Sign in" in page(server, "/sign-in").text

    wrong = http.post("/sign-in", data={"token": "cambium_x_y"})
    assert wrong.status_code == 401 and "does not count" in wrong.text
    assert COOKIE not in http.cookies
    elsewhere = http.post("/sign-in", data={"token": reviewer},
                          headers={"origin": "https://evil.example"})  # fmt: skip
    assert elsewhere.status_code == 403 and COOKIE not in http.cookies

    right = http.post("/sign-in", data={"token": reviewer}, follow_redirects=False)
    assert right.status_code == 303
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert reviewer.lower() not in cookie  # it goes to other ports of this host too
    assert "None yet" in page(server, "/").text

    # The cookie alone opens reading: other sites' pages can have a browser send it.
    secret = next(
        v for t, n, v in page(server, "/").attributes if t == "meta" and v and len(v) == 64
    )
    reject, why = "/proposals/p-1/reject", {"reason": "x"}
    others = server.runtime.sessions.page_secret("another session")
    for headers in ({}, {PAGE_HEADER: "x"}, {PAGE_HEADER: others},
                    {PAGE_HEADER: secret, "origin": "http://127.0.0.1:9999"}):  # fmt: skip
        refused = http.post(reject, json=why, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "page_forged")
    assert http.delete("/adapters/x").json()["code"] == "page_forged"
    # This server's own pages may ask for what the token's roles may.
    own = {PAGE_HEADER: secret, "origin": "http://127.0.0.1"}
    assert http.post(reject, json=why, headers=own).json()["code"] == "proposal_not_found"
    # But whoever steals a session makes nothing with it that outlives it.
    for path in ("/policy", "/tokens", "/keys", "/learn/step", "/keys/x/revoke"):
        assert http.post(path, json={}, headers=own).json()["code"] == "page_forged", path

    http.post("/sign-out", follow_redirects=False)
    assert http.get("/").status_code == 401
    for wrong in (client, "x", "a.b.c", f"{'9' * 30}.9.", right.cookies[COOKIE][:-1] + "x"):
        http.cookies.set(COOKIE, wrong)
        assert http.get("/").status_code == 401
    http.cookies.clear()
    http.post("/sign-in", data={"token": client}, follow_redirects=False)
    assert http.get("/").status_code == 403
    http.cookies.clear()
    assert http.post("/sign-in", content=b"a&b&c&d&e&f").status_code == 401


def test_after_a_kill_people_can_still_look(locked: tuple[Server, str, str]) -> None:
    server, reviewer, _ = locked
    bearer = {"authorization": f"Bearer {reviewer}"}
    server.http.headers.update(bearer)
    act = server.act(Action.KILL, server.get("/kill")["target"])
    signed = signature_to_json(sign_act(server.people.operator, act))
    server.post("/kill", reason="drill", signatures=[signed])
    del server.http.headers["authorization"]
    assert server.http.get("/").status_code == 401
    assert server.http.post("/sign-in", data={"token": reviewer}).status_code == 200
    found = page(server, "/")
    assert "Killed." in found.text and "cambium propose" in found.text
    server.http.cookies.clear()


def test_as_many_pages_follow_as_may(bare: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MAX_OWN", 0)
    refused = bare.http.get("/events")
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert refused.headers["retry-after"] == "30"


def test_another_site_cannot_even_have_a_picture_asked_for(bare: Server) -> None:
    crossing = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert bare.http.get("/events", headers=crossing).status_code == 400
    assert bare.http.get("/", headers={**crossing, "sec-fetch-mode": "navigate"}).status_code == 200


def test_an_invented_method_is_no_series_of_its_own(bare: Server) -> None:
    for method in ("ANYTHING1", "ANYTHING2"):
        bare.http.request(method, "/")
    shown = bare.http.get("/metrics").text
    assert 'method="_OTHER"' in shown and "ANYTHING" not in shown


PAGES = ("/", "/line", "/live", "/playground", "/my-key", "/stop", "/sign-in")


@pytest.fixture(scope="module")
def bare(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A state without a policy: it learns, and nothing can be proposed."""
    state = tmp_path_factory.mktemp("bare")
    with served(small_config(state, model=str(base))) as found:
        yield found


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_whole_on_a_bare_state(bare: Server, path: str) -> None:
    assert page(bare, path).text.strip()


def test_every_kind_of_answer_has_a_trace_that_can_be_read(bare: Server) -> None:
    bare.create("notes")
    bare.teach("notes", PORT)
    asked = [
        bare.http.post("/v1/embeddings", json={
            "model": bare.runtime.encoder.name, "input": "x"}),
        bare.http.post("/v1/chat/completions", json={
            "model": "notes", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}),
        bare.ask("stable"), bare.ask("base", n=2, temperature=1),
    ]  # fmt: skip
    for answer in asked:
        assert answer.status_code == 200, answer.text
        request_id = answer.headers["x-cambium-request-id"]
        assert request_id in page(bare, f"/trace/{request_id}").text
    live = page(bare, "/live")
    assert "notes" in live.text and "alignment green" in live.text
    assert "no answered request" in page(bare, "/trace/req-nobody", status=404).text


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_whole_after_a_kill(killed: Server, path: str) -> None:
    found = page(killed, path)
    if path != "/sign-in":
        assert "Killed." in found.text


@pytest.fixture(scope="module")
def killed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    people, state = People(), tmp_path_factory.mktemp("killed")
    people.init(state)
    with served(small_config(state, model=str(base)), people) as found:
        found.awaiting("trees", "trees", TREES)
        act = found.act(Action.KILL, found.get("/kill")["target"])
        signed = signature_to_json(sign_act(people.operator, act))
        found.post("/kill", reason=XSS, signatures=[signed])
        yield found


def test_a_proposal_can_still_be_read_after_a_kill(killed: Server) -> None:
    (proposal,) = killed.get("/proposals")["proposals"]
    found = page(killed, f"/review/{proposal['id']}").text
    assert "Killed." in found and any("kill" in blocker for blocker in proposal["blockers"])
    assert all(blocker in found for blocker in proposal["blockers"])


def test_a_tenant_sees_nothing_of_another(base: Path, tmp_path: Path) -> None:
    people = People()
    people.init(tmp_path)
    with served(small_config(tmp_path, model=str(base)), people) as server:
        token = server.post("/tokens", 201, name="root", tenant="*", roles=["operator"])["token"]
        root = {"authorization": f"Bearer {token}"}
        bearers = {}
        for tenant in ("acme", "other"):
            body = {"name": tenant, "tenant": tenant, "roles": ["client", "learner", "reviewer"]}
            made = server.http.post("/tokens", json=body, headers=root).json()["token"]
            bearers[tenant] = {"authorization": f"Bearer {made}"}
        server.http.headers.update(bearers["acme"])
        server.create("ravens")
        server.teach("ravens", TREES)
        request = server.ask("ravens").headers["x-cambium-request-id"]
        proposal = server.propose("ravens", "birds")
        for path in ("/", "/live", "/playground", "/stop", "/line"):
            seen = server.http.get(path, headers={**bearers["other"], **PAGE}).text
            assert "ravens" not in seen and proposal not in seen and request[:12] not in seen, path
            # Of what all share, whether there is any; how much is their own affair.
            shared = r'class="count">\d|being written</dt><dd>\d|Jobs</dt><dd>\d'
            assert not re.search(shared, seen), path
        for path in (f"/review/{proposal}", f"/trace/{request}"):
            assert server.http.get(path, headers=bearers["other"]).status_code == 404
        card = server.http.get(f"/proposals/{proposal}/card", headers=bearers["other"])
        assert card.status_code == 404
        for path in ("/", "/live", "/playground"):
            assert "ravens" in server.http.get(path, headers=PAGE).text, path
        asked = server.http.post("/playground", headers=bearers["other"], json={
            "prompt": "x", "models": ["base", "ravens"], "max_tokens": 2})  # fmt: skip
        assert asked.json()["code"] == "model_not_found"
