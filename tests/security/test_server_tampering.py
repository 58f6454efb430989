"""Somebody writes into the state folder: it is refused aloud, and never served."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.merkle_log import nodes_of
from tests.serving import (
    PORT,
    TREES,
    People,
    Server,
    served,
    small_config,
    tiny_base,
)

from cambium.core.canonical import canonical_json, digest_json
from cambium.core.errors import AuditBroken, CambiumError
from cambium.core.nouns import Action
from cambium.serve.runtime import Runtime
from cambium.serve.store.key_files import save_key
from cambium.trust.acts import sign_act, signature_to_json
from cambium.trust.audit import AuditEntry, Checkpoint, make_entry, to_bytes, verify_log
from cambium.trust.keys import PublicKey, generate_key

PROMPT = "Fact 5: the tree grows a"


@dataclass(frozen=True, kw_only=True)
class Original:
    """A state with a merged domain, a mergeable proposal and a live adapter; tests take copies."""

    folder: Path
    base: Path
    people: People
    proposal: str
    candidate: str
    stable_answer: Any


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    people, folder = People(), tmp_path_factory.mktemp("state")
    people.init(folder)
    base = tiny_base(tmp_path_factory.mktemp("base"))
    with served(small_config(folder, model=str(base)), people) as server:
        server.merged("trees", "trees", TREES)
        proposal = server.awaiting("port", "port", PORT)
        for person in (0, 1):
            server.approve(proposal, person)
        candidate = server.get(f"/proposals/{proposal}")["candidate_digest"]
        answer = server.answer("stable", PROMPT, domain="trees")
    return Original(
        folder=folder,
        base=base,
        people=people,
        proposal=proposal,
        candidate=candidate,
        stable_answer=answer,
    )


@pytest.fixture
def state(original: Original, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original.folder, tmp_path / "state"))


@contextmanager
def running(original: Original, state: Path) -> Iterator[Server]:
    with served(small_config(state, model=str(original.base)), original.people) as server:
        yield server


@contextmanager
def database(state: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(state / "cambium.db")) as connection, connection:
        yield connection


def flip(state: Path, digest: str) -> None:
    name = digest.removeprefix("sha256:")
    path = state / "blobs" / "sha256" / name[:2] / name
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def weights_of(state: Path, table: str, name: str) -> str:
    with database(state) as db:
        (blob,) = db.execute(f"SELECT weights_blob FROM {table} WHERE name = ?", [name]).fetchone()
    return str(blob)


def rewrite(state: Path, proposal: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a proposal's record, and the state beside it, as somebody careful would."""
    with database(state) as db:
        (text,) = db.execute("SELECT record FROM proposals WHERE id = ?", [proposal]).fetchone()
        record = json.loads(text)
        change(record)
        db.execute(
            "UPDATE proposals SET record = ?, state = ? WHERE id = ?",
            [canonical_json(record).decode(), record["state"], proposal],
        )


def refused_merge(server: Server, original: Original) -> tuple[int, str, str]:
    """Tries to merge; returns status, code and all that is said, after seeing nothing changed."""
    before = server.get("/revisions"), server.get("/audit")
    refused = server.http.post("/adapters/merge", json={"proposal_id": original.proposal})
    assert (server.get("/revisions"), server.get("/audit")) == before
    assert server.answer("stable", PROMPT, domain="trees") == original.stable_answer
    assert server.ask("stable", PROMPT, domain="port").status_code == 404
    assert server.get("/healthz") == {"status": "alive"}
    return refused.status_code, refused.json()["code"], refused.text


def test_the_untouched_copy_merges(original: Original, state: Path) -> None:
    with running(original, state) as server:
        merged = server.post("/adapters/merge", proposal_id=original.proposal)
        assert merged["served_digest"] == original.candidate


def test_a_flipped_byte_of_the_candidate_is_not_merged(original: Original, state: Path) -> None:
    with running(original, state) as server:
        flip(state, weights_of(state, "adapter_versions", "port"))
        assert refused_merge(server, original)[:2] == (500, "state_corrupt")
        refused = server.ask(f"port@{original.candidate}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "state_corrupt")


def test_a_flipped_byte_of_what_is_stable_stops_the_start(original: Original, state: Path) -> None:
    flip(state, weights_of(state, "adapter_versions", "trees"))
    with pytest.raises(CambiumError) as refused:
        Runtime(small_config(state, model=str(original.base)))
    assert refused.value.code == "state_corrupt"
    assert "holds other bytes" in refused.value.message


def test_a_flipped_byte_of_an_ephemeral_adapter_is_never_served(
    original: Original, state: Path
) -> None:
    flip(state, weights_of(state, "adapters", "port"))
    with running(original, state) as server:
        refused = server.ask("port")
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "state_corrupt")
        body = {"adapter_id": "port", "examples": [{"text": TREES[0]}]}
        assert server.http.post("/learn/step", json=body).json()["code"] == "state_corrupt"
        assert server.ask("trees").status_code == 200


