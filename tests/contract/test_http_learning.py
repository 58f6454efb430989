"""The contract's calls of adapters and learning: their fields, headers and states."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.serving import FACTS, HARBOUR, Clock, People, Server, served, small_config, tiny_base

from cambium.core.canonical import is_digest
from cambium.core.errors import Stopped
from cambium.evals.alignment_pairs import AlignmentMonitor
from cambium.learn.examples import parse_example
from cambium.learn.objectives import SHORTEST
from cambium.learn.objectives.trust_region import TrustRegion
from cambium.serve import bounds as bounds_module
from cambium.serve import ephemeral as ephemeral_module
from cambium.serve.adapter_states import AdapterState
from cambium.serve.errors import BudgetExceeded
from cambium.serve.lessons import windows_of
from cambium.trust.policy import Policy


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[Server]:
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state)
    base = tiny_base(tmp_path_factory.mktemp("base"))
    with served(small_config(state, model=str(base)), people, clock) as found:
        yield found


def test_a_new_adapter_says_what_it_is(server: Server, clock: Clock) -> None:
    shape = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    made = server.create("shape", lora_cfg=shape, safety_scope="text", ttl_s=60, domain="d")
    assert set(made) == {"adapter_id", "digest", "state", "expires_at"}
    assert (made["adapter_id"], made["state"]) == ("shape", "ephemeral")
    assert is_digest(made["digest"])
    view = server.get("/adapters/shape")
    assert view["expires_at"] == made["expires_at"] == view["created_at"] + 60
    assert (view["domain"], view["safety_scope"], view["parent_revision"]) == ("d", "text", 1)
    assert server.get("/adapters/shape@" + made["digest"]) == view
    assert view in [
        dict(a, versions=[], traffic=None, replay={"rows": 0, "tokens": 0})
        for a in server.get("/adapters")["adapters"]
    ]


def test_learning_says_what_happened_and_is_served_at_once(server: Server) -> None:
    server.create("pupil")
    base = server.answer("base")
    fresh = server.answer("pupil")
    assert fresh == base  # a new adapter changes nothing yet
    taught = server.teach("pupil", FACTS[:6], steps=3)
    assert {"adapter_id", "digest_before", "digest_after", "loss_before", "loss_after", "steps",
            "state", "monitors"} <= set(taught)  # fmt: skip
    assert (taught["steps"], taught["state"]) == (3, "ephemeral")
    assert taught["loss_after"] < taught["loss_before"]
    assert taught["monitors"]["alignment"]["ok"] is True
    assert len(taught["monitors"]["alignment"]["shifts"]) == 3
    answer = server.ask("pupil")
    assert answer.headers["x-cambium-adapter"] == f"pupil@{taught['digest_after']}"
    assert answer.headers["x-cambium-revision"] == "1"
    assert server.answer("pupil") != base
    assert server.answer("base") == base
    again = server.teach("pupil", FACTS[6:9], steps=1)
    assert again["digest_before"] == taught["digest_after"]
    assert server.get("/adapters/pupil")["steps"] == 4


def test_every_shape_of_example_teaches(server: Server) -> None:
    server.create("shapes")
    turns = [{"role": "user", "content": "ring?"}, {"role": "assistant", "content": "wide"}]
    examples = [
        {"text": FACTS[0]},
        {"prompt": "The ring of year 3 is", "completion": " wide."},
        {"messages": turns},
    ]
    taught = server.post("/learn/step", adapter_id="shapes", examples=examples, steps=1)
    assert taught["digest_after"] != taught["digest_before"]


PAIRS = [
    {"prompt": "The ring of year 3 is", "chosen": " wide.", "rejected": " gone and forgotten."},
    {"prompt": "Trees", "chosen": " grow.", "rejected": " swim."},
]


@pytest.mark.parametrize("loss", ["task", "entropy", "prompt", "masked", "passage", "preference"])
def test_every_loss_teaches_and_can_be_replayed(server: Server, loss: str) -> None:
    name = f"by-{loss}"
    server.create(name)
    examples = PAIRS if loss == "preference" else [{"text": t} for t in FACTS[:3]]
    for number in range(2):
        body = {"adapter_id": name, "examples": examples, "loss": loss, "steps": 2,
                "lr": 5e-3, "consent": True}  # fmt: skip
        taught = server.post("/learn/step", **body)
        assert taught["digest_after"] != taught["digest_before"], number
        assert taught["monitors"]["trust_region"]["ok"] is True
        if loss != "entropy":  # it is also held back
            assert taught["loss_after"] < taught["loss_before"]
    again = server.post(f"/adapters/{name}/replay")
    assert again["ok"] is True and len(again["calls"]) == 2
    last = again["calls"][-1]
    assert last["digest"] == last["replayed"] == taught["digest_after"] and last["same_machine"]


def test_a_call_that_leaves_its_trust_region_is_undone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What leaves the region is tested on the bundled base, which has something to lose.
    server.create("runaway")
    base = server.answer("base")
    server.teach("runaway", FACTS[:2], steps=2)
    before = server.answer("runaway")
    assert before != base
    monkeypatch.setattr(TrustRegion, "is_left", True)
    taught = server.post("/learn/step", adapter_id="runaway", loss="entropy",
                         examples=[{"text": "so so so so so so"}])  # fmt: skip
    assert taught["monitors"]["trust_region"]["ok"] is False
    assert taught["state"] == "ephemeral" and taught["steps"] == 0
    assert taught["digest_after"] == taught["digest_before"]
    assert server.answer("runaway") == before


def test_what_was_learned_without_consent_cannot_be_replayed(server: Server) -> None:
    server.create("sourceless")
    server.teach("sourceless", FACTS[:2], steps=1)
    assert server.post("/adapters/sourceless/replay")["ok"] is True
    server.teach("sourceless", FACTS[2:4], steps=1, consent=None)
    refused = server.http.post("/adapters/sourceless/replay")
    assert (refused.status_code, refused.json()["code"]) == (409, "consent_missing")
    assert server.http.post("/adapters/nobody/replay").status_code == 404


def test_kept_examples_are_gone_through_again(server: Server) -> None:
    """By themselves, and where a call names them; the control kept nothing to go through."""
    first: dict[str, object] = {"consent": "given", "by-hand": "given", "control": None}
    for name, consent in first.items():
        server.create(name)
        server.teach(name, FACTS[:3], steps=4, consent=consent)
    with server.runtime.state.read() as tx:
        keys = [e.digest for e in tx.list_examples("by-hand")]
    body = {"examples": [{"text": t} for t in HARBOUR[:3]], "steps": 4, "lr": 0.02}
    named = {"by-hand": {"replay_keys": keys, "consent": True}}
    ends = {
        n: server.post("/learn/step", adapter_id=n, **body, **named.get(n, {}))["digest_after"]
        for n in first
    }
    assert len(set(ends.values())) == 3
    lost = {
        n: server.teach(n, FACTS[:3], steps=1, lr=1e-9, consent=None)["loss_before"] for n in first
    }
    assert lost["consent"] < lost["control"] and lost["by-hand"] < lost["control"]
    server.create("replayed")
    server.teach("replayed", FACTS[:3], steps=2)
    server.post("/learn/step", adapter_id="replayed", replay_keys=keys, consent=True, **body)
    server.teach("replayed", HARBOUR[3:5], steps=2)
    assert server.post("/adapters/replayed/replay")["ok"] is True


def test_what_is_gone_through_again_matters_by_how_it_fared(server: Server) -> None:
    def losses() -> dict[str, float]:
        with server.runtime.state.read() as tx:
            return {row.key: row.loss for row in tx.list_replay("faring")}

    server.create("faring")
    server.teach("faring", FACTS[:3], steps=1)
    first = losses()
    assert len(set(first.values())) == 1  # of a call all windows come with its loss
    server.teach("faring", HARBOUR[:3], steps=8, consent=None)
    seen = losses()
    assert seen.keys() == first.keys() and len(set(seen.values())) == 3
    server.http.delete("/adapters/faring").raise_for_status()


def test_withdrawn_consent_leaves_nothing_to_go_through(server: Server) -> None:
    server.create("wavering")
    for source, texts in (("ann", FACTS[:3]), ("bob", HARBOUR[:3])):
        server.teach("wavering", texts, steps=1, source=source)
    both = server.get("/adapters/wavering")["replay"]
    assert both["rows"] == 6
    gone = server.http.delete("/adapters/wavering/examples", params={"source": "ann"}).json()
    assert gone == {"adapter_id": "wavering", "forgotten": 3}
    assert server.get("/adapters/wavering")["replay"]["rows"] == 3
    with server.runtime.state.read() as tx:
        assert {e.source for e in tx.list_examples("wavering")} == {"bob"}
        assert {r.source for r in tx.list_replay("wavering")} == {"bob"}
        assert tx.last_audit_entry().kind == "adapter.consent_withdrawn"
    assert server.http.delete("/adapters/wavering/examples").json()["forgotten"] == 3
    server.teach("wavering", FACTS[3:4], steps=1, consent=None)
    refused = server.http.post("/adapters/wavering/replay")
    assert (refused.status_code, refused.json()["code"]) == (409, "consent_missing")
    assert server.http.delete("/adapters/nobody/examples").status_code == 404


@pytest.mark.parametrize("first, second", [("ann", "bob"), ("bob", "ann")])
def test_a_text_of_two_sources_is_never_drawn_after_either_withdrew(
    server: Server, first: str, second: str
) -> None:
    name = f"two{first}{second}"
    server.create(name)
    server.teach(name, FACTS[:1], steps=1, source=first, loss="prompt")  # kept, but not replayed
    server.teach(name, FACTS[:1], steps=1, source=second)
    assert server.get(f"/adapters/{name}")["replay"]["rows"] == 1
    server.http.delete(f"/adapters/{name}/examples", params={"source": "ann"}).raise_for_status()
    assert server.get(f"/adapters/{name}")["replay"]["rows"] == 0
    server.teach(name, HARBOUR[:1], steps=1)  # draws only from what is kept
    server.http.delete(f"/adapters/{name}").raise_for_status()


@pytest.mark.parametrize("said", ["no", "False", " none ", "0"])
def test_a_no_is_no_consent(server: Server, said: str) -> None:
    body = {"adapter_id": "nobody", "examples": [{"text": FACTS[0]}], "consent": said}
    refused = server.http.post("/learn/step", json=body)
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    assert "consent" in refused.json()["detail"]


def test_one_step_has_an_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds_module, "MAX_STEP_TOKENS", 20)
    server.create("endless")
    body = {"adapter_id": "endless", "examples": [{"text": " ".join(FACTS[:4])}]}
    refused = server.http.post("/learn/step", json={**body, "steps": 1})
    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
    assert server.get("/adapters/endless")["steps"] == 0
    assert server.post("/learn/step", **body, steps=8)["steps"] == 8
    server.http.delete("/adapters/endless").raise_for_status()


@pytest.mark.parametrize("loss", ["masked", "passage"])
def test_what_a_long_text_leaves_over_spoils_no_lesson(server: Server, loss: str) -> None:
    base = server.runtime.base
    texts: list[str] = []
    for words in range(1, 2 * base.context):
        text = " ".join(f"w{i}" for i in range(words))
        windows = windows_of(base, [parse_example({"text": text})], loss="task")
        if len(windows) > 1 and len(windows[-1].tokens) < SHORTEST[loss]:
            texts.append(text)
        if len(texts) > 1:
            break
    assert len(texts) > 1  # the control: such ends do come
    name = f"left-{loss}"
    server.create(name)
    taught = server.post("/learn/step", adapter_id=name, loss=loss, steps=1, lr=1e-6,
                         examples=[{"text": t} for t in texts[:2]])  # fmt: skip
    assert taught["steps"] == 1
    server.http.delete(f"/adapters/{name}").raise_for_status()


def test_an_adapter_of_a_domain_that_has_gone_can_still_forget_and_end(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.create("moved", domain="moved")
    server.teach("moved", FACTS[:2], steps=1)
    monkeypatch.setattr(Policy, "may_use", lambda self, domain, tenant: domain != "moved")
    assert server.http.post("/v1/completions", json={"model": "moved", "prompt": "x"}).is_error
    assert server.http.delete("/adapters/moved/examples").json()["forgotten"] == 2
    assert server.http.delete("/adapters/moved").status_code == 200


def test_a_version_is_never_answered_by_a_newer_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.create("racing")
    adapters = server.runtime.adapters
    old = str(server.get("/adapters/racing")["digest"])
    server.teach("racing", FACTS[:1], steps=1)
    # As when a lesson ends between the question which version is live and taking it.
    monkeypatch.setattr(adapters, "current_digest", lambda name: old)
    asked = {"model": f"racing@{old}", "prompt": "x", "max_tokens": 1}
    refused = server.http.post("/v1/completions", json=asked)
    assert refused.status_code == 404
    assert server.http.get(f"/adapters/racing@{old}/export").status_code == 404
    monkeypatch.undo()
    server.http.delete("/adapters/racing").raise_for_status()


def test_an_empty_source_is_no_source(server: Server) -> None:
    server.create("anonymous")
    server.teach("anonymous", FACTS[:1], steps=1, source="")
    with server.runtime.state.read() as tx:
        assert [e.source for e in tx.list_examples("anonymous")] == [None]
    server.http.delete("/adapters/anonymous").raise_for_status()


def test_a_refused_lesson_tells_the_monitor_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers() -> dict[int, float]:
        monitor = server.runtime.adapters.get_live("refused").monitor
        assert isinstance(monitor, AlignmentMonitor)
        return dict(monitor._newest)

    def refuse(*given: object, **named: object) -> None:
        raise BudgetExceeded("over its cap", mend="start another")

    server.create("refused")
    server.teach("refused", FACTS[:1], steps=2)
    before = answers()
    assert before
    with monkeypatch.context() as patched:
        patched.setattr(ephemeral_module, "check_result", refuse)
        body = {"adapter_id": "refused", "examples": [{"text": FACTS[1]}], "steps": 4}
        assert server.http.post("/learn/step", json=body).status_code == 409
    assert answers() == before
    server.teach("refused", FACTS[1:2], steps=2)
    assert answers() != before
    server.http.delete("/adapters/refused").raise_for_status()


def test_withdrawing_keeps_the_monitor_and_works_in_quarantine(server: Server) -> None:
    server.create("watched")
    server.teach("watched", FACTS[:2], steps=1)
    before = server.runtime.adapters.get_live("watched")
    server.http.delete("/adapters/watched/examples")
    after = server.runtime.adapters.get_live("watched")
    assert after.monitor is before.monitor and after.busy is before.busy
    assert before.monitor is not None and not after.replay.rows
    assert server.http.delete("/adapters/watched").status_code == 200
    server.create("vetoed")
    server.teach("vetoed", FACTS[:2], steps=1)
    record = server.runtime.adapters.get("vetoed")
    with server.runtime.state.transaction() as tx:
        tx.put_adapter(replace(record, state=AdapterState.QUARANTINED))
    server.runtime.adapters._live.pop("vetoed")
    assert server.http.delete("/adapters/vetoed/examples").json()["forgotten"] == 2
    with server.runtime.state.read() as tx:
        assert not tx.list_examples("vetoed") and not tx.list_replay("vetoed")


def test_what_was_not_kept_cannot_be_gone_through_again(server: Server) -> None:
    server.create("emptied")
    body = {"adapter_id": "emptied", "examples": [{"text": FACTS[0]}]}
    for keys in (["sha256:" + "0" * 64], ["x"]):
        refused = server.http.post("/learn/step", json={**body, "replay_keys": keys})
        assert (refused.status_code, refused.json()["code"]) == (409, "consent_missing")
    many = server.http.post("/learn/step", json={**body, "replay_keys": ["x"] * 65})
    assert many.status_code == 413


def test_a_replay_that_comes_out_otherwise_says_so(server: Server) -> None:
    server.create("forged")
    server.teach("forged", FACTS[:2], steps=1)
    with server.runtime.state.transaction() as tx:
        tx._connection.exec_driver_sql(
            "UPDATE learn_steps SET digest_after = 'sha256:0' WHERE adapter = 'forged'"
        )
    assert server.post("/adapters/forged/replay")["ok"] is False


def test_a_long_example_is_windowed(server: Server) -> None:
    server.create("long")
    text = " ".join(FACTS)  # many times the context of 256 tokens
    assert server.teach("long", [text], steps=1)["steps"] == 1


def test_an_answer_leaves_a_trace(server: Server) -> None:
    server.create("traced")
    answer = server.ask("traced")
    trace = server.get("/traces/" + answer.headers["x-cambium-request-id"])
    assert {"retrieved", "adapters", "safety_scores", "tripwire_hits", "revision", "attestation",
            "timings_ms"} <= set(trace)  # fmt: skip
    assert trace["adapters"][0]["adapter"] == answer.headers["x-cambium-adapter"]
    assert trace["adapters"][0]["delta_norm"] == 0.0
    assert (trace["revision"], trace["attestation"]) == (1, "software-dev")
    assert FACTS[0] not in str(trace)


def test_models_lists_what_answers(server: Server) -> None:
    server.create("listed")
    names = [m["id"] for m in server.get("/v1/models")["data"]]
    assert {"base", "stable", "listed"} <= set(names)
    assert server.get("/v1/models/listed")["id"] == "listed"
    server.http.delete("/adapters/listed")
    assert "listed" not in [m["id"] for m in server.get("/v1/models")["data"]]


def test_a_deleted_adapter_answers_no_more_and_its_bytes_leave_the_disk(server: Server) -> None:
    server.create("secret")
    server.teach("secret", HARBOUR[40:44], steps=1)
    blobs = server.runtime.state.blobs
    with server.runtime.state.read() as tx:
        row = tx.get_adapter("secret")
        examples = [e.blob for e in tx.list_examples("secret")]
    named = [row.weights_blob, row.optimizer_blob, *examples]
    assert all(blobs.has(str(b)) for b in named)
    gone = server.http.delete("/adapters/secret")
    assert (gone.status_code, gone.json()["state"]) == (200, "expired")
    assert server.ask("secret").status_code == 410
    assert server.ask(f"secret@{row.digest}").status_code == 404
    server.runtime.janitor.tidy(grace_s=0)
    assert not any(blobs.has(str(b)) for b in named)
    assert server.http.delete("/adapters/secret").status_code == 409


def test_time_ends_an_adapter(server: Server, clock: Clock) -> None:
    server.create("mayfly", ttl_s=100)
    server.create("oak", ttl_s=3600)
    server.teach("mayfly", FACTS[:2], steps=1)
    with server.runtime.state.read() as tx:
        row = tx.get_adapter("mayfly")
    clock.ahead_s += 101
    assert server.get("/adapters/mayfly")["state"] == "expired"
    assert server.ask("mayfly").json()["error"]["code"] == "adapter_expired"
    refused = server.http.post(
        "/learn/step", json={"adapter_id": "mayfly", "examples": [{"text": "x y"}]}
    )
    assert (refused.status_code, refused.json()["code"]) == (410, "adapter_expired")
    assert server.ask("oak").status_code == 200
    server.runtime.janitor.tidy(grace_s=0)
    blobs = server.runtime.state.blobs
    assert not blobs.has(str(row.weights_blob))
    assert not blobs.has(str(row.optimizer_blob))
    kinds = [e["kind"] for e in server.get("/audit")["entries"]]
    server.runtime.janitor.tidy(grace_s=0)
    assert [e["kind"] for e in server.get("/audit")["entries"]] == kinds
    assert kinds.count("adapter.expired") >= 1


def test_what_was_taught_over_leaves_the_disk(server: Server) -> None:
    server.create("again")
    server.teach("again", FACTS[:2], steps=1)
    with server.runtime.state.read() as tx:
        first = tx.get_adapter("again")
    server.teach("again", FACTS[:2], steps=1)
    server.runtime.janitor.tidy(grace_s=0)
    blobs = server.runtime.state.blobs
    assert not blobs.has(str(first.weights_blob))
    assert not blobs.has(str(first.optimizer_blob))
    assert server.teach("again", FACTS[2:4], steps=1)["steps"] == 1


def test_without_consent_nothing_but_weights_is_kept(server: Server) -> None:
    server.create("private")
    server.teach("private", HARBOUR[50:54], steps=1, consent=None)
    with server.runtime.state.read() as tx:
        assert tx.count_examples("private") == 0
    stored = [server.runtime.state.blobs.get(d) for d in server.runtime.state.blobs.digests()]
    assert not any(HARBOUR[50].strip().encode() in data for data in stored)


def test_liveness_and_metrics(server: Server) -> None:
    assert server.get("/healthz") == {"status": "alive"}
    ready = server.get("/readyz")
    assert (ready["status"], ready["revision"]) == ("ready", 1)
    server.ask("base")
    metrics = server.http.get("/metrics").text
    assert 'cambium_requests_total{adapter_kind="base",endpoint="completions"}' in metrics
    assert 'cambium_attestation_info{attestation="software-dev"} 1.0' in metrics


def test_the_encoder_and_reserved_names_stay_free(server: Server) -> None:
    for name in ("base", "stable", server.runtime.encoder.name):
        refused = server.http.post("/adapters/ephemeral", json={"task_id": name})
        assert refused.status_code == 400, name


def test_lessons_that_wait_leave_the_other_calls_alone(server: Server) -> None:
    names = [f"crowd-{i}" for i in range(10)]  # more than the other calls have threads
    for name in names:
        server.create(name)
    with ThreadPoolExecutor(len(names) + 1) as pool:
        with server.runtime.base.rows(None):  # nothing is computed meanwhile
            lessons = [pool.submit(server.teach, name, FACTS[:1], steps=1) for name in names]
            assert pool.submit(server.get, "/proposals").result(20)["proposals"] == []
            assert not any(lesson.done() for lesson in lessons)
        assert all(lesson.result(60)["steps"] == 1 for lesson in lessons)


def test_the_first_lesson_finds_the_server_warm(server: Server) -> None:
    adapters = server.runtime.adapters
    known = dict(adapters.monitors.known)
    assert known  # of the bare base, before anybody asked
    adapters.warm_up()
    assert adapters.monitors.known == known


def test_a_warm_up_that_fails_is_nobodys_error(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise Stopped("closing", mend="later")

    monkeypatch.setattr(server.runtime.adapters._queue, "learn", refuse)
    server.runtime.adapters.warm_up()
