"""Attestation in three roles: an attester makes evidence, this verifier appraises it, others rely.

The label of a result is derived here, from the root that vouched for the evidence, and never
from a configuration or from what the evidence says of itself.

Source: RATS architecture (RFC 9334); the result has the shape of an EAT attestation result
(draft-ietf-rats-ear-04) without being one: it is a value, not a token.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, cast

from cambium.core.canonical import canonical_json, digest_json, is_digest
from cambium.core.errors import AttestationRefused, CambiumError, SignatureInvalid
from cambium.trust.keys import PublicKey

SOFTWARE_DEV = "software-dev"
CLAIMS_TYPE = "cambium/attestation/v1"
ENDORSEMENT_TYPE = "cambium/attestation-session/v1"
MAX_LIFETIME_S = 300
_NONCE = re.compile(r"[0-9a-f]{64}")
_CLAIMS = {"type", "profile", "hardware_rooted", "debug", "nonce", "session", "issued_at",
           "expires_at", "measurement"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a kind of root can vouch for at most."""

    hardware_rooted: bool
    debug: bool


# A provider is one line here and one file in `providers/`.
PROFILES = {SOFTWARE_DEV: Profile(hardware_rooted=False, debug=True)}


@dataclass(frozen=True, kw_only=True)
class TrustedRoot:
    """A root key that vouches for sessions, and the only label it can vouch for."""

    profile: str
    public: PublicKey


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """An attester's answer to one nonce.

    Args:
        root: key id of the root that endorsed the session key.
        session: the session's public key, as raw hex.
        endorsement: the root's signature over the session key and its profile.
        payload: canonical JSON of the claims; `signature`: the session key's over it.
    """

    root: str
    session: str
    endorsement: str
    payload: bytes
    signature: str


class Attester(Protocol):
    """Makes evidence about this process."""

    def attest(self, nonce: str, *, now: int, measurement: str) -> Evidence:
        """Returns evidence that answers `nonce`; `measurement` is a digest, `now` in seconds."""
        ...


@dataclass(frozen=True, kw_only=True)
class AttestationResult:
    """What the verifier found; times are in seconds since 1970, UTC.

    Args:
        label: the profile of the root that vouched; travels with whatever relies on it.
        measurement: as claimed; worth what the label is worth.
    """

    label: str
    hardware_rooted: bool
    debug: bool
    nonce: str
    session: str
    measurement: str
    issued_at: int
    expires_at: int

    def to_json(self) -> dict[str, object]:
        """Returns the result in the shape of an EAR; `none` vouches for no hardware."""
        return {
            "eat_profile": "tag:cambium.dev,2026:ear-like",
            "iat": self.issued_at,
            "exp": self.expires_at,
            "eat_nonce": self.nonce,
            "submods": {
                "server": {
                    "ear.status": "affirming" if self.hardware_rooted else "none",
                    "profile": self.label,
                    "hardware_rooted": self.hardware_rooted,
                    "debug": self.debug,
                    "session": self.session,
                    "measurement": self.measurement,
                }
            },
        }

    @property
    def report_id(self) -> str:
        """Returns the digest of the result's record, which traces carry."""
        return digest_json(self.to_json())


def new_nonce() -> str:
    """Returns 32 random bytes as hex; the verifier makes one for each appraisal, used once."""
    return secrets.token_hex(32)


def endorsement_bytes(session: PublicKey, profile: str) -> bytes:
    """Returns what a root signs to vouch for a session key."""
    record = {"type": ENDORSEMENT_TYPE, "session": session.raw, "profile": profile}
    return canonical_json(record)


def verify_evidence(
    evidence: Evidence,
    *,
    nonce: str,
    accept: Collection[str],
    trusted_roots: Collection[TrustedRoot],
    now: int,
) -> AttestationResult:
    """Returns the result of appraising `evidence` against the nonce that was given out.

    Under `software-dev` it proves only that this process held this key and answered this nonce;
    nothing about the host, the loaded code, the memory's secrecy or any hardware.

    Args:
        accept: the labels that the policy accepts; none accepts nothing.
        now: seconds since 1970, UTC.

    Raises:
        AttestationRefused: says which check failed.
    """
    _require(_NONCE.fullmatch(nonce) is not None, "the nonce is not 32 bytes of hex")
    roots = [root for root in trusted_roots if root.public.key_id == evidence.root]
    _require(len(roots) == 1, "no single trusted root has the key that vouched")
    label, root = roots[0].profile, roots[0].public
    _require(label in PROFILES, f"the root's label {label!r} is unknown")
    _require(label in accept, f"the policy does not accept {label!r}; it accepts {sorted(accept)}")
    session = _session_key(evidence.session)
    endorsed = root.verify(endorsement_bytes(session, label), evidence.endorsement)
    _require(endorsed, "the root did not vouch for this session key under this label")
    _require(session.verify(evidence.payload, evidence.signature), "the claims were not signed")
    claims = _read_claims(evidence.payload)
    profile = PROFILES[label]
    derived: dict[str, object] = {
        "type": CLAIMS_TYPE,
        "profile": label,
        "hardware_rooted": profile.hardware_rooted,
        "debug": profile.debug,
        "nonce": nonce,
        "session": session.key_id,
    }
    for name, must in derived.items():
        same = type(claims[name]) is type(must) and claims[name] == must
        _require(same, f"the claim {name!r} is not what the verifier derived")
    issued_at, expires_at = _check_times(claims, now)
    _require(is_digest(claims["measurement"]), "the measurement is no digest")
    return AttestationResult(
        label=label,
        hardware_rooted=profile.hardware_rooted,
        debug=profile.debug,
        nonce=nonce,
        session=session.key_id,
        measurement=str(claims["measurement"]),
        issued_at=issued_at,
        expires_at=expires_at,
    )


def _read_claims(payload: bytes) -> dict[str, object]:
    try:
        claims = json.loads(payload)
        canonical = canonical_json(claims) == payload
    except (ValueError, RecursionError, CambiumError) as error:
        raise _refused("the claims are not JSON") from error
    # Canonical means no claim twice, so that no other reader can read another one.
    _require(canonical and isinstance(claims, dict), "the claims are not canonical JSON")
    read = cast("dict[str, object]", claims)
    _require(set(read) == _CLAIMS, "a claim is missing or unknown")
    return read


def _check_times(claims: dict[str, object], now: int) -> tuple[int, int]:
    issued_at, expires_at = claims["issued_at"], claims["expires_at"]
    if type(issued_at) is not int or type(expires_at) is not int:
        raise _refused("the claims' times are not whole seconds")
    _require(issued_at <= now, "the claims were issued in the future")
    _require(now < expires_at, "the claims have expired")
    _require(expires_at - issued_at <= MAX_LIFETIME_S, f"the claims outlive {MAX_LIFETIME_S} s")
    return issued_at, expires_at


def _session_key(raw: str) -> PublicKey:
    try:
        return PublicKey(raw=raw)
    except SignatureInvalid as error:
        raise _refused("the session key is no public key") from error


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise _refused(why)


def _refused(why: str) -> AttestationRefused:
    return AttestationRefused(
        f"attestation refused: {why}", mend="attest again, with a provider that the policy accepts"
    )
