"""A server with adapters and proposals in every state that a call can be refused for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from httpx import Response
from tests.serving import PORT, TREES, Clock, People, Rules, Server, served, small_config, tiny_base

from cambium.core.nouns import Action
from cambium.trust.acts import sign_act, signature_to_json
from cambium.trust.keys import generate_key

DIGEST = "sha256:" + "0" * 64
BODY_LIMIT = 300_000


@dataclass(frozen=True, kw_only=True)
class World:
    """A server with adapters and proposals in every state that can be refused.

    Adapters: `live`, `fed` (without consent), `done` (its steps are spent), `over` (expired) and
    `bad` (quarantined). Proposals: `merged`, and `open`, which has one of two approvals.
    """

    server: Server
    merged: str
    open: str
    stale: dict[str, Any]

    def post(self, path: str, **body: Any) -> Response:
        return self.server.http.post(path, json=body)

    def raw(self, path: str, content: bytes) -> Response:
        headers = {"content-type": "application/json"}
        return self.server.http.post(path, content=content, headers=headers)

    def learn(self, adapter: str = "live", **body: Any) -> Response:
        return self.post("/learn/step", **{"adapter_id": adapter, "examples": [{"text": "a b c"}],
                                           "steps": 1, **body})  # fmt: skip

    def create(self, name: Any, **body: Any) -> Response:
        return self.post("/adapters/ephemeral", task_id=name, **body)

    def approve(self, person: int = 1, proposal: str | None = None, **fields: Any) -> Response:
        signature = signature_to_json(self.server.approval(self.open, person, **fields))
        return self.post(f"/proposals/{proposal or self.open}/approvals", **signature)

    def forged(self) -> Response:
        signature = signature_to_json(self.server.approval(self.open, 1))
        other = signature_to_json(self.server.approval(self.open, 2))
        body = {**signature, "signature": other["signature"]}
        return self.post(f"/proposals/{self.open}/approvals", **body)

    def stranger(self) -> Response:
        target = self.server.get(f"/proposals/{self.open}")["proposal_digest"]
        act = self.server.act(Action.APPROVE, target)
        body = signature_to_json(sign_act(generate_key(), act))
        return self.post(f"/proposals/{self.open}/approvals", **body)

    def for_another(self) -> Response:
        act = self.server.act(Action.APPROVE, DIGEST)
        body = signature_to_json(sign_act(self.server.people.approvers[1], act))
        return self.post(f"/proposals/{self.open}/approvals", **body)

    def for_another_action(self) -> Response:
        target = self.server.get(f"/proposals/{self.open}")["proposal_digest"]
        act = self.server.act(Action.ROLLBACK, target)
        body = signature_to_json(sign_act(self.server.people.approvers[1], act))
        return self.post(f"/proposals/{self.open}/approvals", **body)


@contextmanager
def world_in(folder: Path) -> Iterator[World]:
    """Runs the server, everything prepared; nothing works on anything any more."""
    people, state, clock = People(), folder / "state", Clock()
    people.init(state, Rules(domains=("trees", "port"), margin=0.05))
    base = tiny_base(folder / "base")
    config = small_config(state, model=str(base), max_body_bytes=BODY_LIMIT)
    with served(config, people, clock) as server:
        merged = server.awaiting("tree", "trees", TREES)
        stale = signature_to_json(server.approval(merged, 2))
        for person in (0, 1):
            server.approve(merged, person)
        server.post("/adapters/merge", proposal_id=merged)
        opened = server.awaiting("harbour", "port", PORT)
        server.approve(opened, 0)
        server.create("live")
        server.create("done")
        server.create("over", ttl_s=50)
        server.create("fed")
        server.teach("fed", TREES[:2], steps=1, consent=None)
        for _ in range(8):
            server.teach("done", TREES[:1], steps=8, lr=1e-5)
        server.quarantine("bad")
        clock.ahead_s = 60
        server.runtime.janitor.tidy()
        yield World(server=server, merged=merged, open=opened, stale=stale)
