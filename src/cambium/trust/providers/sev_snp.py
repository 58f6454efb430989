"""AMD SEV-SNP: reports of a confidential machine's processor, held to pinned roots and references.

Verifier tested on constructed evidence, every byte and every field corrupted; live path untested:
no machine of the project has such a processor.

The report's 64 bytes of free data are the SHA-512 of the claims, so the processor vouches for
nonce, session and times, and for what this process says it serves; for the rest it vouches by
itself: which firmware, which launch measurement, no debugger.

Source: AMD 56860, SEV Secure Nested Paging Firmware ABI Specification (attestation report, TCB);
AMD 57230, VCEK Certificate and KDS Interface Specification.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from cambium.trust.attestation import SEV_SNP, Claims, require
from cambium.trust.providers.certificates import (
    check_chain,
    extension_of,
    key_of,
    read_der,
    refused,
)
from cambium.trust.providers.claims import read_reported, reported_claims
from cambium.trust.providers.revocation_list import check_not_revoked
from cambium.trust.providers.tsm import TSM_REPORTS, tsm_report

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
CLAIMS_TYPE = "cambium/attestation-snp/v1"
# Of nonce, session, measurement and now: the bytes that are vouched for.
claims_payload = partial(reported_claims, CLAIMS_TYPE)
_SCALAR = 72
_ECDSA_P384_SHA384 = 1
_VERSIONS = (2, 3, 5)
_POLICY_ONE, _POLICY_MIGRATE, _POLICY_DEBUG = 1 << 17, 1 << 18, 1 << 19
_AUTHOR_KEY = 1
# Where a report holds nothing: anything there is from a format that this does not know.
_RESERVED = ((0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, 0x2A0))
_MITIGATIONS, _FIRST_WITH_MITIGATIONS = (0x1F8, 0x208), 5
_AMD = "1.3.6.1.4.1.3704.1"
_TCB_PARTS = {"boot_loader": f"{_AMD}.3.1", "tee": f"{_AMD}.3.2", "snp": f"{_AMD}.3.3",
              "microcode": f"{_AMD}.3.8"}  # fmt: skip
_CHIP_ID = f"{_AMD}.4"


@dataclass(frozen=True, kw_only=True)
class Tcb:
    """Versions of the firmware's parts, of processors named Milan and Genoa; larger is newer."""

    boot_loader: int
    tee: int
    snp: int
    microcode: int

    @classmethod
    def from_bytes(cls, raw: bytes) -> Tcb:
        """Reads the eight bytes of a report; says nothing about the four that are reserved."""
        return cls(boot_loader=raw[0], tee=raw[1], snp=raw[6], microcode=raw[7])

    def is_at_least(self, other: Tcb) -> bool:
        """Returns whether no part is older."""
        return all(vars(self)[part] >= vars(other)[part] for part in vars(other))


@dataclass(frozen=True, kw_only=True)
class SnpReference:
    """What a machine must be, decided beforehand by whoever relies on it.

    Args:
        ark: SHA-256 of the DER public key of AMD's root for the processor's line.
        measurements: launch measurements, 48 bytes as hex, that are accepted.
        minimum: the oldest firmware.
        revocation: a revocation list of AMD's root is demanded.
    """

    ark: str
    measurements: frozenset[str]
    minimum: Tcb
    revocation: bool


