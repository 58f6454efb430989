"""Tokens, roles and tenants, as a caller meets them."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from tests.serving import (
    FACTS,
    HARBOUR,
    PORT,
    WAIT_S,
    Clock,
    People,
    Rules,
    Server,
    served,
    small_config,
)

from cambium.core.nouns import Action, SignedAct
from cambium.serve.access import OPEN, ROUTES
from cambium.serve.tokens import Role
from cambium.trust.acts import sign_act, signature_to_json

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "http.md"
ROLES = ("client", "learner", "reviewer", "operator")
RULES = Rules(owners=(("contracts", "acme"),))


@dataclass(kw_only=True)
class House:
    """A server that demands tokens, and what each of its people may send."""

    server: Server
    clock: Clock
    tokens: dict[str, str]

    def make(self, name: str, tenant: str, *roles: str, **more: Any) -> str:
        body = {"name": name, "tenant": tenant, "roles": list(roles), **more}
        answer = self.ask("operator", "POST", "/tokens", json=body)
        assert answer.status_code == 201, answer.text
        self.tokens[name] = answer.json()["token"]
        return str(answer.json()["token_id"])

    def ask(self, who: str | None, method: str, path: str, **content: Any) -> Response:
        headers = {"authorization": f"Bearer {self.tokens[who]}"} if who else {}
        return self.server.http.request(method, path, headers=headers, **content)

    def teach(self, who: str, name: str, texts: list[str]) -> dict[str, Any]:
        made = self.ask(who, "POST", "/adapters/ephemeral", json={"task_id": name})
        assert made.status_code == 201, made.text
        body = {"adapter_id": name, "examples": [{"text": t} for t in texts], "steps": 4,
                "lr": 0.02, "consent": True}  # fmt: skip
        taught = self.ask(who, "POST", "/learn/step", json=body)
        assert taught.status_code == 200, taught.text
        return dict(taught.json())

    def settle(self, proposal: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while self.server.runtime.jobs.pending:
            assert time.monotonic() < deadline, proposal
            time.sleep(0.02)

    def complete(self, who: str, model: str, **more: Any) -> Response:
        body = {"model": model, "prompt": "Fact 7: the tree", "max_tokens": 12, "temperature": 0}
        return self.ask(who, "POST", "/v1/completions", json=body | more)


@pytest.fixture(scope="module")
def house(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    state, people, clock = tmp_path_factory.mktemp("state"), People(), Clock()
    people.init(state, RULES)
    with served(small_config(state, model=str(base)), people, clock) as server:
        body = {"name": "operator", "tenant": "*", "roles": ["operator"]}
        token = server.post("/tokens", 201, **body)["token"]
        found = House(server=server, clock=clock, tokens={"operator": token})
        for role in ("client", "learner", "reviewer"):
            found.make(role, "acme", role)
        for tenant in ("acme", "globex"):
            found.make(tenant, tenant, "learner")
        yield found


def path_of(template: str) -> str:
    return re.sub(r"\{[^}]+\}", "nothing", template)


def test_the_table_holds_every_route_and_no_other(house: House) -> None:
    listed = house.ask("operator", "GET", "/openapi.json").json()["paths"]
    served_routes = {
        (method.upper(), re.sub(r":path\}", "}", path))
        for path, methods in listed.items()
        for method in methods
    }
    table = {(method, path.replace(":path}", "}")) for method, path, _ in ROUTES}
    assert served_routes == (table | OPEN) - {("GET", "/openapi.json")}


def test_the_reference_names_every_route_its_roles_and_fields(house: House) -> None:
    spec = house.ask("operator", "GET", "/openapi.json").json()
    lines = [x for x in REFERENCE.read_text(encoding="utf-8").splitlines() if x.startswith("| `")]
    missing: list[str] = []
    for method, path, roles in [*ROUTES, *((*route, None) for route in sorted(OPEN))]:
        template = path.replace(":path}", "}")
        line = next((x for x in lines if f"`{method} {template}`" in x), "")
        if f"| {_letters(roles)} |" not in line and "| all, by signature |" not in line:
            missing.append(f"{method} {template}: {_letters(roles)}")
        fields = _fields(spec, spec["paths"].get(template, {}).get(method.lower(), {}))
        if "a signature" in line:
            fields -= {"key_id", "signature", "payload"}
        missing += [f"{method} {template}: {field}" for field in fields if field not in line]
    assert not missing


def _letters(roles: frozenset[Role] | None) -> str:
    return "open" if roles is None else " ".join(role[0] for role in Role if role in roles)


def _fields(spec: dict[str, Any], asked: dict[str, Any]) -> set[str]:
    """Returns a route's query parameters and the fields of its body."""
    found = {p["name"] for p in asked.get("parameters", []) if p["in"] == "query"}
    for kind in asked.get("requestBody", {}).get("content", {}).values():
        name = kind["schema"].get("$ref", "").rpartition("/")[2]
        found |= spec["components"]["schemas"].get(name, {}).get("properties", {}).keys()
    return found