def other_weights(state: Path) -> None:
    """Swaps the candidate's weights for sound bytes that somebody else approved of."""
    with database(state) as db:
        db.execute(
            "UPDATE adapter_versions SET weights_blob = (SELECT weights_blob FROM adapter_versions"
            " WHERE name = 'trees') WHERE name = 'port'"
        )


def test_other_sound_bytes_under_the_signed_digest_are_not_merged(
    original: Original, state: Path
) -> None:
    with running(original, state) as server:
        other_weights(state)
        assert refused_merge(server, original)[:2] == (403, "digest_mismatch")


def awaiting(record: dict[str, Any]) -> None:
    record.update(state="awaiting_approval", approvals=record["approvals"][:1])


def mergeable_without_signatures(record: dict[str, Any]) -> None:
    record.update(state="mergeable", approvals=[])


def one_signature_twice(record: dict[str, Any]) -> None:
    record["approvals"] = [record["approvals"][0]] * 2


def another_candidate(record: dict[str, Any]) -> None:
    record["candidate_digest"] = "sha256:" + "0" * 64


def a_failed_gate_called_passed(record: dict[str, Any]) -> None:
    measured = record["looks"][-1][1]["measurement"]
    measured.update(effect=measured["effect"] + 0.1, ci=[0.1, 0.2])


def no_looks(record: dict[str, Any]) -> None:
    record["looks"] = []


