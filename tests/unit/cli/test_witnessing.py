from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.merkle_log import nodes_of
from tests.unit.cli.test_record import SERVER, checkpoint_of

from cambium.trust.audit import AuditEntry, make_entry, to_bytes
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.merkle import consistency_proof, inclusion_proof


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


def succeeded(before: int, after: int) -> tuple[list[AuditEntry], SigningKey, dict]:
    """A log whose server key changed with a kill, the new key, and what the server tells of it."""
    new = generate_key()
    entries = entries_of(before)
    body = {"reason": "smoke", "server": new.public_key.raw}
    killed = make_entry(before + 1, at=9, kind="system.killed", body=body)
    entries.append(killed)
    nodes = nodes_of([to_bytes(entry.hash) for entry in entries])
    size = len(entries)
    proof = inclusion_proof(size - 1, size, lambda *at: nodes[at])
    told = {
        "checkpoint": {k: v for k, v in checkpoint_of(entries, SERVER).items() if k != "public"},
        "entry": vars(killed),
        "proof": [f"sha256:{step.hex()}" for step in proof],
    }
    more = [
        make_entry(size + 1 + i, at=10, kind="system.revived", body={"i": i}) for i in range(after)
    ]
    return [*entries, *more], new, told


def show_change(stage, entries: list[AuditEntry], key: SigningKey, told: dict) -> None:
    show(stage, entries, key)
    stage.answers["GET /audit/successions"] = (200, {"successions": [told]})


def test_a_kill_puts_another_key_in_office_and_the_witness_follows(
    cambium, stage, tmp_path: Path
) -> None:
    file = tmp_path / "kept.json"
    entries, new, told = succeeded(4, 3)
    show(stage, entries[:3])
    assert cambium("witness", "--root", file).status == 0
    show_change(stage, entries, new, told)
    assert "from 3 to 8" in cambium("witness", "--root", file).out
    kept = json.loads(file.read_text())
    assert (kept["public"], kept["key_id"]) == (new.public_key.raw, new.key_id)
    assert "from 8 to 8" in cambium("witness", "--root", file).out
    show(stage, entries)  # the old key signs once more
    assert cambium("witness", "--root", file).status == 1
    assert json.loads(file.read_text()) == kept


@pytest.mark.parametrize("how", ["untold", "another", "other kind", "not last", "rewritten"])
def test_no_other_change_of_the_servers_key_is_followed(
    cambium, stage, tmp_path: Path, how: str
) -> None:
    file = tmp_path / "kept.json"
    entries, new, told = succeeded(4, 3)
    show(stage, entries[:3])
    assert cambium("witness", "--root", file).status == 0
    kept = file.read_text()
    if how == "another":
        new = generate_key()  # whoever can write the database, but has neither key
    if how == "other kind":
        told["entry"] = {**told["entry"], "kind": "system.stopped"}
    if how == "not last":
        told["checkpoint"] = {
            k: v for k, v in checkpoint_of(entries, SERVER).items() if k != "public"
        }
    if how == "rewritten":
        entries = [*entries_of(4, kind="other"), *entries[4:]]
    show_change(stage, entries, new, told)
    if how == "untold":
        stage.answers["GET /audit/successions"] = (200, {"successions": []})
    assert cambium("witness", "--root", file).status == 1
    assert file.read_text() == kept


def test_a_log_is_signed_by_the_key_that_it_names_last(cambium, stage) -> None:
    entries, new, _ = succeeded(4, 3)
    rows = [vars(entry) for entry in entries]
    stage.answers["GET /audit"] = lambda asked: (
        200, {"entries": [row for row in rows if row["seq"] >= int(asked["since"])]}
    )  # fmt: skip
    for key, status in ((new, 0), (SERVER, 1), (generate_key(), 1)):
        stage.answers["GET /audit/checkpoint"] = (200, checkpoint_of(entries, key))
        row = {"key_id": key.key_id, "role": "server", "public": key.public_key.raw}
        stage.answers["GET /keys"] = (200, {"keys": [row]})
        ended = cambium("log", "--verify")
        assert ended.status == status, ended.err
        assert status == 0 or "names" in ended.err
