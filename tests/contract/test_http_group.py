"""A policy whose approvers hold shares of one key: merge, roll back, revive, one signature each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.serving import TREES, People, Rules, Server, served, small_config

from cambium.core.canonical import canonical_json
from cambium.core.nouns import Action
from cambium.trust.acts import sign_act, signature_to_json
from cambium.trust.keys import wrap
from cambium.trust.providers.bls12_381 import deal, verify


def entry(server: Server, kind: str) -> dict[str, Any]:
    found = [e for e in server.get("/audit")["entries"] if e["kind"] == kind]
    body: dict[str, Any] = found[-1]["body"]
    return body


def test_what_a_group_decides_carries_its_one_signature(base: Path, tmp_path: Path) -> None:
    dealt = deal(2, 3)
    people = People(approvers=tuple(wrap(share) for share in dealt.shares))
    people.init(tmp_path, Rules(group=dealt.group.hex()))
    expires = int(time.time()) + 3600
    with served(small_config(tmp_path, model=str(base)), people) as server:
        proposal = server.awaiting("trees", "trees", TREES)

        def approve(person: int, expires: int) -> Any:
            signed = signature_to_json(server.approval(proposal, person, expires=expires))
            return server.post(f"/proposals/{proposal}/approvals", **signed)

        page = {"accept": "text/html"}
        shown = server.http.get(f"/review/{proposal}", headers=page).text
        assert f"cambium approve {proposal} --key share-N.key" in shown
        assert 'data-opens="approve"' not in shown
        approve(0, expires + 1)
        late = approve(1, expires)
        # Two valid parts, but of two signatures.
        assert any("quorum: 1 of 2" in b for b in late["blockers"]), late["blockers"]
        server.post("/adapters/merge", 409, proposal_id=proposal)
        assert approve(2, expires)["blockers"] == []
        server.post("/adapters/merge", proposal_id=proposal)
        body = entry(server, "revision.merge")
        assert len(body["signatures"]) == 2
        payload = canonical_json(body["signatures"][0]["payload"])
        assert verify(dealt.group, payload, bytes.fromhex(body["group_signature"]))

        shown = server.http.get("/line", headers=page).text
        assert "cambium rollback 1 --key share-1.key --key share-2.key" in shown
        target = next(r["digest"] for r in server.get("/revisions")["revisions"])
        act = server.act(Action.ROLLBACK, target, expires=expires)
        signed = [signature_to_json(sign_act(people.approvers[i], act)) for i in (0, 2)]
        server.post("/revisions/rollback", to=1, signatures=signed)
        body = entry(server, "revision.rollback")
        assert verify(
            dealt.group, canonical_json(act.to_json()), bytes.fromhex(body["group_signature"])
        )

        kill = server.act(Action.KILL, server.get("/kill")["target"])
        signed = [signature_to_json(sign_act(people.operator, kill))]
        server.post("/kill", reason="drill", signatures=signed)
        shown = server.http.get("/stop", headers=page).text
        assert "cambium revive --key share-1.key --key share-2.key" in shown
        revive = server.act(Action.REVIVE, server.get("/kill")["digest"], expires=expires)
        signed = [signature_to_json(sign_act(key, revive)) for key in people.approvers[:1]]
        server.post("/revive", 409, signatures=signed)
        signed = [signature_to_json(sign_act(key, revive)) for key in people.approvers[:2]]
        server.post("/revive", signatures=signed)
        body = entry(server, "system.revived")
        assert verify(
            dealt.group, canonical_json(revive.to_json()), bytes.fromhex(body["group_signature"])
        )
