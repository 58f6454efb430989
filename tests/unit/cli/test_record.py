from __future__ import annotations

from dataclasses import asdict

import pytest
from tests.merkle_log import nodes_of

from cambium.serve.request_log import leaf_of
from cambium.trust.audit import AuditEntry, grow, make_entry, sign_checkpoint
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.merkle import EMPTY_ROOT, GrowingTree, inclusion_proof, tree_root

SERVER = generate_key()
PAGE = 3


def checkpoint_of(entries: list[AuditEntry], key: SigningKey = SERVER) -> dict[str, object]:
    tree = GrowingTree()
    for entry in entries:
        grow(tree, entry)
    signed = sign_checkpoint(key, tree.size, tree.root())
    return {**asdict(signed), "public": key.public_key.raw}


@pytest.fixture
def logged(stage):
    """A server with a log of seven entries, given page by page."""
    entries = [
        make_entry(i + 1, at=1_000 * i, kind="adapter.learned", body={"i": i}) for i in range(7)
    ]
    rows = [asdict(entry) for entry in entries]

    def page(params: dict) -> tuple[int, dict]:
        since = int(params["since"])
        return 200, {"entries": [r for r in rows if r["seq"] >= since][:PAGE]}

    stage.answers["GET /audit"] = page
    stage.answers["GET /audit/checkpoint"] = (200, checkpoint_of(entries))
    key = {"key_id": SERVER.key_id, "role": "server", "public": SERVER.public_key.raw}
    stage.answers["GET /keys"] = (200, {"keys": [key]})
    return stage, rows


def test_the_log_is_read_to_its_end(cambium, logged) -> None:
    assert [e["seq"] for e in cambium("log", "--json").json["entries"]] == [1, 2, 3, 4, 5, 6, 7]
    assert [e["seq"] for e in cambium("log", "--since", "6", "--json").json["entries"]] == [6, 7]
    assert "1970-01-01T00:00:06" in cambium("log").out


def test_a_true_log_verifies(cambium, logged) -> None:
    ended = cambium("log", "--verify", "--since", "7", "--json")
    assert (ended.status, ended.json["verified"]) == (0, 7)
    assert "verified: 7 entries" in cambium("log", "--verify").out


def test_entries_after_the_checkpoint_are_not_yet_under_it(cambium, logged) -> None:
    _, rows = logged
    rows.append(asdict(make_entry(8, at=7_000, kind="adapter.expired", body={})))
    ended = cambium("log", "--verify", "--json")
    assert (ended.status, ended.json["verified"], len(ended.json["entries"])) == (0, 7, 8)


def edited(rows: list) -> None:
    rows[2]["body"] = {"i": 99}


def deleted(rows: list) -> None:
    del rows[3]


def cut_off(rows: list) -> None:
    del rows[-1]


def emptied(rows: list) -> None:
    rows.clear()


def reordered(rows: list) -> None:
    rows[4], rows[5] = rows[5], rows[4]


def lacking(rows: list) -> None:
    del rows[1]["hash"]


@pytest.mark.parametrize("harm", [edited, deleted, cut_off, emptied, reordered, lacking])
def test_a_changed_log_does_not(cambium, logged, harm) -> None:
    harm(logged[1])
    ended = cambium("log", "--verify")
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)


def test_a_checkpoint_that_the_server_key_did_not_sign_is_refused(cambium, logged) -> None:
    stage, _ = logged
    other = generate_key()
    for role, key in (("approver", SERVER), ("server", other)):
        listed = {"key_id": key.key_id, "role": role, "public": key.public_key.raw}
        stage.answers["GET /keys"] = (200, {"keys": [listed]})
        assert cambium("log", "--verify").status == 1


def test_a_log_that_repeats_itself_is_not_read_for_ever(cambium, stage) -> None:
    row = {"seq": 1, "at": 0, "kind": "k", "body": {}}
    stage.answers["GET /audit"] = (200, {"entries": [row]})
    assert cambium("log").status == 3


def test_a_trace_is_shown(cambium, stage) -> None:
    trace = {"request_id": "r1", "revision": 3, "adapters": [{"adapter": "a@x", "delta_norm": 0.5}]}
    stage.answers["GET /traces/r1"] = (200, trace)
    out = cambium("trace", "r1").out
    assert all(word in out for word in ("r1", "a@x", "0.5"))
    assert cambium("trace", "r1", "--json").json == trace
    assert cambium("trace", "unknown").status == 2


