"""Bad input: a clear error with its stable code, nothing changed, and the server still up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from httpx import Response
from tests.refused import BODY_LIMIT, DIGEST, World, world_in
from tests.serving import TREES, WAIT_S, served, small_config, tiny_base

from cambium.core.errors import ConfigError
from cambium.serve.runtime import Runtime


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_in(tmp_path_factory.mktemp("world")) as found:
        # What is still being looked at would change beside the refusals.
        assert found.server.runtime.jobs.wait_idle(WAIT_S)
        yield found


def nested(depth: int) -> bytes:
    return b'{"adapter_id": ' + b"[" * depth + b"]" * depth + b"}"


Case = tuple[Callable[[World], Response], int, str]
SHAPES: dict[str, Case] = {
    "not JSON": (lambda w: w.raw("/learn/step", b'{"adapter_id": '), 400, "invalid_request"),
    "no body": (lambda w: w.raw("/learn/step", b""), 400, "invalid_request"),
    "a list": (lambda w: w.raw("/learn/step", b"[]"), 400, "invalid_request"),
    "not UTF-8": (lambda w: w.raw("/learn/step", b'{"adapter_id": "\xff"}'), 400, "not_utf8"),
    "half a character": (
        lambda w: w.raw(
            "/learn/step", b'{"adapter_id": "live", "examples": [{"text": "\\udfff"}]}'
        ),
        400,
        "not_utf8",
    ),
    "half a character as consent": (
        lambda w: w.raw(
            "/learn/step",
            json.dumps(
                {"adapter_id": "live", "consent": "\ud800", "examples": [{"text": "a b"}]}
            ).encode(),
        ),
        400,
        "not_utf8",
    ),
    "deep nesting": (lambda w: w.raw("/learn/step", nested(100_000)), 400, "invalid_request"),
    "a huge number": (
        lambda w: w.raw("/adapters/ephemeral", b'{"task_id": "x", "ttl_s": ' + b"9" * 5000 + b"}"),
        400,
        "invalid_request",
    ),
    "a body over the bound": (
        lambda w: w.raw("/learn/step", b'{"adapter_id": "' + b"x" * BODY_LIMIT + b'"}'),
        413,
        "too_large",
    ),
    "an unknown field": (lambda w: w.learn(stepz=3), 400, "invalid_request"),
    "an unknown path": (lambda w: w.server.http.get("/nothing"), 404, "not_found"),
    "a wrong method": (lambda w: w.server.http.put("/learn/step"), 405, "invalid_request"),
}
LEARNING: dict[str, Case] = {
    "an unknown adapter": (lambda w: w.learn("nobody"), 404, "adapter_not_found"),
    "an expired adapter": (lambda w: w.learn("over"), 410, "adapter_expired"),
    "a quarantined adapter": (lambda w: w.learn("bad"), 409, "adapter_quarantined"),
    "0 steps": (lambda w: w.learn(steps=0), 400, "invalid_request"),
    "9 steps": (lambda w: w.learn(steps=9), 400, "invalid_request"),
    "steps as text": (lambda w: w.learn(steps="4"), 400, "invalid_request"),
    "steps as a truth": (lambda w: w.learn(steps=True), 400, "invalid_request"),
    "its steps are spent": (lambda w: w.learn("done"), 409, "budget_exceeded"),
    "no examples": (lambda w: w.learn(examples=[]), 400, "invalid_request"),
    "too many examples": (lambda w: w.learn(examples=[{"text": "a b"}] * 65), 413, "too_large"),
    "oversized text": (lambda w: w.learn(examples=[{"text": "a " * 10_001}]), 413, "too_large"),
    "blank text": (lambda w: w.learn(examples=[{"text": " \n"}]), 400, "invalid_request"),
    "an unknown shape": (lambda w: w.learn(examples=[{"txt": "a"}]), 400, "invalid_request"),
    "two shapes in one": (
        lambda w: w.learn(examples=[{"text": "a", "prompt": "b"}]),
        400,
        "invalid_request",
    ),
    "text as a number": (lambda w: w.learn(examples=[{"text": 4}]), 400, "invalid_request"),
    "turns without an answer": (
        lambda w: w.learn(examples=[{"messages": [{"role": "user", "content": "a"}]}]),
        400,
        "invalid_request",
    ),
    "a preference under the task loss": (
        lambda w: w.learn(examples=[{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        400,
        "invalid_request",
    ),
    "an unsupported loss": (lambda w: w.learn(loss="regret"), 400, "loss_unavailable"),
    "replay keys": (lambda w: w.learn(replay_keys=["k"]), 409, "consent_missing"),
    "lr of zero": (lambda w: w.learn(lr=0.0), 400, "invalid_request"),
    "lr below zero": (lambda w: w.learn(lr=-1e-3), 400, "invalid_request"),
    "lr too high": (lambda w: w.learn(lr=0.06), 400, "invalid_request"),
    "lr that is no number": (
        lambda w: w.raw(
            "/learn/step", b'{"adapter_id": "live", "examples": [{"text": "a b"}], "lr": NaN}'
        ),
        400,
        "invalid_request",
    ),
    "lr without end": (
        lambda w: w.raw(
            "/learn/step", b'{"adapter_id": "live", "examples": [{"text": "a b"}], "lr": 1e999}'
        ),
        400,
        "invalid_request",
    ),
    "an endless source": (lambda w: w.learn(source="s" * 401), 400, "invalid_request"),
    "an endless consent": (lambda w: w.learn(consent="s" * 401), 400, "invalid_request"),
}
BAD_NAMES = [
    "base",
    "stable",
    "",
    ".",
    "..",
    "../../etc/passwd",
    "a/b",
    "a@b",
    "a b",
    "é",
    "-a",
    "<script>alert(1)</script>",
    "a\n",
    "a\x00",
    "x" * 65,
    "'; DROP TABLE adapters; --",
]
CREATING: dict[str, Case] = {
    **{
        f"the name {name[:24]!r}": (lambda w, name=name: w.create(name), 400, "invalid_request")
        for name in BAD_NAMES
    },
    "a name as a number": (lambda w: w.create(4), 400, "invalid_request"),
    "a name that exists": (lambda w: w.create("live"), 409, "illegal_transition"),
    "the name of an expired one": (lambda w: w.create("over"), 409, "illegal_transition"),
    "rank 0": (lambda w: w.create("x", lora_cfg={"r": 0}), 400, "invalid_request"),
    "rank over the policy's": (lambda w: w.create("x", lora_cfg={"r": 17}), 400, "invalid_request"),
    "alpha 0": (lambda w: w.create("x", lora_cfg={"lora_alpha": 0}), 400, "invalid_request"),
    "no targets": (
        lambda w: w.create("x", lora_cfg={"target_modules": []}),
        400,
        "invalid_request",
    ),
    "an unknown target": (
        lambda w: w.create("x", lora_cfg={"target_modules": ["lm_head"]}),
        400,
        "model_unusable",
    ),
    "no time to live": (lambda w: w.create("x", ttl_s=0), 400, "invalid_request"),
    "a time to live over the policy's": (
        lambda w: w.create("x", ttl_s=604_801),
        400,
        "invalid_request",
    ),
    "an unknown scope": (lambda w: w.create("x", safety_scope="tools"), 400, "invalid_request"),
    "an unlisted domain": (lambda w: w.create("x", domain="law"), 404, "domain_not_found"),
    "a domain that is no name": (lambda w: w.create("x", domain="../law"), 400, "invalid_request"),
}
READING: dict[str, Case] = {
    "an unknown adapter": (lambda w: w.server.http.get("/adapters/no"), 404, "adapter_not_found"),
    "another version": (
        lambda w: w.server.http.get("/adapters/live@" + DIGEST),
        404,
        "adapter_not_found",
    ),
    "deleting an unknown adapter": (
        lambda w: w.server.http.delete("/adapters/no"),
        404,
        "adapter_not_found",
    ),
    "deleting an expired adapter": (
        lambda w: w.server.http.delete("/adapters/over"),
        409,
        "illegal_transition",
    ),
    "an unknown proposal": (lambda w: w.server.http.get("/proposals/p"), 404, "proposal_not_found"),
    "an unknown diff": (
        lambda w: w.server.http.get("/proposals/p/diff"),
        404,
        "proposal_not_found",
    ),
    "an unknown trace": (lambda w: w.server.http.get("/traces/req-0"), 404, "trace_not_found"),
    "the log from far beyond": (
        lambda w: w.server.http.get(f"/audit?since={2**70}"),
        400,
        "invalid_request",
    ),
    "no entries of the log": (
        lambda w: w.server.http.get("/audit?limit=0"),
        400,
        "invalid_request",
    ),
}
PROPOSING: dict[str, Case] = {
    "without consent": (
        lambda w: w.post("/adapters/propose_consolidation", adapter_id="fed", domain="trees"),
        409,
        "consent_missing",
    ),
    "an unknown adapter": (
        lambda w: w.post("/adapters/propose_consolidation", adapter_id="no", domain="trees"),
        404,
        "adapter_not_found",
    ),
    "an expired adapter": (
        lambda w: w.post("/adapters/propose_consolidation", adapter_id="over", domain="trees"),
        410,
        "adapter_expired",
    ),
    "a quarantined adapter": (
        lambda w: w.post("/adapters/propose_consolidation", adapter_id="bad", domain="trees"),
        409,
        "adapter_quarantined",
    ),
    "an unlisted domain": (
        lambda w: w.post("/adapters/propose_consolidation", adapter_id="harbour", domain="law"),
        404,
        "domain_not_found",
    ),
    "snapshots sent in": (
        lambda w: w.post(
            "/adapters/propose_consolidation",
            adapter_id="harbour",
            domain="port",
            eval_snapshot_ids=["mine"],
        ),
        400,
        "invalid_request",
    ),
    "evidence sent in": (
        lambda w: w.post("/gates/align_review", proposal_id=w.open, evals=["fine"]),
        400,
        "invalid_request",
    ),
    "a look at an unknown proposal": (
        lambda w: w.post("/gates/align_review", proposal_id="p-no"),
        404,
        "proposal_not_found",
    ),
    "a look at a merged proposal": (
        lambda w: w.post("/gates/align_review", proposal_id=w.merged),
        409,
        "illegal_transition",
    ),
}
SIGNING: dict[str, Case] = {
    "a wrong signature": (lambda w: w.forged(), 403, "signature_invalid"),
    "an unknown key": (lambda w: w.stranger(), 403, "key_unknown"),
    "the same key twice": (lambda w: w.approve(0), 409, "duplicate_signer"),
    "an approval for another digest": (lambda w: w.for_another(), 403, "digest_mismatch"),
    "a signature for another act": (lambda w: w.for_another_action(), 403, "digest_mismatch"),
    "another policy": (lambda w: w.approve(policy=DIGEST), 403, "digest_mismatch"),
    "an old state version": (lambda w: w.approve(state_version=0), 409, "state_version_stale"),
    "signed before the merge": (
        lambda w: w.post(f"/proposals/{w.merged}/approvals", **w.stale),
        409,
        "state_version_stale",
    ),
    "an expired signature": (
        lambda w: w.approve(expires=int(time.time())),
        403,
        "signature_expired",
    ),
    "a signature for ever": (
        lambda w: w.approve(expires=int(time.time()) + 40 * 86_400),
        403,
        "signature_expired",
    ),
    "a payload with more fields": (
        lambda w: w.post(
            f"/proposals/{w.open}/approvals",
            key_id="k",
            signature="s",
            payload={"domain_tag": "cambium.v1"},
        ),
        400,
        "invalid_request",
    ),
    "approving an unknown proposal": (
        lambda w: w.approve(proposal="p-no"),
        404,
        "proposal_not_found",
    ),
    "a rejection without a reason": (
        lambda w: w.post(f"/proposals/{w.open}/reject"),
        400,
        "invalid_request",
    ),
    "rejecting what is merged": (
        lambda w: w.post(f"/proposals/{w.merged}/reject", reason="late"),
        409,
        "illegal_transition",
    ),
}
RELEASING: dict[str, Case] = {
    "a merge without a quorum": (
        lambda w: w.post("/adapters/merge", proposal_id=w.open),
        409,
        "not_mergeable",
    ),
    "a second merge": (
        lambda w: w.post("/adapters/merge", proposal_id=w.merged),
        409,
        "not_mergeable",
    ),
    "a merge of nothing": (
        lambda w: w.post("/adapters/merge", proposal_id="p-no"),
        404,
        "proposal_not_found",
    ),
    "a rollback without a quorum": (
        lambda w: w.server.rollback(1, people=(0,)),
        409,
        "quorum_missing",
    ),
    "a rollback signed twice by one": (
        lambda w: w.server.rollback(1, people=(0, 0)),
        409,
        "quorum_missing",
    ),
    "a rollback to the present": (
        lambda w: w.server.rollback(2),
        409,
        "illegal_transition",
    ),
    "a rollback to nothing": (
        lambda w: w.post("/revisions/rollback", to=99, signatures=[]),
        404,
        "revision_not_found",
    ),
    "a rollback far beyond": (
        lambda w: w.post("/revisions/rollback", to=2**70, signatures=[]),
        404,
        "revision_not_found",
    ),
}
CASES = {
    f"{group}: {name}": case
    for group, cases in (
        ("shape", SHAPES),
        ("learn", LEARNING),
        ("create", CREATING),
        ("read", READING),
        ("propose", PROPOSING),
        ("sign", SIGNING),
        ("release", RELEASING),
    )
    for name, case in cases.items()
}
ASKING: dict[str, tuple[dict[str, Any], int, str]] = {
    "an unknown model": ({"model": "gpt-4"}, 404, "model_not_found"),
    "an unknown version": ({"model": "live@" + DIGEST}, 404, "model_not_found"),
    "half a digest": ({"model": "live@sha256:00"}, 404, "model_not_found"),
    "a path": ({"model": "../base"}, 404, "model_not_found"),
    "a domain nobody serves": ({"model": "stable", "domain": "port"}, 404, "domain_not_found"),
    "an expired adapter": ({"model": "over"}, 410, "adapter_expired"),
    "a quarantined adapter": ({"model": "bad"}, 409, "adapter_quarantined"),
    "learning from the base": ({"model": "base", "learn": True}, 400, "learn_unavailable"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_and_changes_nothing(world: World, name: str) -> None:
    send, status, code = CASES[name]
    before, answer = world.server.everything(), world.server.answer("base")
    refused = send(world)
    body = refused.json()
    assert (refused.status_code, body.get("code")) == (status, code), body
    assert refused.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "instance", "mend"} <= set(body)
    assert (body["status"], body["type"].rsplit("/", 1)[1]) == (status, code)
    assert body["mend"] or code == "internal"
    assert refused.headers["x-cambium-request-id"].startswith("req-")
    assert world.server.everything() == before
    assert world.server.answer("base") == answer


@pytest.mark.parametrize("name", ASKING)
def test_a_bad_question_is_refused_as_openai_would(world: World, name: str) -> None:
    body, status, code = ASKING[name]
    refused = world.post("/v1/completions", **{"prompt": "Fact 1", "max_tokens": 2, **body})
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert refused.headers["x-cambium-adapter"] == "none"
    assert refused.headers["x-cambium-revision"] == "2"


def test_a_refused_merge_lists_its_blockers(world: World) -> None:
    body = world.post("/adapters/merge", proposal_id=world.open).json()
    assert body["blockers"] == ["quorum: 1 of 2 approvals"]


def test_a_state_without_a_policy_learns_but_cannot_propose(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    base = tiny_base(tmp_path_factory.mktemp("base"))
    config = small_config(tmp_path_factory.mktemp("bare"), model=str(base))
    with served(config) as server:
        policy = server.get("/policy")
        assert (policy["signed"], "cambium init" in policy["why"]) == (False, True)
        server.create("a")
        server.teach("a", TREES[:3], steps=1, lr=1e-3)
        before = server.everything()
        for path, body in (
            ("/adapters/propose_consolidation", {"adapter_id": "a", "domain": "trees"}),
            ("/adapters/merge", {"proposal_id": "p"}),
            ("/revisions/rollback", {"to": 1, "signatures": []}),
        ):
            refused = server.http.post(path, json=body)
            assert refused.status_code in (404, 409), path
            assert refused.json()["code"] in ("policy_missing", "proposal_not_found")
        assert server.everything() == before


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "example.org", "::", ""])
def test_a_server_without_tokens_stays_on_this_machine(
    host: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(ConfigError, match="loopback"):
        Runtime(small_config(tmp_path_factory.mktemp("state"), host=host))
