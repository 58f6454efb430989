"""Attestation in three roles: an attester makes evidence, a verifier appraises it, others rely.

Evidence is the provider's own; what anybody relies on is the result, and that is made here. Its
label is the verifier's, never what a configuration or the evidence says of itself.

Source: RATS architecture (RFC 9334).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cambium.core.canonical import is_digest
from cambium.core.errors import AttestationRefused
from cambium.trust.dsse import make_statement, unsigned

SOFTWARE_DEV, SEV_SNP, TDX, NVIDIA = "software-dev", "sev-snp", "tdx", "nvidia"
MAX_LIFETIME_S = 300
RESULT_TYPE = "https://cambium.dev/attestation-result/v1"
_NONCE = re.compile(r"[0-9a-f]{64}")
Evidence = TypeVar("Evidence", contravariant=True)


# A provider is a label here and a file in `providers/`; a GPU is none but beside a processor.
HARDWARE = frozenset({SEV_SNP, TDX, f"{SEV_SNP}+{NVIDIA}", f"{TDX}+{NVIDIA}"})


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What authentic evidence says: which session, what it measured, from when until when.

    Times are in seconds since 1970, UTC.
    """

    session: str
    measurement: str
    issued_at: int
    expires_at: int


class Verifier(Protocol, Generic[Evidence]):
    """Knows one provider's roots and evidence."""

    @property
    def label(self) -> str:
        """Returns the one label that its roots can vouch for."""
        ...

    def verify(self, evidence: Evidence, *, nonce: str) -> Claims:
        """Returns the claims of evidence that a trusted root vouches for and that answers `nonce`.

        Raises:
            AttestationRefused: says which check failed.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class AttestationResult(Claims):
    """The claims as found good, worth what the label is worth.

    Args:
        label: of the root that vouched; travels with whatever relies on it.
        signatures: the attesters', over `statement`; the result counts for nothing without them.
    """

    label: str
    hardware_rooted: bool
    debug: bool
    nonce: str
    signatures: tuple[object, ...] = ()

    def envelope(self) -> dict[str, object]:
        """Returns the whole result, about what was measured, as far as attesters have signed it."""
        said = {name: value for name, value in vars(self).items() if name != "signatures"}
        statement = make_statement({"server": self.measurement}, said, kind=RESULT_TYPE)
        return {**unsigned(statement), "signatures": [*self.signatures]}


def new_nonce() -> str:
    """Returns 32 random bytes as hex; the verifier makes one for each appraisal, used once."""
    return secrets.token_hex(32)


def appraise(
    evidence: Evidence,
    *,
    verifier: Verifier[Evidence],
    nonce: str,
    accept: Collection[str],
    now: int,
) -> AttestationResult:
    """Returns the result of holding evidence to the nonce that was given out and to the policy.

    Args:
        accept: the labels that the policy accepts; none accepts nothing.
        now: seconds since 1970, UTC.

    Raises:
        AttestationRefused: says which check failed.
    """
    label = verifier.label
    require(_NONCE.fullmatch(nonce) is not None, "the nonce is not 32 bytes of hex")
    rooted = label in HARDWARE
    require(rooted or label == SOFTWARE_DEV, f"the root's label {label!r} is unknown")
    require(label in accept, f"the policy does not accept {label!r}; it accepts {sorted(accept)}")
    claims = verifier.verify(evidence, nonce=nonce)
    require(claims.issued_at <= now, "the claims were issued in the future")
    require(now < claims.expires_at, "the claims have expired")
    lifetime_s = claims.expires_at - claims.issued_at
    require(lifetime_s <= MAX_LIFETIME_S, f"the claims outlive {MAX_LIFETIME_S} s")
    require(is_digest(claims.measurement), "the measurement is no digest")
    return AttestationResult(**vars(claims), label=label, nonce=nonce, hardware_rooted=rooted,
                             debug=not rooted)  # fmt: skip


def require(holds: bool, why: str) -> None:
    """Refuses evidence for which a check does not hold.

    Raises:
        AttestationRefused: says why.
    """
    if not holds:
        raise AttestationRefused(
            f"attestation refused: {why}",
            mend="attest again, with a provider that the policy accepts",
        )