def closed() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@pytest.mark.parametrize(("method", "template", "roles"), ROUTES)
def test_each_route_is_for_its_roles(
    house: House,
    method: str,
    template: str,
    roles: frozenset[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = path_of(template)
    if path == "/events":  # it would go on for as long as the server does
        monkeypatch.setattr(house.server.runtime, "closing", closed())
    without = house.ask(None, method, path)
    assert without.status_code == 401, without.text
    assert without.headers["www-authenticate"] == "Bearer"
    for role in ROLES:
        answer = house.ask(role, method, path)
        refused = answer.status_code == 403 and "this token is for" in answer.text
        assert refused == (role not in roles), (role, answer.status_code, answer.text)


def test_whoever_watches_needs_no_token(house: House) -> None:
    for path in ("/healthz", "/readyz"):
        assert ("GET", path) in OPEN
        assert house.ask(None, "GET", path).status_code == 200
        assert house.ask(None, "POST", path, content=b"x" * 1000).status_code == 401
    # Whether it serves, and why not: neither what, nor how much there is to do.
    assert house.ask(None, "GET", "/readyz").json() == {"status": "ready", "why": None}


def test_what_is_open_takes_no_more_than_a_form(house: House) -> None:
    for size, status in ((3000, 401), (5000, 413), (1_000_000, 413)):
        answer = house.ask(None, "POST", "/sign-in", content=b"token=" + b"x" * size)
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic {}", "Bearer {}x", "Bearer x{}", "bearer\t{}", "Bearer é"],
)
def test_what_is_no_token_is_refused_before_its_body_is_read(house: House, header: str) -> None:
    value = header.replace("{}", house.tokens["learner"]).encode("latin-1")
    answer = house.server.http.post(
        "/learn/step", headers={"authorization": value}, content=b"not even JSON"
    )
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


def test_openai_clients_read_the_refusal(house: House) -> None:
    refused = house.ask(None, "POST", "/v1/completions", json={})
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "unauthenticated"
    assert house.complete("reviewer", "base").json()["error"]["code"] == "role_missing"


def test_an_unknown_path_says_nothing_without_a_token(house: House) -> None:
    assert house.ask(None, "GET", "/secret").status_code == 401
    for method in ("GET", "PATCH"):
        assert house.ask("operator", method, "/secret").json()["code"] == "not_found"


def test_two_tenants_give_the_same_name_to_two_adapters(house: House) -> None:
    first = house.teach("acme", "support", FACTS[:4])
    second = house.teach("globex", "support", HARBOUR[:4])
    assert first["adapter_id"] == second["adapter_id"] == "support"
    assert first["digest_after"] != second["digest_after"]
    answers = {}
    for tenant, taught in (("acme", first), ("globex", second)):
        answer = house.complete(tenant, "support")
        answers[tenant] = answer.json()["choices"][0]["text"]
        assert answer.headers["x-cambium-adapter"].endswith(taught["digest_after"])
        shown = house.ask(tenant, "GET", "/adapters").json()["adapters"]
        assert {a["tenant"] for a in shown} == {tenant}
        models = {m["id"] for m in house.ask(tenant, "GET", "/v1/models").json()["data"]}
        assert "support" in models and not any(":" in m for m in models)
    assert answers["acme"] != answers["globex"]


@pytest.mark.parametrize("name", ["globex:secret", "secret"])
def test_another_tenants_adapter_is_not_there(house: House, name: str) -> None:
    if not house.ask("globex", "GET", "/adapters/secret").is_success:
        house.teach("globex", "secret", HARBOUR[:3])
    digest = house.ask("globex", "GET", "/adapters/secret").json()["digest"]
    for model in (name, f"{name}@{digest}"):
        answer = house.complete("acme", model)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert house.ask("acme", "GET", f"/adapters/{model}").status_code == 404
        assert house.ask("acme", "POST", f"/adapters/{model}/replay").status_code in (400, 404)
    for method, path in (("DELETE", f"/adapters/{name}"), ("DELETE", f"/adapters/{name}/examples")):
        assert house.ask("acme", method, path).status_code == 404
    body = {"adapter_id": name, "examples": [{"text": "x"}]}
    assert house.ask("acme", "POST", "/learn/step", json=body).status_code == 404
    body = {"adapter_id": name, "domain": "ports"}
    proposed = house.ask("acme", "POST", "/adapters/propose_consolidation", json=body)
    assert proposed.status_code == 404
    made = house.ask("acme", "POST", "/adapters/ephemeral", json={"task_id": "globex:new"})
    assert made.status_code == 400
    assert house.ask("globex", "GET", "/adapters/secret").json()["digest"] == digest


def test_a_trace_is_its_tenants_and_the_operators(house: House) -> None:
    request_id = house.complete("acme", "base").headers["x-cambium-request-id"]
    assert house.ask("acme", "GET", f"/traces/{request_id}").json()["tenant"] == "acme"
    assert house.ask("operator", "GET", f"/traces/{request_id}").status_code == 200
    hidden = house.ask("globex", "GET", f"/traces/{request_id}").json()
    unknown = house.ask("globex", "GET", "/traces/req-none").json()
    assert hidden["code"] == unknown["code"] == "trace_not_found"
    assert hidden["detail"].replace(request_id, "req-none") == unknown["detail"]


def approve(house: House, proposal: str, person: int) -> Response:
    """Carried by a client's token: the signature is what counts."""
    standing = house.ask("reviewer", "GET", f"/proposals/{proposal}").json()
    people = house.server.people
    signed = sign_act(
        people.approvers[person],
        SignedAct(
            action=Action.APPROVE,
            target=standing["proposal_digest"],
            state_version=standing["state_version"],
            expires=int(time.time()) + 3600,
            policy=standing["policy_digest"],
        ),
    )
    return house.ask(
        "client", "POST", f"/proposals/{proposal}/approvals", json=signature_to_json(signed)
    )


def test_a_domain_with_an_owner_serves_its_tenant_alone(house: House) -> None:
    house.teach("acme", "clerk", PORT)
    foreign = house.ask(
        "globex", "POST", "/adapters/ephemeral", json={"task_id": "spy", "domain": "contracts"}
    )
    assert foreign.json()["code"] == "domain_not_found"
    body = {"adapter_id": "clerk", "domain": "contracts"}
    proposal = house.ask("acme", "POST", "/adapters/propose_consolidation", json=body).json()
    proposal = proposal["proposal_id"]
    assert house.ask("globex", "GET", f"/proposals/{proposal}").status_code == 404
    assert house.ask("globex", "GET", f"/proposals/{proposal}/diff").status_code == 404
    assert house.ask("globex", "GET", "/proposals").json()["proposals"] == []
    house.settle(proposal)
    for person in (0, 1):
        approved = approve(house, proposal, person)
        assert approved.status_code == 200, approved.text
    hidden = {"key_id": "k", "signature": "00", "payload": house_payload()}
    for unknown in (proposal, "p-none"):
        refused = house.ask("globex", "POST", f"/proposals/{unknown}/approvals", json=hidden)
        assert refused.json()["code"] == "proposal_not_found", refused.text
    merged = house.ask("reviewer", "POST", "/adapters/merge", json={"proposal_id": proposal})
    assert merged.status_code == 200, merged.text
    mine = house.complete("acme", "stable", domain="contracts")
    assert mine.headers["x-cambium-adapter"].startswith("acme:clerk@")
    theirs = house.complete("globex", "stable", domain="contracts")
    assert theirs.json()["error"]["code"] == "domain_not_found"
    routed = house.complete("globex", "stable", prompt=HARBOUR[3])
    assert routed.headers["x-cambium-adapter"] == "base"
    trace = house.ask("globex", "GET", f"/traces/{routed.headers['x-cambium-request-id']}").json()
    assert trace["route"]["leads"] == {}
    bank = house.ask("globex", "GET", "/revisions").json()["revisions"][-1]["bank"]
    assert bank == {}
    mine = house.ask("acme", "GET", "/revisions").json()["revisions"][-1]["bank"]
    assert set(mine) == {"contracts"}
    policy = house.ask("globex", "GET", "/policy").json()
    assert "toml" not in policy and policy["domains"]["owners"] == {}
    assert house.ask("operator", "GET", "/policy").json()["toml"]


def house_payload() -> dict[str, Any]:
    return {"domain_tag": "x", "action": "approve", "target": "t", "state_version": 0,
            "expires": 0, "policy": "p"}  # fmt: skip


def test_the_log_is_for_whoever_sees_all_tenants(house: House) -> None:
    refused = house.ask("reviewer", "GET", "/audit")
    assert (refused.status_code, refused.json()["code"]) == (403, "role_missing")
    house.make("board", "*", "reviewer")
    assert house.ask("board", "GET", "/audit").status_code == 200


def test_a_token_revoked_while_a_body_is_sent_counts_no_more(house: House) -> None:
    revoked = house.make("slow", "acme", "learner")

    def body() -> Iterator[bytes]:
        yield b'{"task_id": '
        assert house.ask("operator", "DELETE", f"/tokens/{revoked}").status_code == 200
        yield b'"late"}'

    app = house.server.http.app
    sent: list[Any] = []
    parts = iter([*body()])

    async def receive() -> Any:
        part = next(parts, None)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": part.startswith(b"{")}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {house.tokens['slow']}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/adapters/ephemeral", "headers": headers,
             "query_string": b"", "server": ("127.0.0.1", 1), "scheme": "http",
             "http_version": "1.1", "client": ("127.0.0.1", 2), "root_path": ""}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 401
    assert house.ask("acme", "GET", "/adapters/late").status_code == 404


def test_a_token_that_sends_too_much_is_told_when_to_go_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.make("hasty", "acme", "client", requests_per_minute=2)
    for _ in range(2):
        assert house.ask("hasty", "GET", "/v1/models").status_code == 200
    answer = house.ask("hasty", "GET", "/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    # Not so whoever stops everything, up to a point.
    monkeypatch.setattr("cambium.serve.access.KILLS_PER_MINUTE", 1)
    assert [house.ask("hasty", "GET", "/kill").status_code for _ in range(2)] == [200, 429]
    assert house.ask("acme", "GET", "/v1/models").status_code == 200


def test_a_revoked_and_an_expired_token_count_no_more(house: House) -> None:
    revoked = house.make("leaver", "acme", "client")
    assert house.ask("leaver", "GET", "/v1/models").status_code == 200
    assert house.ask("operator", "DELETE", f"/tokens/{revoked}").status_code == 200
    assert house.ask("leaver", "GET", "/v1/models").status_code == 401
    assert house.ask("operator", "DELETE", f"/tokens/{revoked}").status_code == 404
    house.make("guest", "acme", "client", days=1)
    assert house.ask("guest", "GET", "/v1/models").status_code == 200
    house.clock.ahead_s += 24 * 3600
    try:
        assert house.ask("guest", "GET", "/v1/models").status_code == 401
    finally:
        house.clock.ahead_s = 0


def test_tokens_are_kept_as_hashes_and_their_making_is_logged(house: House) -> None:
    listed = house.ask("operator", "GET", "/tokens").text
    log = house.ask("operator", "GET", "/audit").text
    state = house.server.runtime.config.state
    stored = b"".join(p.read_bytes() for p in state.rglob("*") if p.is_file())
    for name in ("operator", "acme"):
        token = house.tokens[name]
        secret = token.split("_", 2)[2]
        assert secret not in listed and secret not in log
        assert secret.encode() not in stored
    assert "token.made" in log and "token.revoked" in log


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a:b"},
        {"name": ""},
        {"tenant": "a:b"},
        {"tenant": ""},
        {"roles": []},
        {"roles": ["root"]},
        {"tenant": "*", "roles": ["client"]},
        {"requests_per_minute": 0},
        {"days": 0},
        {"days": 10**9},
        {"more": 1},
    ],
)
def test_what_no_token_can_be_is_refused(house: House, change: dict[str, Any]) -> None:
    body = {"name": "n", "tenant": "acme", "roles": ["client"], **change}
    answer = house.ask("operator", "POST", "/tokens", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def test_the_first_token_is_an_operators(base: Path, tmp_path: Path) -> None:
    with served(small_config(tmp_path, model=str(base))) as server:
        body = {"name": "n", "tenant": "acme", "roles": ["client"]}
        refused = server.post("/tokens", 409, **body)
        assert refused["code"] == "illegal_transition"
        assert server.get("/v1/models")["data"]


def test_tokens_stay_in_demand_after_the_last_was_revoked(base: Path, tmp_path: Path) -> None:
    config = small_config(tmp_path, model=str(base))
    with served(config) as server:
        body = {"name": "n", "tenant": "*", "roles": ["operator"]}
        made = server.post("/tokens", 201, **body)
        headers = {"authorization": f"Bearer {made['token']}"}
        path = f"/tokens/{made['token_id']}"
        assert server.http.delete(path, headers=headers).status_code == 200
        assert server.http.get("/adapters").status_code == 401
    with served(config) as server:
        assert server.http.get("/adapters").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [{"host": "evil.example:8321"}, {"origin": "https://evil.example"}, {"origin": "null"}],
)
def test_without_tokens_a_strangers_page_gets_nothing(
    base: Path, tmp_path: Path, headers: dict[str, str]
) -> None:
    with served(small_config(tmp_path, model=str(base))) as server:
        answer = server.http.get("/adapters", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        friend = {"host": "localhost:8321", "origin": "http://localhost:8321"}
        assert server.http.get("/adapters", headers=friend).status_code == 200
