from __future__ import annotations

import base64
import copy
import json

import pytest

from cambium.core.canonical import digest_bytes
from cambium.core.errors import DataError, DigestMismatch, SignatureInvalid
from cambium.trust.dsse import (
    PAYLOAD_TYPE,
    encode_for_signing,
    make_statement,
    open_envelope,
    seal,
)
from cambium.trust.keys import generate_key

KEY = generate_key()
SUBJECT = {"candidate": digest_bytes(b"candidate")}
STATEMENT = make_statement(SUBJECT, {"gate": "retention", "effect": -0.01, "items": [1, 2]})
ENVELOPE = seal(KEY, STATEMENT)


def sealed_bytes(payload: bytes) -> dict[str, object]:
    """An envelope with a valid signature over any bytes."""
    signature = bytes.fromhex(KEY.sign(encode_for_signing(PAYLOAD_TYPE, payload)))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": KEY.key_id, "sig": base64.b64encode(signature).decode()}],
    }


def test_a_statement_survives_its_envelope() -> None:
    stored = json.loads(json.dumps(ENVELOPE))
    opened = open_envelope(stored, public_key=KEY.public_key)
    assert opened == STATEMENT
    assert opened["_type"] == "https://in-toto.io/Statement/v1"
    assert opened["subject"] == [
        {"name": "candidate", "digest": {"sha256": SUBJECT["candidate"].removeprefix("sha256:")}}
    ]


def test_encoding_matches_the_protocols_example() -> None:
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert encode_for_signing("http://example.com/HelloWorld", b"hello world") == expected


def test_every_byte_of_the_payload_counts() -> None:
    payload, tried = base64.b64decode(str(ENVELOPE["payload"])), 0
    for position in range(len(payload)):
        for bit in range(8):
            changed = bytearray(payload)
            changed[position] ^= 1 << bit
            edited = dict(ENVELOPE, payload=base64.b64encode(bytes(changed)).decode())
            with pytest.raises(SignatureInvalid):
                open_envelope(edited, public_key=KEY.public_key)
            tried += 1
    assert tried == 8 * len(payload) > 1000


def test_another_key_is_refused_even_under_the_same_name() -> None:
    other = generate_key()
    with pytest.raises(SignatureInvalid, match="another key"):
        open_envelope(ENVELOPE, public_key=other.public_key)
    forged = copy.deepcopy(seal(other, STATEMENT))
    forged["signatures"][0]["keyid"] = KEY.key_id  # type: ignore[index]
    with pytest.raises(SignatureInvalid, match="does not verify"):
        open_envelope(forged, public_key=KEY.public_key)


@pytest.mark.parametrize(
    "value", [None, [], "x", 7, {}, {"payload": "", "payloadType": "", "signatures": []}]
)
def test_what_is_no_envelope_is_refused(value: object) -> None:
    with pytest.raises(SignatureInvalid):
        open_envelope(value, public_key=KEY.public_key)


@pytest.mark.parametrize(
    "change",
    [
        {"payloadType": "application/json"},
        {"signatures": []},
        {"signatures": ENVELOPE["signatures"] * 65},  # type: ignore[operator]
        {"signatures": [*ENVELOPE["signatures"], None]},  # type: ignore[misc]
        {"signatures": [None]},
        {"signatures": [{"keyid": KEY.key_id}]},
        {"payload": None},
        {"payload": "%%%"},
        {"payload": f"{ENVELOPE['payload']}\n"},
        {"extra": 1},
    ],
)
def test_malformed_envelopes_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(SignatureInvalid):
        open_envelope({**ENVELOPE, **change}, public_key=KEY.public_key)


@pytest.mark.parametrize(
    "payload",
    [
        b"not json",
        b"\xff",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"a":1,"a":2}',
        b'{ "a": 1 }',
        b'{"a":NaN}',
        b"{}",
        json.dumps(STATEMENT).encode(),
    ],
)
def test_signed_bytes_that_are_no_canonical_statement_are_refused(payload: bytes) -> None:
    with pytest.raises(DigestMismatch):
        open_envelope(sealed_bytes(payload), public_key=KEY.public_key)


def test_a_statement_of_another_type_is_refused() -> None:
    other = make_statement(SUBJECT, {}, kind="https://example.com/other")
    with pytest.raises(DigestMismatch):
        open_envelope(seal(KEY, other), public_key=KEY.public_key)
    with pytest.raises(DigestMismatch):
        open_envelope(seal(KEY, dict(STATEMENT, _type="other")), public_key=KEY.public_key)


@pytest.mark.parametrize("subjects", [{}, {"a": "sha256:short"}, {"a": "x"}])
def test_a_statement_needs_subjects_by_digest(subjects: dict[str, str]) -> None:
    with pytest.raises(DataError):
        make_statement(subjects, {})