@dataclass(frozen=True, kw_only=True)
class SnpEvidence:
    """A report, the certificates up to AMD's root as DER, and the claims that it covers."""

    report: bytes
    vcek: bytes
    ask: bytes
    ark: bytes
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class SnpVerifier:
    """Trusts AMD's pinned root to vouch for a machine, and the references to say which.

    Args:
        now: seconds since 1970, UTC.
        crl: the root's revocation list as DER; where there is one, it counts.
    """

    reference: SnpReference
    now: int
    crl: bytes | None = None

    @property
    def label(self) -> str:
        """Returns `sev-snp`."""
        return SEV_SNP

    def verify(self, evidence: SnpEvidence, *, nonce: str) -> Claims:
        """Returns the claims that a trusted processor vouches for and that answer `nonce`.

        Raises:
            AttestationRefused: says which check failed.
        """
        report = evidence.report
        require(len(report) == REPORT_BYTES, f"a report has {REPORT_BYTES} bytes")
        vcek = self._chain(evidence)
        _check_signature(report, vcek)
        self._check_report(report, vcek)
        bound = hashlib.sha512(evidence.payload).digest()
        require(report[0x50:0x90] == bound, "the report is for other claims")
        return read_reported(evidence.payload, CLAIMS_TYPE, nonce=nonce)

    def _chain(self, evidence: SnpEvidence) -> x509.Certificate:
        """Returns the processor's certificate, verified up to the pinned root."""
        vcek, ask, ark = chain = read_der(evidence.vcek, evidence.ask, evidence.ark)
        check_chain(chain, root=self.reference.ark, now=self.now)
        missing = self.crl is None and self.reference.revocation
        require(not missing, "the revocation list is missing")
        if self.crl is not None:
            check_not_revoked(self.crl, issuer=ark, issued=(ark, ask), now=self.now)
        return vcek

    def _check_report(self, report: bytes, vcek: x509.Certificate) -> None:
        version = _number(report, 0x00, 4)
        require(version in _VERSIONS, "a report of this version is not known")
        policy, flags = _number(report, 0x08, 8), _number(report, 0x48, 4)
        require(bool(policy & _POLICY_ONE), "the guest's policy is malformed")
        require(not policy & _POLICY_DEBUG, "a debugger may look into the guest")
        require(not policy & _POLICY_MIGRATE, "the guest may be migrated")
        require(_number(report, 0x30, 4) == 0, "the report is not of privilege level 0")
        # Everything else would be another signing key, a masked chip, or not known.
        require(not flags & ~_AUTHOR_KEY, "the report does not say which chip signed it")
        unknown = () if version >= _FIRST_WITH_MITIGATIONS else (_MITIGATIONS,)
        for start, end in (*_RESERVED, *unknown):
            require(not any(report[start:end]), "reserved bytes are in use")
        require(report[0x90:0xC0].hex() in self.reference.measurements,
                "the launch measurement is none that is accepted")  # fmt: skip
        reported = Tcb.from_bytes(report[0x180:0x188])
        require(not any(report[0x182:0x186]), "the firmware's versions are malformed")
        require(reported == _certified_tcb(vcek), "the certificate is for other firmware")
        require(extension_of(vcek, _CHIP_ID) == report[0x1A0:0x1E0], "it is for another chip")
        for at in (0x38, 0x180, 0x1E0, 0x1F0):
            found = Tcb.from_bytes(report[at : at + 8])
            require(found.is_at_least(self.reference.minimum), "the firmware is too old")


class SnpAttester:
    """Asks the processor through Linux' `configfs-tsm`; untested for want of such a machine."""

    def __init__(
        self, session: str, certificates: Mapping[str, bytes], *, reports: Path = TSM_REPORTS
    ) -> None:
        """Takes the session's id and the certificates `vcek`, `ask` and `ark`, as DER."""
        self._session = session
        self._certificates = dict(certificates)
        self._reports = reports

    def attest(self, nonce: str, *, now: int, measurement: str) -> SnpEvidence:
        """Returns evidence that answers `nonce`, valid for 300 s.

        Raises:
            AttestationRefused: the machine has no such processor, or it said no.
        """
        payload = claims_payload(nonce, session=self._session, measurement=measurement, now=now)
        report = tsm_report(hashlib.sha512(payload).digest(), self._reports)
        return SnpEvidence(report=report, payload=payload, **self._certificates)


def _check_signature(report: bytes, vcek: x509.Certificate) -> None:
    require(_number(report, 0x34, 4) == _ECDSA_P384_SHA384, "it is signed by another algorithm")
    key = key_of(vcek)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise refused("the processor's key is not on P-384")
    r, s = (_number(report, SIGNED_BYTES + at, _SCALAR) for at in (0, _SCALAR))
    require(not any(report[SIGNED_BYTES + 2 * _SCALAR :]), "reserved bytes are in use")
    try:
        signature = utils.encode_dss_signature(r, s)
        key.verify(signature, report[:SIGNED_BYTES], ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError) as error:
        raise refused("the processor did not sign this report") from error


def _certified_tcb(vcek: x509.Certificate) -> Tcb:
    parts: dict[str, int] = {}
    for name, oid in _TCB_PARTS.items():
        raw = extension_of(vcek, oid)
        # A DER integer of one byte, or of two where the first is the sign's.
        fine = len(raw) in (3, 4) and raw[0] == 2 and raw[1] == len(raw) - 2
        require(fine, "the certificate's firmware versions cannot be read")
        parts[name] = int.from_bytes(raw[2:], "big")
    return Tcb(**parts)


def _number(report: bytes, at: int, size: int) -> int:
    return int.from_bytes(report[at : at + size], "little")
