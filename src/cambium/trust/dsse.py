"""Signed evidence: in-toto statements in DSSE envelopes, sealed and opened strictly.

Source: DSSE protocol 1.0 (pre-authentication encoding) and in-toto Attestation Framework v1.
Deviation: the payload must be canonical JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Mapping, Sequence
from typing import cast

from cambium.core.canonical import canonical_json, is_digest
from cambium.core.errors import CambiumError, DataError, DigestMismatch, SignatureInvalid
from cambium.trust.keys import PublicKey, SigningKey
from cambium.trust.quorum import Approver

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
EVIDENCE_TYPE = "https://cambium.dev/evidence/v1"
MAX_SIGNATURES = 64


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
    return countersign(key, unsigned(statement))


def unsigned(statement: dict[str, object]) -> dict[str, object]:
    """Returns the envelope of a statement that nobody has signed, which nothing opens."""
    payload = base64.b64encode(canonical_json(statement)).decode("ascii")
    return {"payload": payload, "payloadType": PAYLOAD_TYPE, "signatures": []}


def countersign(key: SigningKey, envelope: Mapping[str, object]) -> dict[str, object]:
    """Returns the envelope with `key`'s signature after those that it has.

    Raises:
        SignatureInvalid: the envelope is malformed.
    """
    signed = key.sign(encode_for_signing(PAYLOAD_TYPE, _decoded(envelope.get("payload"))))
    added = {"keyid": key.key_id, "sig": base64.b64encode(bytes.fromhex(signed)).decode("ascii")}
    before = cast("list[object]", envelope["signatures"])
    return {**envelope, "signatures": [*before, added]}


def open_envelope(
    envelope: object, *, public_key: PublicKey, kind: str = EVIDENCE_TYPE
) -> dict[str, object]:
    """Returns the statement of an envelope that `public_key` signed, whoever else did.

    Raises:
        SignatureInvalid: the envelope is malformed, or the signature does not verify.
        DigestMismatch: what was signed is no statement of this predicate type.
    """
    payload, signatures = _fields(envelope)
    own = [signature for key_id, signature in signatures if key_id == public_key.key_id]
    if not own:
        raise SignatureInvalid("the envelope names another key", mend="ask who signed it")
    if not public_key.verify(encode_for_signing(PAYLOAD_TYPE, payload), own[0].hex()):
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


def count_signers(
    envelope: object, people: Sequence[Approver], *, revoked: Collection[str], now: int
) -> tuple[int, tuple[str, ...]]:
    """Returns how many distinct keys of `people` signed, and why others of theirs do not count.

    Strangers' signatures are nothing to it. `now` is in seconds since 1970, UTC.

    Raises:
        SignatureInvalid: the envelope is malformed.
    """
    payload, signatures = _fields(envelope)
    data, known = encode_for_signing(PAYLOAD_TYPE, payload), {p.key_id: p for p in people}
    counted, refused = set[str](), dict[str, str]()
    for key_id, signature in signatures:
        person = known.get(key_id)
        if person is None:
            continue
        if key_id in revoked or person.has_expired(now):
            refused[person.name] = "revoked" if key_id in revoked else "expired"
        elif not person.public.verify(data, signature.hex()):
            refused[person.name] = "not signed by that key"
        else:
            counted.add(person.public.raw)
    return len(counted), tuple(f"{name}'s is {why}" for name, why in refused.items())


def encode_for_signing(payload_type: str, payload: bytes) -> bytes:
    r"""Returns DSSE's pre-authentication encoding, which no other kind of record can equal.

    Example:
        >>> encode_for_signing("http://example.com/HelloWorld", b"hello world")
        b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _fields(envelope: object) -> tuple[bytes, list[tuple[str, bytes]]]:
    outer = _exact(envelope, {"payload", "payloadType", "signatures"})
    if outer["payloadType"] != PAYLOAD_TYPE:
        raise SignatureInvalid("the envelope holds another payload type", mend="reject it")
    listed = cast("list[object]", outer["signatures"])
    if not isinstance(outer["signatures"], list) or not 1 <= len(listed) <= MAX_SIGNATURES:
        raise SignatureInvalid("an envelope carries a list of signatures", mend="reject it")
    signed = [_exact(one, {"keyid", "sig"}) for one in listed]
    return _decoded(outer["payload"]), [(str(s["keyid"]), _decoded(s["sig"])) for s in signed]


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
