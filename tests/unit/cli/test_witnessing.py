from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.merkle_log import nodes_of
from tests.unit.cli.test_record import SERVER, checkpoint_of

from cambium.trust.audit import AuditEntry, make_entry, to_bytes
from cambium.trust.keys import generate_key
from cambium.trust.merkle import consistency_proof


def entries_of(number: int, *, kind: str = "adapter.learned") -> list[AuditEntry]:
    return [make_entry(i + 1, at=1_000 * i, kind=kind, body={"i": i}) for i in range(number)]


def show(stage, entries: list[AuditEntry], key=SERVER) -> None:
    """Lets the stage answer as a server with this log would."""
    nodes = nodes_of([to_bytes(entry.hash) for entry in entries])

    def prove(asked: dict) -> tuple[int, dict]:
        first, second = int(asked["first"]), int(asked["second"])
        proof = consistency_proof(first, second, lambda *at: nodes[at])
        return 200, {"proof": [f"sha256:{step.hex()}" for step in proof]}

    stage.answers["GET /audit/checkpoint"] = (200, checkpoint_of(entries, key))
    stage.answers["GET /audit/proof"] = prove


def test_the_first_look_is_kept_and_later_ones_must_extend_it(
    cambium, stage, tmp_path: Path
) -> None:
    file = tmp_path / "kept.json"
    show(stage, entries_of(3))
    first = cambium("witness", "--root", file)
    assert first.status == 0 and "first seen: 3 entries" in first.out
    for number in (3, 4, 11):
        before = json.loads(file.read_text())["size"]
        show(stage, entries_of(number))
        found = cambium("witness", "--root", file, "--json").json
        assert (found["since"], found["size"]) == (before, number)
    assert "from 11 to 11" in cambium("witness", "--root", file).out
    assert not list(tmp_path.glob(".*"))


def test_one_lane_of_the_log_is_not_taken_for_the_other(cambium, stage, tmp_path: Path) -> None:
    show(stage, entries_of(3))
    file = tmp_path / "requests.json"
    ended = cambium("witness", "--lane", "requests", "--root", file)
    assert (ended.status, file.exists()) == (1, False)
    assert "signature does not verify" in ended.err


def rewritten(stage) -> None:
    show(stage, [*entries_of(2), *entries_of(9, kind="other")[2:]])


def forked_at_the_end(stage) -> None:
    show(stage, [*entries_of(5), entries_of(6, kind="other")[5]])


def truncated(stage) -> None:
    show(stage, entries_of(4))


def signed_by_another(stage) -> None:
    show(stage, entries_of(9), generate_key())


def without_proof(stage) -> None:
    show(stage, entries_of(9))
    stage.answers["GET /audit/proof"] = (200, {"proof": [1]})


def with_another_proof(stage) -> None:
    show(stage, entries_of(9))
    stage.answers["GET /audit/proof"] = (200, {"proof": ["sha256:" + "0" * 64]})


@pytest.mark.parametrize(
    "harm",
    [rewritten, forked_at_the_end, truncated, signed_by_another, without_proof, with_another_proof],
)
def test_a_log_that_forgot_is_told_and_what_was_kept_stays(
    cambium, stage, tmp_path: Path, harm
) -> None:
    file = tmp_path / "kept.json"
    show(stage, entries_of(6))
    assert cambium("witness", "--root", file).status == 0
    kept = file.read_text()
    harm(stage)
    ended = cambium("witness", "--root", file)
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert file.read_text() == kept


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"size": "3"}', "\ud800"])
def test_a_file_that_is_none_of_a_witness_is_refused(
    cambium, stage, tmp_path: Path, text: str
) -> None:
    show(stage, entries_of(3))
    file = tmp_path / "kept.json"
    file.write_text(text, errors="replace")
    assert cambium("witness", "--root", file).status == 2
    assert cambium("witness", "--root", tmp_path / "none" / "kept.json").status == 3
