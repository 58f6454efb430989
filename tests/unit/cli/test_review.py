"""Lists, proposals and signatures, against a server whose answers are set."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cambium.cli.client import _application
from cambium.cli.review import _finished
from cambium.core.errors import TrustError
from cambium.core.nouns import Act, Action
from cambium.serve.signed_records import signature_from_json
from cambium.serve.store.key_files import save_key
from cambium.trust.acts import check_act
from cambium.trust.keys import generate_key

TARGET, POLICY = "sha256:" + "a" * 64, "sha256:" + "b" * 64
PROPOSAL = {
    "id": "p1",
    "state": "awaiting_approval",
    "proposal_digest": TARGET,
    "state_version": 7,
    "policy_digest": POLICY,
    "gates": [{"name": "alignment", "verdict": "pass", "effect": 0.0123456, "ci": [0.1, 0.2]}],
    "approvals": [],
    "quorum": {"k": 2, "n": 3},
    "blockers": ["quorum: 0 of 2 approvals"],
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cambium.cli.review.POLL_S", 0)


@pytest.fixture
def key(tmp_path: Path):
    made = generate_key()
    save_key(made, tmp_path / "a.key")
    return made, tmp_path / "a.key"


@pytest.mark.parametrize("noun", ["adapters", "revisions", "proposals"])
def test_a_list_is_a_table_or_the_answer_itself(cambium, stage, noun: str) -> None:
    row = {"id": "x1", "adapter_id": "x1", "number": 12, "state": "stable", "kind": "merge"}
    stage.answers[f"GET /{noun}"] = (200, {noun: [row], "state_version": 1})
    shown = cambium(noun)
    assert (shown.status, shown.err) == (0, "")
    assert ("12" if noun == "revisions" else "x1") in shown.out
    assert cambium(noun, "--json").json == {noun: [row], "state_version": 1}


def test_an_empty_list_says_so(cambium, stage) -> None:
    stage.answers["GET /proposals"] = (200, {"proposals": []})
    assert "none" in cambium("proposals").out


def test_what_a_server_says_cannot_move_the_cursor(cambium, stage) -> None:
    hostile = {"adapter_id": "\x1b[2Jx[red]", "state": "ephemeral"}
    stage.answers["GET /adapters"] = (200, {"adapters": [hostile]})
    out = cambium("adapters").out
    assert "\x1b" not in out
    assert "x[red]" in out  # no markup either


def test_show_gives_digests_in_full(cambium, stage) -> None:
    stage.answers["GET /proposals/p1"] = (200, PROPOSAL)
    out = cambium("show", "p1").out
    assert TARGET in out
    assert "alignment" in out
    assert "quorum: 0 of 2 approvals" in out
    assert cambium("show", "p1", "--json").json == PROPOSAL


def test_diff_shows_every_part(cambium, stage) -> None:
    waiting = {"available": False, "why": "none is computed here"}
    parts = {"behaviour": waiting, "evals": [{"domain": "code", "effect": 0.5}], "data": {}}
    stage.answers["GET /proposals/p1/diff"] = (200, parts)
    out = cambium("diff", "p1").out
    assert all(word in out for word in ("behaviour", "none is computed", "evals", "code", "data"))


def test_a_diff_is_of_one_or_two(cambium) -> None:
    ended = cambium("diff", "a", "b", "c")
    assert ended.status == 2 and "two models" in ended.err


def test_approve_signs_exactly_what_the_server_proposes(cambium, stage, key) -> None:
    made, file = key
    stage.answers["GET /proposals/p1"] = (200, PROPOSAL)
    stage.answers["POST /proposals/p1/approvals"] = (200, {"state": "awaiting_approval"})
    ended = cambium("approve", "p1", "--key", file)
    assert (ended.status, ended.err) == (0, "")
    assert TARGET in ended.out
    signature = signature_from_json(stage.sent("POST /proposals/p1/approvals")[0])
    expected = {"action": Action.APPROVE, "target": TARGET, "state_version": 7, "policy": POLICY}
    now = int(time.time())
    check_act(signature, public_key=made.public_key, expected=Act(**expected), now=now)
    for field, other in {"target": POLICY, "state_version": 8, "action": Action.ROLLBACK}.items():
        wrong = Act(**{**expected, field: other})
        with pytest.raises(TrustError):
            check_act(signature, public_key=made.public_key, expected=wrong, now=now)
    with pytest.raises(TrustError):
        expired = now + 2 * 24 * 3600 + 1
        check_act(signature, public_key=made.public_key, expected=Act(**expected), now=expired)


@pytest.mark.parametrize(
    ("missing", "status"), [("proposal_digest", 1), ("state_version", 2), ("policy_digest", 2)]
)
def test_nothing_is_signed_when_something_to_sign_is_absent(
    cambium, stage, key, missing: str, status: int
) -> None:
    stage.answers["GET /proposals/p1"] = (200, {**PROPOSAL, missing: None})
    ended = cambium("approve", "p1", "--key", key[1])
    assert (ended.status, len(ended.err.splitlines())) == (status, 1)
    assert stage.sent("POST /proposals/p1/approvals") == []


def test_a_key_file_that_is_none_sends_nothing(cambium, stage, tmp_path: Path) -> None:
    stage.answers["GET /proposals/p1"] = (200, PROPOSAL)
    (tmp_path / "b.key").write_text("no key")
    for file in ("b.key", "absent.key"):
        ended = cambium("approve", "p1", "--key", tmp_path / file)
        assert (ended.status, len(ended.err.splitlines())) == (2, 1)
    assert [name for name, _ in stage.calls if name.startswith("POST")] == []


def test_a_refused_approval_is_a_no(cambium, stage, key) -> None:
    stage.answers["GET /proposals/p1"] = (200, PROPOSAL)
    refusal = {
        "detail": "the key signed already",
        "code": "duplicate_signer",
        "mend": "ask another",
    }
    stage.answers["POST /proposals/p1/approvals"] = (409, refusal)
    ended = cambium("approve", "p1", "--key", key[1])
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == "cambium: the key signed already: ask another\n"


@pytest.mark.parametrize("spelling", ["each", "once"])
def test_rollback_signs_the_revision_with_every_key(
    cambium, stage, tmp_path: Path, spelling: str
) -> None:
    files = [tmp_path / "a.key", tmp_path / "b.key"]
    for file in files:
        save_key(generate_key(), file)
    rows = [{"number": 0, "digest": TARGET}, {"number": 1, "digest": POLICY}]
    standing = {"revisions": rows, "state_version": 3, "policy_digest": POLICY}
    stage.answers["GET /revisions"] = (200, standing)
    stage.answers["POST /revisions/rollback"] = (200, {"revision": 2, "of": 0})
    keys = ["--key", files[0], "--key", files[1]] if spelling == "each" else ["--key", *files]
    assert cambium("rollback", "0", *keys).status == 0
    (body,) = stage.sent("POST /revisions/rollback")
    assert body["to"] == 0
    assert len({s["key_id"] for s in body["signatures"]}) == 2
    assert {s["payload"]["target"] for s in body["signatures"]} == {TARGET}
    assert {s["payload"]["action"] for s in body["signatures"]} == {"rollback"}
    assert cambium("rollback", "9", *keys).status == 2
    assert len(stage.sent("POST /revisions/rollback")) == 1


def test_a_quarantine_is_signed_as_a_revocation_of_the_revision(
    cambium, stage, tmp_path: Path
) -> None:
    file = tmp_path / "a.key"
    save_key(generate_key(), file)
    standing = {"revisions": [{"number": 4, "digest": TARGET}], "state_version": 3,
                "policy_digest": POLICY}  # fmt: skip
    stage.answers["GET /revisions"] = (200, standing)
    stage.answers["POST /revisions/4/quarantine"] = (200, {"revision": 4, "adapters": []})
    assert cambium("quarantine", "4", "--key", file).status == 2  # it needs a reason
    assert cambium("quarantine", "4", "--key", file, "--reason", "wrong").status == 0
    (body,) = stage.sent("POST /revisions/4/quarantine")
    (signed,) = body["signatures"]
    payload = signed["payload"]
    assert (body["reason"], payload["action"], payload["target"]) == ("wrong", "revoke", TARGET)


def test_a_check_that_does_not_pass_is_a_no(cambium, stage) -> None:
    answer = {"proposal_id": "p1", "verdict": "fail", "evidence": []}
    stage.answers["POST /gates/align_review"] = (200, answer)
    assert cambium("check", "p1").status == 1
    stage.answers["POST /gates/align_review"] = (200, {**answer, "verdict": "pass"})
    assert cambium("check", "p1").status == 0
    del answer["verdict"]
    stage.answers["POST /gates/align_review"] = (200, answer)
    assert cambium("check", "p1").status == 1


def test_a_merge_whose_served_bytes_differ_is_a_no(cambium, stage) -> None:
    good = {"revision": 1, "signed_digest": TARGET, "served_digest": TARGET}
    stage.answers["POST /adapters/merge"] = (200, good)
    assert cambium("merge", "p1").status == 0
    for bad in ({**good, "served_digest": POLICY}, {"revision": 1}):
        stage.answers["POST /adapters/merge"] = (200, bad)
        assert cambium("merge", "p1").status == 1


def test_a_merge_without_quorum_names_its_blockers(cambium, stage) -> None:
    problem = {"detail": "cannot merge", "blockers": ["quorum: 1 of 2 approvals"], "mend": "sign"}
    stage.answers["POST /adapters/merge"] = (409, problem)
    ended = cambium("merge", "p1")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "quorum: 1 of 2 approvals" in ended.err


def test_propose_and_reject_send_what_was_asked(cambium, stage) -> None:
    answer = {"proposal_id": "p1", "state": "consolidating"}
    stage.answers["POST /adapters/propose_consolidation"] = (202, answer)
    stage.answers["POST /proposals/p1/reject"] = (200, {"state": "rejected"})
    assert cambium("propose", "a1", "--into", "code", "--json").json == answer
    assert cambium("reject", "p1", "--reason", "not now").status == 0
    soft = ("propose", "a1", "--into", "code", "--kind", "soft_prompt", "--json")
    assert cambium(*soft).status == 0
    assert stage.calls.pop()[1] == {"adapter_id": "a1", "domain": "code", "kind": "soft_prompt"}
    assert cambium("propose", "a1", "--into", "code", "--kind", "prefix").status == 2
    assert stage.calls == [
        ("POST /adapters/propose_consolidation", {"adapter_id": "a1", "domain": "code"}),
        ("POST /proposals/p1/reject", {"reason": "not now"}),
    ]
    assert cambium("reject", "p1").status == 2


def test_without_a_server_propose_waits_for_the_gates(local) -> None:
    stage, application = local
    looks = iter(["consolidating", "checking", "rejected"])
    record = {"gates": [], "progress": {"stage": "look 1", "share": 0.5, "loss": None}}
    stage.answers["GET /proposals/p1"] = lambda _: (200, {**record, "state": next(looks)})
    with _application(application()) as client:
        assert _finished(client, {"proposal_id": "p1"})["state"] == "rejected"
    assert next(looks, None) is None


def test_a_gate_that_could_not_be_measured_ends_the_wait(local) -> None:
    stage, application = local
    gates = [{"name": "retention", "verdict": "error"}]
    stage.answers["GET /proposals/p1"] = (200, {"state": "checking", "gates": gates})
    with _application(application()) as client:
        assert _finished(client, {"proposal_id": "p1"})["state"] == "checking"
