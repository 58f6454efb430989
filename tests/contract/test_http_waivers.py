"""Waivers over HTTP: a gate that cannot be measured does not count once k people have signed so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving import TREES, People, Rules, Server, served, small_config

from cambium.core.nouns import Action
from cambium.lifecycle.ledger import spent
from cambium.serve.signed_records import signature_from_json
from cambium.trust.acts import check_signature, sign_act, signature_to_json
from cambium.trust.keys import generate_key

REASON = "The pool is dry on a fresh state; two of us read the samples."


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state, Rules(waivable=True, retention_items=1000, alpha=0.4))
    with served(small_config(state, model=str(base)), people) as found:
        yield found


@pytest.fixture(scope="module")
def stuck(server: Server) -> str:
    """A proposal whose retention can never be measured: too few items were declared."""
    server.create("trees")
    server.teach("trees", TREES)
    proposal = server.propose("trees", "trees")
    view = server.settled(proposal)
    assert view["state"] == "checking"
    assert [b.split(":")[0] for b in view["blockers"]] == ["gate retention", "quorum"]
    return proposal


def _gate(view: Any, name: str = "retention") -> Any:
    return next(gate for gate in view["gates"] if gate["name"] == name)


def _waiver(server: Server, stuck: str, key: Any, **changes: Any) -> dict[str, Any]:
    target = _gate(server.get(f"/proposals/{stuck}"))["waiver_target"]
    act = server.act(changes.pop("action", Action.WAIVE_GATE), changes.pop("target", target))
    return {**signature_to_json(sign_act(key, act)), "reason": REASON, **changes}


def test_nothing_but_an_approvers_waiver_of_this_gate_is_taken(server: Server, stuck: str) -> None:
    before, people = server.everything(), server.people.approvers
    view = server.get(f"/proposals/{stuck}")
    path = f"/proposals/{stuck}/waivers"
    for body, status, code in (
        (_waiver(server, stuck, generate_key()), 403, "key_unknown"),
        (_waiver(server, stuck, people[0], action=Action.APPROVE), 403, "digest_mismatch"),
        (_waiver(server, stuck, people[0], target=view["candidate_digest"]), 403,
         "digest_mismatch"),
        (_waiver(server, stuck, people[0], signature="00" * 64), 403, "signature_invalid"),
        (_waiver(server, stuck, people[0], reason=7), 400, "invalid_request"),
    ):  # fmt: skip
        answer = server.post(path, status, **body)
        assert answer["code"] == code, answer
    assert server.everything() == before


def test_k_waivers_carry_the_proposal_on_to_its_merge(server: Server, stuck: str) -> None:
    path, people = f"/proposals/{stuck}/waivers", server.people.approvers
    first = _waiver(server, stuck, people[0])
    one = server.post(path, **first)
    assert (_gate(one)["waived"], len(_gate(one)["waivers"])) == (False, 1)
    assert one["state"] == "checking"
    again = server.post(path, 409, **first)
    assert again["code"] == "duplicate_signer"
    server.post(path, **_waiver(server, stuck, people[2]))
    view = server.settled(stuck)
    assert (_gate(view)["waived"], view["state"]) == (True, "awaiting_approval")
    assert _gate(view)["verdict"] == "error"  # what was measured is still told
    for person in (0, 1):
        server.approve(stuck, person)
    merged = server.post("/adapters/merge", proposal_id=stuck)
    assert merged["signed_digest"] == merged["served_digest"]
    logged = [e["body"] for e in server.get("/audit")["entries"] if e["kind"] == "proposal.waived"]
    assert [(e["gate"], e["waived_because"]) for e in logged] == [("retention", REASON)] * 2
    # Whoever reads the log can verify who waived what.
    signers = [people[0].public_key, people[2].public_key]
    for entry, public in zip(logged, signers, strict=True):
        signature = signature_from_json(entry["signature"])
        check_signature(signature, public_key=public)
        assert signature.act.action is Action.WAIVE_GATE


def test_a_spent_ledger_ends_the_next_proposals_and_says_so(server: Server, stuck: str) -> None:
    ledger = server.get(f"/proposals/{stuck}")["ledger"]
    assert ledger["spent"] == pytest.approx(ledger["cost"])
    ended: list[Any] = []
    for name in ("second", "third"):
        server.create(name)
        server.teach(name, TREES)
        ended.append(server.settled(server.propose(name, name)))
    assert ended[0]["state"] == "checking"
    assert ended[0]["ledger"]["spent"] == pytest.approx(2 * ledger["cost"])
    assert ended[1]["state"] == "failed"
    assert "the alpha ledger is spent" in ended[1]["reason"]
    # What is remembered of decided proposals adds up as their records do.
    proposals = server.runtime.proposals
    policy = proposals.need_policy()
    whole = spent((filed.proposal for filed in proposals.all()), policy)
    assert spent(proposals.counted(), policy) == whole == ended[1]["ledger"]["spent"]