def an_earlier_parent(record: dict[str, Any]) -> None:
    record["parent_revision"] -= 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (mergeable_without_signatures, "quorum: 0 of 2"),
        (one_signature_twice, "quorum: 1 of 2"),
        (another_candidate, "quorum: 0 of 2"),
        (a_failed_gate_called_passed, "evidence:"),
        (no_looks, "gate domain_gain"),
        (an_earlier_parent, "parent:"),
    ],
)
def test_a_record_edited_by_hand_does_not_merge(
    original: Original, state: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    with running(original, state) as server:
        rewrite(state, original.proposal, change)
        status, code, text = refused_merge(server, original)
        assert (status, code) == (409, "not_mergeable")
        assert says in text


def test_a_strangers_approvals_in_the_record_do_not_count(original: Original, state: Path) -> None:
    with running(original, state) as server:
        digest = server.get(f"/proposals/{original.proposal}")["proposal_digest"]
        act = server.act(Action.APPROVE, digest)
        strangers = [signature_to_json(sign_act(generate_key(), act)) for _ in range(2)]
        for stranger, key in zip(strangers, original.people.approvers, strict=False):
            stranger["key_id"] = key.key_id  # under an approver's name
        rewrite(state, original.proposal, lambda record: record.update(approvals=strangers))
        status, code, text = refused_merge(server, original)
        assert (status, code, "quorum: 0 of 2" in text) == (409, "not_mergeable", True)


def test_a_state_that_contradicts_its_record_is_corrupt(original: Original, state: Path) -> None:
    with running(original, state) as server:
        rewrite(state, original.proposal, awaiting)
        with database(state) as db:
            db.execute("UPDATE proposals SET state = 'mergeable' WHERE id = ?", [original.proposal])
        assert refused_merge(server, original)[:2] == (500, "state_corrupt")


def test_provenance_edited_by_hand_is_corrupt(original: Original, state: Path) -> None:
    def without_first(record: dict[str, Any]) -> None:
        del record["provenance"]["examples"][0]

    with running(original, state) as server:
        rewrite(state, original.proposal, without_first)
        assert refused_merge(server, original)[:2] == (500, "state_corrupt")


def test_evidence_under_another_key_does_not_merge(original: Original, state: Path) -> None:
    with running(original, state) as server:
        with database(state) as db:
            digest, text = db.execute(
                "SELECT digest, envelope FROM evidence WHERE proposal = ?", [original.proposal]
            ).fetchone()
            envelope = json.loads(text)
            statement = base64.b64decode(envelope["payload"]).replace(b"0.95", b"0.51")
            envelope["payload"] = base64.b64encode(statement).decode()
            db.execute(
                "UPDATE evidence SET envelope = ?, digest = ? WHERE digest = ?",
                [canonical_json(envelope).decode(), digest_json(envelope), digest],
            )
        status, code, text = refused_merge(server, original)
        assert (status, code, "evidence:" in text) == (409, "not_mergeable", True)


@pytest.mark.parametrize("number", [1, 2])
def test_an_edited_revision_stops_the_start(original: Original, state: Path, number: int) -> None:
    with database(state) as db:
        (text,) = db.execute("SELECT manifest FROM revisions WHERE number = ?", [number]).fetchone()
        manifest = json.loads(text)
        manifest["attestation"] = "sev-snp"
        db.execute(
            "UPDATE revisions SET manifest = ?, digest = ? WHERE number = ?",
            [canonical_json(manifest).decode(), digest_json(manifest), number],
        )
    with pytest.raises(CambiumError) as refused:
        Runtime(small_config(state, model=str(original.base)))
    assert refused.value.code == "signature_invalid"


def test_a_revision_signed_by_a_key_put_into_the_database_stops_the_start(
    original: Original, state: Path
) -> None:
    key = generate_key()
    with database(state) as db:
        db.execute(
            "INSERT INTO keys (key_id, name, role, public, enrolled_at) VALUES (?, ?, ?, ?, 1)",
            [key.key_id, "server", "server", key.public_key.raw],
        )
        (text,) = db.execute("SELECT manifest FROM revisions WHERE number = 2").fetchone()
        manifest = {**json.loads(text), "bank": {}}
        signature = {"key_id": key.key_id, "signature": key.sign(canonical_json(manifest))}
        db.execute(
            "UPDATE revisions SET manifest = ?, digest = ?, signature = ? WHERE number = 2",
            [canonical_json(manifest).decode(), digest_json(manifest), json.dumps(signature)],
        )
    with pytest.raises(CambiumError) as refused:
        Runtime(small_config(state, model=str(original.base)))
    assert refused.value.code == "state_corrupt"


def test_a_cut_chain_of_revisions_stops_the_start(original: Original, state: Path) -> None:
    with database(state) as db:
        db.execute("DELETE FROM revisions WHERE number = 1")
    with pytest.raises(CambiumError) as refused:
        Runtime(small_config(state, model=str(original.base)))
    assert refused.value.code == "digest_mismatch"


def test_an_edited_policy_stops_the_start(original: Original, state: Path) -> None:
    with database(state) as db:
        db.execute("UPDATE policies SET toml = replace(toml, 'k = 2', 'k = 1')")
    with pytest.raises(CambiumError) as refused:
        Runtime(small_config(state, model=str(original.base)))
    assert refused.value.code == "digest_mismatch"


@pytest.mark.parametrize("replaced", [False, True])
def test_another_server_key_stops_the_start(
    original: Original, state: Path, replaced: bool
) -> None:
    (state / "server.key").unlink()
    if replaced:
        save_key(generate_key(), state / "server.key")
    with pytest.raises(CambiumError) as refused:
        Runtime(small_config(state, model=str(original.base)))
    assert refused.value.code == "config_invalid"
    assert (state / "server.key").exists() == replaced


def verify(server: Server) -> int:
    head = server.http.get("/audit/checkpoint")
    if head.status_code != 200:
        raise AuditBroken(head.json()["detail"])
    body = head.json()
    public = PublicKey(raw=body.pop("public"))
    entries = [AuditEntry(**e) for e in server.get("/audit")["entries"]]
    return verify_log(entries, checkpoint=Checkpoint(**body), server_public=public)


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE audit SET at = at + 1 WHERE seq = 2",
        "UPDATE audit SET body = replace(body, 'trees', 'weeds') WHERE seq > 4",
        "UPDATE audit SET hash = 'sha256:' || hex(randomblob(32)) WHERE seq = 3",
        "DELETE FROM audit WHERE seq = 4",
        "DELETE FROM audit WHERE seq > 6",
        "DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)",
    ],
)
def test_an_edited_log_does_not_verify(original: Original, state: Path, edit: str) -> None:
    with running(original, state) as server:
        assert verify(server) > 10
        with database(state) as db:
            db.execute(edit)
        with pytest.raises(AuditBroken):
            verify(server)


@pytest.mark.parametrize("with_nodes", [False, True])
def test_a_log_rewritten_with_sound_hashes_is_found(
    original: Original, state: Path, with_nodes: bool
) -> None:
    """By whoever reads the log; with the tree's nodes rewritten too, the server signs no more."""
    with running(original, state) as server:
        entries = [AuditEntry(**e) for e in server.get("/audit")["entries"]]
        entry = entries[1]
        forged = make_entry(2, at=entry.at, kind=entry.kind, body={**entry.body, "edited": True})
        entries[1] = forged
        nodes = nodes_of([to_bytes(one.hash) for one in entries])
        with database(state) as db:
            db.execute(
                "UPDATE audit SET body = ?, hash = ? WHERE seq = 2",
                [canonical_json(forged.body).decode(), forged.hash],
            )
            for (level, position), found in nodes.items() if with_nodes else ():
                where = [found, level, position]
                db.execute(
                    "UPDATE audit_nodes SET hash = ? WHERE level = ? AND position = ?", where
                )
        with pytest.raises(AuditBroken):
            verify(server)
        if not with_nodes:
            return
        refused = server.http.get("/audit/checkpoint")
        assert (refused.status_code, refused.json()["code"]) == (500, "audit_broken")
        assert refused_merge(server, original)[:2] == (500, "audit_broken")
