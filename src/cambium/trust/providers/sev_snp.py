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
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from cambium.core.canonical import canonical_json
from cambium.core.errors import AttestationRefused
from cambium.trust.attestation import MAX_LIFETIME_S, SEV_SNP, Claims, require
from cambium.trust.providers.claims import read_claims
from cambium.trust.providers.revocation_list import check_not_revoked

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
CLAIMS_TYPE = "cambium/attestation-snp/v1"
TSM_REPORTS = Path("/sys/kernel/config/tsm/report")
_CLAIMS = {"type", "nonce", "session", "measurement", "issued_at", "expires_at"}
_SCALAR = 72
_ECDSA_P384_SHA384 = 1
_VERSIONS = (2, 3, 5)
_POLICY_ONE, _POLICY_MIGRATE, _POLICY_DEBUG = 1 << 17, 1 << 18, 1 << 19
_AUTHOR_KEY = 1
# What the reader of certificates raises for bytes that are none; most of it only when asked.
_UNREADABLE = (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)
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
        claims = _read(evidence.payload)
        require(claims["nonce"] == nonce, "the claims answer another nonce")
        return Claims(
            session=str(claims["session"]),
            measurement=str(claims["measurement"]),
            issued_at=int(str(claims["issued_at"])),
            expires_at=int(str(claims["expires_at"])),
        )

    def _chain(self, evidence: SnpEvidence) -> x509.Certificate:
        """Returns the processor's certificate, verified up to the pinned root."""
        try:
            found = [
                x509.load_der_x509_certificate(der)
                for der in (evidence.vcek, evidence.ask, evidence.ark)
            ]
            vcek, ask, ark = found
            raw = ark.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        except _UNREADABLE as error:
            raise _refused("a certificate cannot be read") from error
        pinned = hashlib.sha256(raw).hexdigest() == self.reference.ark
        require(pinned, "the root is not the one that is pinned")
        now = datetime.fromtimestamp(self.now, UTC)
        for child, parent in ((ark, ark), (ask, ark), (vcek, ask)):
            _check_issued(child, parent)
            first, last = (_field(child, f"not_valid_{w}_utc") for w in ("before", "after"))
            in_time = first <= now <= last
            require(in_time, "a certificate is not in its time")
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
        require(_extension(vcek, _CHIP_ID) == report[0x1A0:0x1E0], "it is for another chip")
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
        try:
            entry = Path(tempfile.mkdtemp(prefix="cambium-", dir=self._reports))
            try:
                (entry / "inblob").write_bytes(hashlib.sha512(payload).digest())
                report = (entry / "outblob").read_bytes()
            finally:
                entry.rmdir()
        except OSError as error:
            raise _refused(f"no report from the processor: {error.strerror}") from error
        return SnpEvidence(report=report, payload=payload, **self._certificates)


def claims_payload(nonce: str, *, session: str, measurement: str, now: int) -> bytes:
    """Returns the claims that a report covers, as canonical JSON."""
    return canonical_json(
        {
            "type": CLAIMS_TYPE,
            "nonce": nonce,
            "session": session,
            "measurement": measurement,
            "issued_at": now,
            "expires_at": now + MAX_LIFETIME_S,
        }
    )


def _check_signature(report: bytes, vcek: x509.Certificate) -> None:
    require(_number(report, 0x34, 4) == _ECDSA_P384_SHA384, "it is signed by another algorithm")
    key = _key(vcek)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _refused("the processor's key is not on P-384")
    r, s = (_number(report, SIGNED_BYTES + at, _SCALAR) for at in (0, _SCALAR))
    require(not any(report[SIGNED_BYTES + 2 * _SCALAR :]), "reserved bytes are in use")
    try:
        signature = utils.encode_dss_signature(r, s)
        key.verify(signature, report[:SIGNED_BYTES], ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError) as error:
        raise _refused("the processor did not sign this report") from error


def _check_issued(child: x509.Certificate, parent: x509.Certificate) -> None:
    key = _key(parent)
    require(_field(child, "issuer") == _field(parent, "subject"), "it names another issuer")
    if not isinstance(key, rsa.RSAPublicKey):
        raise _refused("an issuer's key is not RSA")
    # The algorithm outside is not signed; RFC 5280 (4.1.1.2) wants it to be the one inside.
    whole, signed = child.public_bytes(serialization.Encoding.DER), child.tbs_certificate_bytes
    outside = whole[whole.index(signed) + len(signed) :]
    require(outside[: 2 + outside[1]] in signed, "a certificate names two algorithms")
    require(outside.endswith(b"\0" + child.signature), "a signature is not whole bytes")
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), hashes.SHA384().digest_size)
    try:
        key.verify(child.signature, child.tbs_certificate_bytes, pss, hashes.SHA384())
    except InvalidSignature as error:
        raise _refused("a certificate's issuer did not sign it") from error


def _key(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except _UNREADABLE as error:
        raise _refused("a certificate's key cannot be read") from error


def _field(certificate: x509.Certificate, what: str) -> Any:
    try:
        return getattr(certificate, what)
    except _UNREADABLE as error:
        raise _refused(f"a certificate's {what} cannot be read") from error


def _certified_tcb(vcek: x509.Certificate) -> Tcb:
    parts: dict[str, int] = {}
    for name, oid in _TCB_PARTS.items():
        raw = _extension(vcek, oid)
        # A DER integer of one byte, or of two where the first is the sign's.
        fine = len(raw) in (3, 4) and raw[0] == 2 and raw[1] == len(raw) - 2
        require(fine, "the certificate's firmware versions cannot be read")
        parts[name] = int.from_bytes(raw[2:], "big")
    return Tcb(**parts)


def _extension(certificate: x509.Certificate, oid: str) -> bytes:
    try:
        found = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid))
        value: Any = found.value
        return bytes(value.value)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, *_UNREADABLE) as error:
        raise _refused("the certificate does not say which chip and firmware") from error


def _read(payload: bytes) -> dict[str, object]:
    read = read_claims(payload, _CLAIMS)
    require(read["type"] == CLAIMS_TYPE, "the claims are of another kind")
    texts = all(isinstance(read[name], str) for name in ("nonce", "session", "measurement"))
    times = all(type(read[name]) is int for name in ("issued_at", "expires_at"))
    require(texts and times, "a claim is of another type")
    return read


def _number(report: bytes, at: int, size: int) -> int:
    return int.from_bytes(report[at : at + size], "little")


def _refused(why: str) -> AttestationRefused:
    return AttestationRefused(
        f"attestation refused: {why}", mend="attest again, on a machine that the references accept"
    )
