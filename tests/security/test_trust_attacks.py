"""The benchmark's attacks as tests, and the controls that show they could succeed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.serving import tiny_base

from cambium.bench import trust_attacks, trust_crash, trust_tenants
from cambium.bench.trust_attacks import ControlFailed
from cambium.bench.trust_tenants import NAME, Answered
from cambium.core.errors import AuditBroken, DataError


def test_no_mutated_signature_or_manifest_is_accepted() -> None:
    found = trust_attacks.mutations()
    assert found.tried >= 10_000 and found.through == 0


def test_every_rewriting_of_the_log_is_found() -> None:
    found = trust_attacks.log_edits()
    assert found.tried >= 1_000 and found.through == 0


def test_no_corrupted_evidence_is_accepted() -> None:
    found = trust_attacks.evidence()
    assert found.tried >= 200 and found.through == 0


def test_no_malformed_adapter_runs_or_breaks_anything() -> None:
    executed, broken = trust_attacks.adapter_files()
    assert executed.tried >= 10_050
    assert (executed.through, broken.through) == (0, 0)


def test_attacks_on_a_verifier_that_accepts_get_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_attacks, "check_act", lambda *given, **named: None)
    assert trust_attacks.mutations().through > 5_000
    monkeypatch.setattr(trust_attacks, "check_grown", lambda *given: None)
    monkeypatch.setattr(trust_attacks, "LOG_SIZE", 24)
    monkeypatch.setattr(trust_attacks, "SEEN_SIZE", 18)
    assert trust_attacks.log_edits().through > 50
    monkeypatch.setattr(trust_attacks, "appraise", lambda *given, **named: None)
    assert trust_attacks.evidence().through == trust_attacks.evidence().tried


def test_a_verifier_that_refuses_everything_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise AuditBroken("no")

    monkeypatch.setattr(trust_attacks, "check_act", refuse)
    with pytest.raises(ControlFailed):
        trust_attacks.mutations()
    monkeypatch.setattr(trust_attacks, "appraise", refuse)
    with pytest.raises(ControlFailed):
        trust_attacks.evidence()


def test_a_reader_that_breaks_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    read, calls = trust_attacks.from_bytes, []

    def brittle(data: Any, sites: Any) -> Any:
        calls.append(data)
        if len(calls) % 100 == 0:
            raise KeyError("a bug")
        if len(calls) > 1:
            raise DataError("no")
        return read(data, sites)

    monkeypatch.setattr(trust_attacks, "from_bytes", brittle)
    executed, broken = trust_attacks.adapter_files()
    assert executed.through == 0 and broken.through == (executed.tried + 1) // 100


def test_a_killed_writer_loses_nothing(tmp_path: Path) -> None:
    """Five kills at named points, five at random: the benchmark does two hundred."""
    code = (
        "from cambium.bench import trust_crash as t; t.ROUNDS_EACH = 1; t.RANDOM_ROUNDS = 5; "
        "t.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    rounds, acknowledged, lost, halves = map(int, done.stdout.split())
    assert (rounds, lost, halves) == (10, 0, 0) and acknowledged > 0


def test_a_lost_record_is_counted(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from cambium.bench import trust_crash as t; "
        "print(t._killed(pathlib.Path(sys.argv[1]), 0, 'committed'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip()
    assert trust_crash._look(tmp_path, {"a-0-0": "sha256:other"})[0] == 1
    assert trust_crash._look(tmp_path, {"never written": "sha256:x"})[0] == 1


def answered(tenant: str, whose: str, digest: str, scores: tuple[float, ...]) -> Answered:
    return Answered(tenant=tenant, adapter=f"{whose}:{NAME}@{digest}", scores=scores)


def test_an_answer_from_elsewhere_is_counted() -> None:
    versions = {"acme": {"a1", "a2"}, "globex": {"g1"}}
    right = [
        *[answered("acme", "acme", "a1", (-1.0,))] * 3,
        *[answered("acme", "acme", "a2", (-2.0,))] * 3,
        *[answered("globex", "globex", "g1", (-3.0,))] * 3,
    ]
    assert trust_tenants.crossed(right, versions) == 0
    for wrong in (
        answered("acme", "globex", "g1", (-3.0,)),
        answered("acme", "acme", "g1", (-3.0,)),
        answered("acme", "acme", "a1", (-3.0,)),
        answered("acme", "acme", "a1", (-2.0,)),
        answered("acme", "acme", "a3", (-1.0,)),
    ):
        assert trust_tenants.crossed([*right, wrong], versions) == 1, wrong


def test_tenants_do_not_meet_while_weights_are_swapped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a tiny base; the benchmark asks fifteen times as often, and the bundled one."""
    monkeypatch.setattr(trust_tenants, "REQUESTS", 80)
    monkeypatch.setattr(trust_tenants, "ANSWERS_BETWEEN_SWAPS", 5)
    found, swaps = trust_tenants.run(lambda _: None, model=tiny_base(tmp_path / "base"))
    assert found.tried >= 140 and swaps >= 12
    assert found.through == 0