def test_a_replay_shows_its_calls_and_says_no(cambium, stage) -> None:
    call = {"call": 1, "steps": 8, "digest": "a", "replayed": "a", "ok": True, "same_machine": True}
    stage.answers["POST /adapters/notes/replay"] = (200, {"ok": True, "calls": [call]})
    assert cambium("replay", "notes").status == 0
    call |= {"replayed": "b", "ok": False}
    stage.answers["POST /adapters/notes/replay"] = (200, {"ok": False, "calls": [call]})
    out = cambium("replay", "notes")
    assert out.status == 1 and "call 1 of notes comes out otherwise" in out.err


@pytest.fixture
def requests(stage):
    """A server whose requests' lane has three leaves, the first of them amended by the last."""

    def shown(name: str, earlier: list[int], **more: str) -> dict:
        record = {"request_id": name, "tenant": "default", **more}
        return {"request_id": name, "tenant": "default", "at": 5, "record": record,
                "earlier": earlier}  # fmt: skip

    contents = [shown("a", []), shown("b", []), shown("a", [1], learning="learned")]
    leaves = [leaf_of(seq, row) for seq, row in enumerate(contents, start=1)]
    nodes = nodes_of(leaves)
    signed = sign_checkpoint(SERVER, 3, tree_root(3, lambda *at: nodes[at]), "requests")
    rows = [
        {"seq": seq, "request_id": row["request_id"], "hash": f"sha256:{leaf.hex()}"}
        for seq, (row, leaf) in enumerate(zip(contents, leaves, strict=True), start=1)
    ]
    for seq in (2, 3):
        rows[seq - 1] |= contents[seq - 1]

    def page(params: dict) -> tuple[int, dict]:
        if params["lane"] == "lifecycle":
            return 200, {"entries": []}
        return 200, {"entries": [r for r in rows if r["seq"] >= int(params["since"])][:2]}

    def prove(asked: dict) -> tuple[int, dict]:
        proof = inclusion_proof(int(asked["seq"]) - 1, 3, lambda *at: nodes[at])
        return 200, {"proof": [f"sha256:{step.hex()}" for step in proof]}

    empty = sign_checkpoint(SERVER, 0, EMPTY_ROOT)
    kept = {"requests": signed, "lifecycle": empty}
    stage.answers["GET /audit"] = page
    stage.answers["GET /audit/checkpoint"] = lambda asked: (200, asdict(kept[asked["lane"]]))
    stage.answers["GET /audit/proof"] = prove
    record = contents[2]["record"]
    stage.answers["GET /traces/a"] = (200, {"at": 5, **record, "leaves": [1, 3]})
    key = {"key_id": SERVER.key_id, "role": "server", "public": SERVER.public_key.raw}
    stage.answers["GET /keys"] = (200, {"keys": [key]})
    return stage, rows


def test_the_requests_lane_verifies_whole_and_one_by_one(cambium, requests) -> None:
    ended = cambium("log", "--lane", "requests", "--verify")
    assert (ended.status, "verified: 3" in ended.out) == (0, True), ended.err
    ended = cambium("trace", "a", "--verify")
    assert (ended.status, "leaf 3" in ended.out) == (0, True), ended.err


def test_a_trace_that_was_changed_or_is_gone_is_told(cambium, requests) -> None:
    stage, rows = requests
    _, answer = stage.answers["GET /traces/a"]
    for harm in ({"learning": "nothing"}, {"tenant": "other"}, {"at": 6}, {"leaves": [3]}):
        stage.answers["GET /traces/a"] = (200, {**answer, **harm})
        assert cambium("trace", "a", "--verify").status == 1
    stage.answers["GET /traces/a"] = (200, {**answer, "leaves": []})
    assert "not in the requests' tree" in cambium("trace", "a", "--verify").err
    for name in ("record", "at"):
        del rows[1][name]
    ended = cambium("log", "--lane", "requests", "--verify")
    assert (ended.status, "entry 2: its trace is gone" in ended.err) == (1, True)
