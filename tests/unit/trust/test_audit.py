from __future__ import annotations

from dataclasses import replace

import pytest
from tests.merkle_log import nodes_of

from cambium.core.canonical import digest_bytes
from cambium.core.errors import AuditBroken, DataError
from cambium.trust.audit import (
    AuditEntry,
    Checkpoint,
    check_grown,
    make_entry,
    sign_checkpoint,
    to_bytes,
    verify_log,
)
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.merkle import GrowingTree, consistency_proof

SERVER = generate_key()
LENGTH = 40


def make_log(length: int = LENGTH, *, kind: str = "learn") -> list[AuditEntry]:
    return [
        make_entry(n + 1, at=n, kind=kind, body={"n": n, "x": [1.5, "é"]}) for n in range(length)
    ]


def checkpoint_of(entries: list[AuditEntry], key: SigningKey = SERVER) -> Checkpoint:
    tree = GrowingTree()
    for entry in entries:
        tree.append(to_bytes(entry.hash))
    return sign_checkpoint(key, tree.size, tree.root())


LOG = make_log()
SIGNED = checkpoint_of(LOG)


def verify(entries: list[AuditEntry]) -> int:
    return verify_log(entries, checkpoint=SIGNED, server_public=SERVER.public_key)


def first_bad(entries: list[AuditEntry]) -> int:
    with pytest.raises(AuditBroken) as caught:
        verify(entries)
    seq = caught.value.detail["seq"]
    assert isinstance(seq, int)
    assert f"entry {seq}" in caught.value.message
    return seq


def test_a_log_verifies_to_its_length() -> None:
    assert [entry.seq for entry in LOG] == list(range(1, LENGTH + 1))
    assert verify(LOG) == LENGTH
    assert verify_log([], checkpoint=checkpoint_of([]), server_public=SERVER.public_key) == 0
    alone = make_log(1)
    assert checkpoint_of(alone).root == alone[0].hash


def test_every_edit_is_found_at_its_place() -> None:
    tried = 0
    for index, entry in enumerate(LOG):
        edits: list[dict[str, object]] = [
            {"at": entry.at + 1},
            {"kind": "other"},
            {"body": {}},
            {"body": {**entry.body, "n": -1}},
            {"body": {"n": float("nan")}},
            {"hash": digest_bytes(b"x")},
            {"hash": "sha256:x"},
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


def test_an_edit_whose_hashes_were_made_again_is_found_by_the_root() -> None:
    for index, entry in enumerate(LOG):
        forged = make_entry(entry.seq, at=entry.at, kind=entry.kind, body={"n": -1})
        assert first_bad([*LOG[:index], forged, *LOG[index + 1 :]]) == LENGTH
    # Deleted, and all that follow numbered again.
    for index in range(LENGTH):
        rest = [make_entry(e.seq - 1, at=e.at, kind=e.kind, body=e.body) for e in LOG[index + 1 :]]
        assert first_bad([*LOG[:index], *rest]) == LENGTH


def test_a_cut_or_lengthened_log_is_found() -> None:
    for length in range(LENGTH):
        assert first_bad(LOG[:length]) == length + 1
    assert first_bad([*LOG, make_entry(LENGTH + 1, at=1, kind="x", body={})]) == LENGTH + 1


def test_another_history_and_a_beginning_from_one_are_found() -> None:
    other = make_log(kind="other")
    for cut in range(1, LENGTH + 1):
        assert first_bad(other[:cut] + LOG[cut:]) == LENGTH


def test_a_forged_checkpoint_is_refused() -> None:
    other = generate_key()
    signed_by_other = checkpoint_of(LOG, other)
    for checkpoint in (
        signed_by_other,
        replace(signed_by_other, key_id=SERVER.key_id),
        replace(SIGNED, size=LENGTH - 1),
        replace(SIGNED, root=LOG[0].hash),
        replace(SIGNED, signature="00" * 64),
    ):
        with pytest.raises(AuditBroken, match="signature"):
            verify_log(LOG, checkpoint=checkpoint, server_public=SERVER.public_key)


def test_a_log_grows_from_what_a_witness_kept_or_is_refused() -> None:
    nodes = nodes_of([to_bytes(entry.hash) for entry in LOG])
    public = SERVER.public_key
    forged = checkpoint_of([*make_log(10, kind="other"), *LOG[10:]])
    for size in range(LENGTH + 1):
        kept = checkpoint_of(LOG[:size])
        proof = [
            f"sha256:{step.hex()}"
            for step in consistency_proof(size, LENGTH, lambda *at: nodes[at])
        ]
        check_grown(kept, SIGNED, proof, public)
        refused = [
            (kept, checkpoint_of(LOG, generate_key()), proof),
            (replace(kept, root=SIGNED.root if size < LENGTH else LOG[0].hash), SIGNED, proof),
            (kept, SIGNED, [*proof, LOG[0].hash]),
        ]
        if size:
            refused += [(kept, forged, proof), (kept, checkpoint_of(LOG[: size - 1]), ())]
        for before, now, steps in refused:
            with pytest.raises(AuditBroken):
                check_grown(before, now, steps, public)


def test_a_body_that_is_not_json_is_bad_data() -> None:
    with pytest.raises(DataError):
        make_entry(1, at=0, kind="x", body={"x": object()})


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "0" * 62, "SHA256:" + "0" * 64,
                                  "sha256:" + "A" * 64, "0" * 64])  # fmt: skip
def test_what_is_no_hash_is_refused(text: str) -> None:
    with pytest.raises(AuditBroken):
        to_bytes(text)
