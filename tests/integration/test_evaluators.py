"""Evaluators and attesters that a policy names, with a whole server: here, elsewhere, and gone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serving import TREES, People, Rules, Server, served, small_config

from cambium.core.nouns import Action
from cambium.serve.bootstrap import init_state
from cambium.serve.store.key_files import save_key
from cambium.trust.acts import sign_act, signature_to_json
from cambium.trust.attestation import RESULT_TYPE
from cambium.trust.dsse import countersign, open_envelope
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.policy import sign_policy


@dataclass(frozen=True, kw_only=True)
class Named:
    """A state whose policy names these people; which keys the server holds, a test decides."""

    people: People
    evaluators: tuple[SigningKey, ...]
    attester: SigningKey

    def init(self, state: Path, *, k: int) -> None:
        text = Rules().toml(self.people.approvers, self.people.operator).decode()
        text += _table("evaluators", self.evaluators, k) + _table("attesters", [self.attester], 1)
        signed = sign_policy(self.people.root, text.encode())
        init_state(state, toml=text.encode(), signature=signed.signature,
                   root_public=self.people.root.public_key)  # fmt: skip
        (state / "keys").mkdir()

    def hold_own(self, state: Path) -> None:
        """The first evaluator's key and the attester's are the server's."""
        hold(state, "evaluator", self.evaluators[0])
        hold(state, "attester", self.attester)


def _table(name: str, keys: Any, k: int) -> str:
    people = ", ".join(
        f'{{ name = "{name} {i}", public = "{key.public_key.raw}", expires = 0 }}'
        for i, key in enumerate(keys)
    )
    return f"\n[{name}]\nk = {k}\nlist = [{people}]\n"


@pytest.fixture
def named(people: People) -> Named:
    return Named(people=people, evaluators=(generate_key(), generate_key()),
                 attester=generate_key())  # fmt: skip


def hold(state: Path, name: str, key: SigningKey) -> None:
    save_key(key, state / "keys" / f"{name}.key")


def approved(server: Server) -> str:
    """Returns a proposal that two approvers have signed."""
    proposal = server.awaiting("trees", "trees", TREES)
    for person in (0, 1):
        server.approve(proposal, person)
    return proposal


def blockers(server: Server, proposal: str) -> list[str]:
    refused = server.http.post("/adapters/merge", json={"proposal_id": proposal})
    assert (refused.status_code, refused.json()["code"]) == (409, "not_mergeable")
    found: list[str] = refused.json()["blockers"]
    assert found == server.get(f"/proposals/{proposal}")["blockers"]
    return found


def add(server: Server, proposal: str, key: SigningKey, **changes: Any) -> httpx.Response:
    path = f"/proposals/{proposal}/evidence"
    signed = {}
    for row in server.get(path)["evidence"]:
        envelope: Any = countersign(key, row["envelope"])
        signed[row["digest"]] = envelope["signatures"][-1]["sig"]
    body = {"key_id": key.key_id, "signatures": signed} | changes
    return server.http.post(path, json=body)


def test_an_evaluator_elsewhere_signs_what_the_servers_own_has_signed(
    base: Path, named: Named, tmp_path: Path
) -> None:
    named.init(tmp_path, k=2)
    named.hold_own(tmp_path)
    with served(small_config(tmp_path, model=str(base)), named.people) as server:
        assert server.get("/policy")["left_to_the_server"] == []
        roles = {row["role"] for row in server.get("/keys")["keys"]}
        assert {"evaluator", "attester", "server"} <= roles
        proposal = approved(server)
        assert blockers(server, proposal) == ["evidence: 1 of 2 evaluators signed"]
        strangers = (named.attester, named.people.approvers[0], generate_key())
        for key, code in [(key, "key_unknown") for key in strangers]:
            assert add(server, proposal, key).json()["code"] == code
        other, forger = named.evaluators[1], generate_key()
        forged = add(server, proposal, forger, key_id=other.key_id)
        assert forged.json()["code"] == "signature_invalid"
        assert add(server, proposal, other, signatures={"x": "y"}).json()["code"] == (
            "digest_mismatch"
        )
        assert blockers(server, proposal) == ["evidence: 1 of 2 evaluators signed"]
        added = add(server, proposal, other)
        assert added.status_code == 200, added.text
        signers = [row["signed_by"] for row in added.json()["evidence"]]
        assert signers == [["server", "evaluators 0", "evaluators 1"]] * len(signers)
        # Nobody has to approve again what somebody else has looked at.
        server.post("/adapters/merge", proposal_id=proposal)
        entries = server.get("/audit")["entries"]
        (merged,) = [e["body"] for e in entries if e["kind"] == "revision.merge"]
        said: Any = open_envelope(
            merged["attested"], public_key=named.attester.public_key, kind=RESULT_TYPE
        )
        assert said["predicate"]["label"] == "software-dev"
        assert [e["body"]["evaluator"] for e in entries if e["kind"] == "proposal.evaluated"] == [
            other.key_id
        ]
        assert add(server, proposal, other).json()["code"] == "illegal_transition"


def test_a_revoked_evaluators_looks_are_taken_anew_by_a_good_one(
    base: Path, named: Named, tmp_path: Path
) -> None:
    named.init(tmp_path, k=1)
    named.hold_own(tmp_path)
    config = small_config(tmp_path, model=str(base))
    with served(config, named.people) as server:
        proposal = approved(server)
        lost = named.evaluators[0]
        act = server.act(Action.REVOKE, lost.public_key.digest)
        signed = signature_to_json(sign_act(named.people.root, act))
        server.post(f"/keys/{lost.key_id}/revoke", reason="stolen", signatures=[signed])
        found = blockers(server, proposal)
        assert "evidence: 0 of 1 evaluators signed; evaluators 0's is revoked" in found
    hold(tmp_path, "evaluator-2", named.evaluators[1])
    with served(config, named.people) as server:  # what is void is looked at anew by itself
        found = server.settled(proposal)
        assert (found["state"], found["approvals"]) == ("awaiting_approval", [])
        assert found["ledger"]["spent"] == 2 * found["ledger"]["cost"]
        for person in (0, 1):
            server.approve(proposal, person)
        server.post("/adapters/merge", proposal_id=proposal)


def test_without_a_key_of_the_role_nothing_is_attested(
    base: Path, named: Named, tmp_path: Path
) -> None:
    named.init(tmp_path, k=1)
    hold(tmp_path, "evaluator", named.evaluators[0])
    hold(tmp_path, "attester", generate_key())  # a key, but nobody's
    with served(small_config(tmp_path, model=str(base)), named.people) as server:
        server.create("trees")
        server.teach("trees", TREES)
        body = {"adapter_id": "trees", "domain": "trees"}
        refused = server.http.post("/adapters/propose_consolidation", json=body)
        assert refused.json()["code"] == "attestation_refused"
        assert "no attester's key" in refused.json()["detail"]
