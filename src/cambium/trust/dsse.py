"""Signed evidence: in-toto statements in DSSE envelopes, sealed and opened strictly.

Source: DSSE protocol 1.0 (pre-authentication encoding) and in-toto Attestation Framework v1.
Deviations: exactly one signature an envelope, and the payload must be canonical JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import cast

from cambium.core.canonical import canonical_json, is_digest
from cambium.core.errors import CambiumError, DataError, DigestMismatch, SignatureInvalid
from cambium.trust.keys import PublicKey, SigningKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
EVIDENCE_TYPE = "https://cambium.dev/evidence/v1"


def make_statement(
    subjects: Mapping[str, str], predicate: dict[str, object], *, kind: str = EVIDENCE_TYPE
) -> dict[str, object]:
    """Returns an in-toto statement that says `predicate` of `subjects` (name to digest).

    Raises:
        DataError: there is no subject, or one's digest is not a full digest.
    """
    if not subjects or not all(is_digest(digest) for digest in subjects.values()):
        raise DataError(
            "a statement needs subjects with full digests", mend="name what it is about"
        )
    named = [
        {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
        for name, digest in sorted(subjects.items())
    ]
    return {
        "_type": STATEMENT_TYPE,
        "subject": named,
        "predicateType": kind,
        "predicate": predicate,
    }


def seal(key: SigningKey, statement: dict[str, object]) -> dict[str, object]:
    """Returns the DSSE envelope of `statement` under `key`'s signature."""
    payload = canonical_json(statement)
    signature = bytes.fromhex(key.sign(encode_for_signing(PAYLOAD_TYPE, payload)))
    return {
        "payload": base64.b64encode(payload).decode("ascii"),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key.key_id, "sig": base64.b64encode(signature).decode("ascii")}],
    }


def open_envelope(
    envelope: object, *, public_key: PublicKey, kind: str = EVIDENCE_TYPE
) -> dict[str, object]:
    """Returns the statement of an envelope that `public_key` signed.

    Raises:
        SignatureInvalid: the envelope is malformed, or the signature does not verify.
        DigestMismatch: what was signed is no statement of this predicate type.
    """
    payload, key_id, signature = _fields(envelope)
    if key_id != public_key.key_id:
        raise SignatureInvalid("the envelope names another key", mend="ask who signed it")
    if not public_key.verify(encode_for_signing(PAYLOAD_TYPE, payload), signature.hex()):
        raise SignatureInvalid("the envelope's signature does not verify", mend="reject it")
    try:
        statement = json.loads(payload)
        canonical = canonical_json(statement) == payload
    except (ValueError, RecursionError, CambiumError):
        statement, canonical = None, False
    # Canonical means: no key twice and no NaN, so that every reader reads the same.
    if not canonical or not isinstance(statement, dict):
        raise DigestMismatch("the signed payload is not canonical JSON", mend="reject it")
    opened = cast("dict[str, object]", statement)
    if set(opened) != {"_type", "subject", "predicateType", "predicate"}:
        raise DigestMismatch("the signed payload is no in-toto statement", mend="reject it")
    if opened["_type"] != STATEMENT_TYPE or opened["predicateType"] != kind:
        raise DigestMismatch("the statement is of another type", mend=f"expected {kind}")
    return opened


def encode_for_signing(payload_type: str, payload: bytes) -> bytes:
    r"""Returns DSSE's pre-authentication encoding, which no other kind of record can equal.

    Example:
        >>> encode_for_signing("http://example.com/HelloWorld", b"hello world")
        b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _fields(envelope: object) -> tuple[bytes, str, bytes]:
    outer = _exact(envelope, {"payload", "payloadType", "signatures"})
    signatures = outer["signatures"]
    if outer["payloadType"] != PAYLOAD_TYPE:
        raise SignatureInvalid("the envelope holds another payload type", mend="reject it")
    if not isinstance(signatures, list) or len(cast("list[object]", signatures)) != 1:
        raise SignatureInvalid("an envelope carries exactly one signature", mend="reject it")
    inner = _exact(cast("list[object]", signatures)[0], {"keyid", "sig"})
    return _decoded(outer["payload"]), str(inner["keyid"]), _decoded(inner["sig"])


def _exact(value: object, names: set[str]) -> dict[str, object]:
    if not isinstance(value, dict) or set(cast("dict[object, object]", value)) != names:
        raise SignatureInvalid(f"an envelope has exactly {sorted(names)} here", mend="reject it")
    return cast("dict[str, object]", value)


def _decoded(text: object) -> bytes:
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    # Re-encoding refuses the other spellings that base64 allows for the same bytes.
    if not data or base64.b64encode(data).decode("ascii") != text:
        raise SignatureInvalid("the envelope is not strict base64", mend="reject it")
    return data
