"""What an evaluator signs is read, judged again, and sent under the server's own digests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cambium.core.canonical import digest_bytes
from cambium.core.evidence import GateSpec, Measurement
from cambium.lifecycle.evidence import record_digest
from cambium.lifecycle.gates import judge
from cambium.serve.store.key_files import save_key
from cambium.trust.dsse import make_statement, open_envelope, seal
from cambium.trust.keys import SigningKey, generate_key

SERVER, EVALUATOR = generate_key(), generate_key()
CANDIDATE = digest_bytes(b"candidate")
SPEC = GateSpec(name="retention", metric="loss", threshold=-0.03, min_items=2)
MEASURED = Measurement(
    gate="retention", metric="loss", baseline=2.0, candidate=2.0, effect=0.0, ci=(-0.01, 0.01),
    mde=float("inf"), num_items=8, items_digest=digest_bytes(b"items"),
    subject={"candidate": CANDIDATE},
)  # fmt: skip


def envelope_of(key: SigningKey = SERVER, **changes: Any) -> dict[str, Any]:
    verdict = judge(SPEC, MEASURED).to_json() | changes
    said = {"bar": SPEC.to_json(), "look": 0, "verdict": verdict}
    return seal(key, make_statement({"trees": CANDIDATE}, said))


def show(stage: Any, envelope: dict[str, Any]) -> None:
    row = {"digest": record_digest(envelope), "look": 0, "gate": "retention", "envelope": envelope}
    server = {"key_id": SERVER.key_id, "role": "server", "public": SERVER.public_key.raw}
    stage.answers["GET /keys"] = (200, {"keys": [server]})
    stage.answers["GET /proposals/p1/evidence"] = (200, {"evidence": [row]})
    stage.answers["POST /proposals/p1/evidence"] = lambda body: (200, {"sent": body})


@pytest.fixture
def key(tmp_path: Path) -> Path:
    save_key(EVALUATOR, tmp_path / "evaluator.key")
    return tmp_path / "evaluator.key"


def test_every_verdict_is_signed_by_the_digest_that_the_server_gave_it(
    cambium, stage, key: Path
) -> None:
    envelope = envelope_of()
    show(stage, envelope)
    ended = cambium("vouch", "p1", "--key", key)
    assert (ended.status, ended.err) == (0, "")
    assert "retention" in ended.out and EVALUATOR.key_id in ended.out
    ((body),) = stage.sent("POST /proposals/p1/evidence")
    assert body["key_id"] == EVALUATOR.key_id
    added = {"keyid": EVALUATOR.key_id, "sig": body["signatures"][record_digest(envelope)]}
    signed = {**envelope, "signatures": [*envelope["signatures"], added]}
    assert open_envelope(signed, public_key=EVALUATOR.public_key)


def test_what_does_not_hold_together_is_not_signed(cambium, stage, key: Path) -> None:
    worse = replace(MEASURED, ci=(-0.9, 0.01)).to_json()
    elsewhere = replace(MEASURED, subject={"candidate": digest_bytes(b"other")})
    for envelope in (
        envelope_of(measurement=worse),
        envelope_of(outcome="fail"),
        envelope_of(why="it is fine"),
        envelope_of(**judge(SPEC, elsewhere).to_json()),
        envelope_of(key=generate_key()),
    ):
        show(stage, envelope)
        assert cambium("vouch", "p1", "--key", key).status == 1
        assert stage.sent("POST /proposals/p1/evidence") == []


def test_there_is_something_to_sign(cambium, stage, key: Path) -> None:
    show(stage, envelope_of())
    stage.answers["GET /proposals/p1/evidence"] = (200, {"evidence": []})
    ended = cambium("vouch", "p1", "--key", key, "--json")
    assert ended.status == 1 and "no evidence" in json.dumps(ended.err)
