"""An attestation's result as a record: in the shape of an EAR, which the log keeps."""

from __future__ import annotations

from cambium.core.canonical import digest_json
from cambium.trust.attestation import AttestationResult


def to_ear(result: AttestationResult) -> dict[str, object]:
    """Returns the result in the shape of an EAR; the status `none` vouches for no hardware.

    Source: draft-ietf-rats-ear-04. It has the shape without being one: a value, not a token.
    """
    return {
        "eat_profile": "tag:cambium.dev,2026:ear-like",
        "iat": result.issued_at,
        "exp": result.expires_at,
        "eat_nonce": result.nonce,
        "submods": {
            "server": {
                "ear.status": "affirming" if result.hardware_rooted else "none",
                "profile": result.label,
                "hardware_rooted": result.hardware_rooted,
                "debug": result.debug,
                "session": result.session,
                "measurement": result.measurement,
            }
        },
    }


def report_id(result: AttestationResult) -> str:
    """Returns the digest of the result's record."""
    return digest_json(to_ear(result))
