"""Claims as every provider signs them: canonical JSON with known fields."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import cast

from cambium.core.canonical import canonical_json
from cambium.core.errors import AttestationRefused, CambiumError
from cambium.trust.attestation import MAX_LIFETIME_S, Claims, require

_REPORTED = {"type", "nonce", "session", "measurement", "issued_at", "expires_at"}


def read_claims(payload: bytes, names: Set[str]) -> dict[str, object]:
    """Returns the claims of a payload that has exactly the named ones.

    Raises:
        AttestationRefused: it is something else.
    """
    try:
        claims = json.loads(payload)
        canonical = canonical_json(claims) == payload
    except (ValueError, RecursionError, CambiumError) as error:
        raise AttestationRefused("the claims are not JSON", mend="attest again") from error
    # Canonical means no claim twice, so that no other reader can read another one.
    require(canonical and isinstance(claims, dict), "the claims are not canonical JSON")
    read = cast("dict[str, object]", claims)
    require(set(read) == names, "a claim is missing or unknown")
    return read


def reported_claims(kind: str, nonce: str, *, session: str, measurement: str, now: int) -> bytes:
    """Returns claims whose hash a processor reports, as canonical JSON; they live for 300 s."""
    return canonical_json(
        {
            "type": kind,
            "nonce": nonce,
            "session": session,
            "measurement": measurement,
            "issued_at": now,
            "expires_at": now + MAX_LIFETIME_S,
        }
    )


def read_reported(payload: bytes, kind: str, *, nonce: str) -> Claims:
    """Returns the claims of `reported_claims` that answer `nonce`.

    Raises:
        AttestationRefused: it is something else.
    """
    read = read_claims(payload, _REPORTED)
    require(read["type"] == kind, "the claims are of another kind")
    session, measurement = read["session"], read["measurement"]
    issued_at, expires_at = read["issued_at"], read["expires_at"]
    require(isinstance(session, str) and isinstance(measurement, str), "a claim is no text")
    require(type(issued_at) is int and type(expires_at) is int, "a claim is no whole number")
    require(read["nonce"] == nonce, "the claims answer another nonce")
    return Claims(session=str(session), measurement=str(measurement),
                  issued_at=int(str(issued_at)), expires_at=int(str(expires_at)))  # fmt: skip
