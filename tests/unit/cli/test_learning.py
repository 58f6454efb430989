from __future__ import annotations

import json
from pathlib import Path

import pytest

POLICY = (200, {"learning": {"max_examples_per_call": 2, "max_example_bytes": 5000}})


def learned(body: dict) -> tuple[int, dict]:
    within = {"trust_region": {"ok": body["loss"] != "entropy"}}
    answer = {"loss_before": 2.0, "loss_after": 1.5, "monitors": within}
    if body["adapter_id"] == "bad" and body["examples"][0]["text"] == "two":
        return 200, {**answer, "steps": 1, "state": "quarantined"}
    return 200, {**answer, "steps": 8, "state": "ephemeral"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "facts.jsonl"
    texts = ("zero", "one", "two", "three", "four")
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return file


@pytest.fixture
def school(stage):
    stage.answers["GET /policy"] = POLICY
    stage.answers["POST /learn/step"] = learned
    stage.answers["GET /adapters/new"] = (404, {"detail": "none", "code": "adapter_not_found"})
    stage.answers["GET /adapters/old"] = (200, {"adapter_id": "old", "domain": "code"})
    stage.answers["GET /adapters/bad"] = (200, {"adapter_id": "bad", "domain": None})
    stage.answers["POST /adapters/ephemeral"] = (201, {"adapter_id": "new"})
    return stage


def test_a_missing_adapter_is_made_and_taught_within_bounds(cambium, school, source) -> None:
    ended = cambium("learn", source, "--adapter", "new", "--domain", "code", "--steps", "3")
    assert ended.status == 0
    assert "1.5" in ended.out
    assert school.sent("POST /adapters/ephemeral") == [{"task_id": "new", "domain": "code"}]
    bodies = school.sent("POST /learn/step")
    assert [[e["text"] for e in b["examples"]] for b in bodies] == [
        ["zero", "one"],
        ["two", "three"],
        ["four"],
    ]
    for body in bodies:
        del body["examples"]
        assert body == {"adapter_id": "new", "loss": "task", "steps": 3, "source": "facts.jsonl"}


def test_consent_and_rate_are_sent_only_when_given(cambium, school, source) -> None:
    args = ("--adapter", "old", "--domain", "code", "--consent", "--lr", "0.002", "--json")
    ended = cambium("learn", source, *args)
    assert [c["call"] for c in ended.json["calls"]] == [1, 2, 3]
    body = school.sent("POST /learn/step")[0]
    assert (body["consent"], body["lr"], body["steps"]) == (True, 0.002, 8)
    assert school.sent("POST /adapters/ephemeral") == []


def test_an_adapter_of_another_domain_is_not_taught(cambium, school, source) -> None:
    ended = cambium("learn", source, "--adapter", "old", "--domain", "law")
    assert ended.status == 2
    assert "for domain code" in ended.err
    assert school.sent("POST /learn/step") == []


def test_quarantine_ends_the_lesson_with_a_no(cambium, school, source) -> None:
    ended = cambium("learn", source, "--adapter", "bad")
    assert ended.status == 1
    assert "quarantined after call 2" in ended.err
    assert len(school.sent("POST /learn/step")) == 2


def test_an_error_names_the_call_it_met(cambium, school, source) -> None:
    school.answers["POST /learn/step"] = (409, {"detail": "spent", "code": "budget_exceeded"})
    ended = cambium("learn", source, "--adapter", "old")
    assert (ended.status, "call 1 of 3: spent" in ended.err) == (1, True)


def test_another_failure_than_a_missing_adapter_makes_none(cambium, school, source) -> None:
    school.answers["GET /adapters/new"] = (503, {"detail": "closing", "code": "stopped"})
    assert cambium("learn", source, "--adapter", "new").status == 3
    assert school.sent("POST /adapters/ephemeral") == []


def test_a_bad_source_is_found_before_anything_is_sent(cambium, school, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    ended = cambium("learn", tmp_path / "x.txt", "--adapter", "new")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "not UTF-8" in ended.err
    assert school.calls == []


@pytest.mark.parametrize("steps", ["0", "9", "x"])
def test_steps_are_one_to_eight(cambium, school, source, steps: str) -> None:
    ended = cambium("learn", source, "--adapter", "new", "--steps", steps)
    assert (ended.status, ended.err.count("\n"), school.calls) == (2, 1, [])


@pytest.mark.parametrize("rate", ["nan", "inf", "0", "-1", "2"])
def test_a_rate_that_is_none_is_found_before_anything_is_sent(
    cambium, school, source, rate
) -> None:
    ended = cambium("learn", source, "--adapter", "new", f"--lr={rate}")
    assert (ended.status, ended.err.count("\n"), school.calls) == (2, 1, [])


def test_calls_that_were_undone_are_named(cambium, school, source) -> None:
    ended = cambium("learn", source, "--adapter", "old", "--loss", "entropy")
    assert ended.status == 0 and "call 1, 2, 3" in ended.err
    assert "undone" not in cambium("learn", source, "--adapter", "old").err


def test_a_server_without_bounds_is_not_guessed_at(cambium, school, source) -> None:
    school.answers["GET /policy"] = (200, {"learning": None})
    assert cambium("learn", source, "--adapter", "new").status == 3
    assert school.sent("POST /learn/step") == []
