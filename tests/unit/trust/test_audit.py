from __future__ import annotations

from dataclasses import replace

import pytest

from cambium.core.canonical import digest_bytes
from cambium.core.errors import AuditBroken, DataError
from cambium.trust.audit import GENESIS, AuditEntry, next_entry, sign_head, verify_chain
from cambium.trust.keys import generate_key

SERVER = generate_key()
LENGTH = 40


def make_log(length: int = LENGTH, *, kind: str = "learn") -> list[AuditEntry]:
    entries: list[AuditEntry] = []
    for number in range(length):
        last = entries[-1] if entries else None
        entries.append(next_entry(last, at=number, kind=kind, body={"n": number, "x": [1.5, "é"]}))
    return entries


LOG = make_log()
HEAD = sign_head(SERVER, LOG[-1])


def verify(entries: list[AuditEntry], *, signed: bool = True) -> int:
    head = HEAD if signed else None
    return verify_chain(entries, head=head, server_public=SERVER.public_key)


def first_bad(entries: list[AuditEntry]) -> int:
    with pytest.raises(AuditBroken) as caught:
        verify(entries)
    seq = caught.value.detail["seq"]
    assert isinstance(seq, int)
    assert f"entry {seq}" in caught.value.message
    return seq


def test_a_log_verifies_to_its_length() -> None:
    assert LOG[0].prev == GENESIS == "sha256:" + "0" * 64
    assert [entry.seq for entry in LOG] == list(range(1, LENGTH + 1))
    assert verify(LOG) == LENGTH
    assert verify(LOG, signed=False) == LENGTH
    assert verify_chain([], head=None, server_public=SERVER.public_key) == 0


def test_every_edit_is_found_at_its_place() -> None:
    tried = 0
    for index, entry in enumerate(LOG):
        edits: list[dict[str, object]] = [
            {"at": entry.at + 1},
            {"kind": "other"},
            {"body": {}},
            {"body": {**entry.body, "n": -1}},
            {"body": {"n": float("nan")}},
            {"prev": digest_bytes(b"x")},
            {"hash": digest_bytes(b"x")},
            {"seq": entry.seq + 1},
            {"seq": 0},
        ]
        for edit in edits:
            assert first_bad([*LOG[:index], replace(entry, **edit), *LOG[index + 1 :]]) == entry.seq
            tried += 1
    assert tried == 9 * LENGTH


def test_every_deletion_swap_and_insertion_is_found() -> None:
    tried = 0
    for index in range(LENGTH):
        assert first_bad(LOG[:index] + LOG[index + 1 :]) == index + 1
        assert first_bad([*LOG[:index], LOG[index], *LOG[index:]]) == index + 2
        tried += 2
    for index in range(LENGTH - 1):
        swapped = [*LOG[:index], LOG[index + 1], LOG[index], *LOG[index + 2 :]]
        assert first_bad(swapped) == index + 1
        tried += 1
    assert tried == 3 * LENGTH - 1


def test_a_cut_or_lengthened_log_is_found_by_the_head() -> None:
    for length in range(LENGTH):
        assert verify(LOG[:length], signed=False) == length
        assert first_bad(LOG[:length]) == length + 1
    longer = [*LOG, next_entry(LOG[-1], at=1, kind="extra", body={})]
    assert verify(longer, signed=False) == LENGTH + 1
    assert first_bad(longer) == LENGTH + 1


def test_a_rewritten_history_is_found_by_the_head() -> None:
    rewritten = make_log(kind="other")
    assert verify(rewritten, signed=False) == LENGTH
    assert first_bad(rewritten) == LENGTH


def test_a_beginning_from_another_log_is_found() -> None:
    """Each half is sound in itself, and the last entry is the one that was signed."""
    other = make_log(kind="other")
    for cut in range(1, LENGTH):
        assert first_bad(other[:cut] + LOG[cut:]) == cut + 1


def test_a_forged_head_is_refused() -> None:
    other = generate_key()
    signed_by_other = sign_head(other, LOG[-1])
    for head in (
        signed_by_other,
        replace(signed_by_other, key_id=SERVER.key_id),
        replace(HEAD, seq=LENGTH - 1),
        replace(HEAD, hash=LOG[0].hash),
        replace(HEAD, signature="00" * 64),
    ):
        with pytest.raises(AuditBroken, match="signature"):
            verify_chain(LOG, head=head, server_public=SERVER.public_key)


def test_a_body_that_is_not_json_is_bad_data() -> None:
    with pytest.raises(DataError):
        next_entry(None, at=0, kind="x", body={"x": object()})
