"""A constructed SEV-SNP machine: certificates up to a root of its own, and reports as AMD's are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from tests.certificates import MEASUREMENT, NONCE, NOW, unsigned, unsigned_list

from cambium.trust.providers.sev_snp import (
    _CHIP_ID,
    _TCB_PARTS,
    REPORT_BYTES,
    SIGNED_BYTES,
    SnpEvidence,
    SnpReference,
    Tcb,
    claims_payload,
)

TCB = Tcb(boot_loader=4, tee=1, snp=0x80, microcode=209)
LAUNCH = bytes(range(48))
SERIALS = {"ARK": 0xA1, "ASK": 0xA2, "VCEK": 0xA3}
CHIP = bytes(range(64, 128))
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), hashes.SHA384().digest_size)


@cache
def _rsa(_which: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What differs from one machine, or one forgery, to the next."""

    tcb: Tcb = TCB
    chip: bytes = CHIP
    certified: Tcb = TCB
    certified_chip: bytes = CHIP
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1())
    )
    valid_days: tuple[int, int] = (-30, 30)
    signed_by: str = "ask"
    with_extensions: bool = True

    def certificates(self) -> tuple[bytes, bytes, bytes]:
        """Returns VCEK, ASK and ARK as DER."""
        ark = self._issue("ARK", _rsa("ark").public_key(), "ARK", _rsa("ark"))
        ask = self._issue("ASK", _rsa("ask").public_key(), "ARK", _rsa("ark"))
        issuer = {"ask": "ASK", "ark": "ARK", "other": "ASK"}[self.signed_by]
        vcek = self._issue("VCEK", self.key.public_key(), issuer, _rsa(self.signed_by),
                           machine=True)  # fmt: skip
        return vcek, ask, ark

    def report(self, payload: bytes) -> bytearray:
        """Returns a report over the claims, not signed yet."""
        report = bytearray(REPORT_BYTES)

        def put(at: int, value: bytes) -> None:
            report[at : at + len(value)] = value

        put(0x00, (3).to_bytes(4, "little"))
        put(0x08, (0x30000 | 1 << 17).to_bytes(8, "little"))
        put(0x34, (1).to_bytes(4, "little"))
        put(0x50, hashlib.sha512(payload).digest())
        put(0x90, LAUNCH)
        put(0x1A0, self.chip)
        raw = bytes([self.tcb.boot_loader, self.tcb.tee, 0, 0, 0, 0,
                     self.tcb.snp, self.tcb.microcode])  # fmt: skip
        for at in (0x38, 0x180, 0x1E0, 0x1F0):
            put(at, raw)
        return report

    def sign(self, report: bytearray) -> bytes:
        """Returns the report with its signature, as the firmware writes it."""
        signature = self.key.sign(bytes(report[:SIGNED_BYTES]), ec.ECDSA(hashes.SHA384()))
        r, s = utils.decode_dss_signature(signature)
        report[SIGNED_BYTES : SIGNED_BYTES + 72] = r.to_bytes(72, "little")
        report[SIGNED_BYTES + 72 : SIGNED_BYTES + 144] = s.to_bytes(72, "little")
        return bytes(report)

    def evidence(self, payload: bytes | None = None, *, nonce: str = NONCE) -> SnpEvidence:
        payload = payload or claims_payload(
            nonce, session="ed25519:x", measurement=MEASUREMENT, now=NOW
        )
        vcek, ask, ark = self.certificates()
        report = self.sign(self.report(payload))
        return SnpEvidence(report=report, vcek=vcek, ask=ask, ark=ark, payload=payload)

    def changed(self, at: int, value: bytes) -> SnpEvidence:
        """Returns evidence whose report says something else, truly signed."""
        good = self.evidence()
        report = bytearray(self.report(good.payload))
        report[at : at + len(value)] = value
        return replace(good, report=self.sign(report))

    def _issue(
        self,
        name: str,
        public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
        issuer: str,
        key: rsa.RSAPrivateKey,
        *,
        machine: bool = False,
    ) -> bytes:
        days = self.valid_days if machine else (-30, 30)
        builder = unsigned(name, issuer, public=public, serial=SERIALS[name], days=days)
        if machine and self.with_extensions:
            found = {oid: bytes([2, 1, n]) if n < 128 else bytes([2, 2, 0, n])
                     for part, oid in _TCB_PARTS.items()
                     for n in [vars(self.certified)[part]]}  # fmt: skip
            for oid, value in {**found, _CHIP_ID: self.certified_chip}.items():
                extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
                builder = builder.add_extension(extension, critical=False)
        signed = builder.sign(key, hashes.SHA384(), rsa_padding=PSS)
        return signed.public_bytes(serialization.Encoding.DER)


def reference(**changes: object) -> SnpReference:
    raw = (
        _rsa("ark")
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    good = SnpReference(
        ark=hashlib.sha256(raw).hexdigest(),
        measurements=frozenset({LAUNCH.hex()}),
        minimum=Tcb(boot_loader=4, tee=0, snp=0x10, microcode=200),
        revocation=False,
    )
    return replace(good, **changes)  # type: ignore[arg-type]


def revocation_list(
    *revoked: str,
    days: tuple[int, int] = (-1, 30),
    issuer: str = "ARK",
    signed_by: str = "ark",
    extension: x509.ExtensionType | None = None,
) -> bytes:
    """Returns the root's list as DER, with the certificates of these names on it."""
    builder = unsigned_list([SERIALS[name] for name in revoked], issuer, days=days)
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    signed = builder.sign(_rsa(signed_by), hashes.SHA384(), rsa_padding=PSS)
    return signed.public_bytes(serialization.Encoding.DER)
