"""A constructed NVIDIA GPU: its own root and certificates, reports and lists as NVIDIA's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from tests.certificates import MEASUREMENT, NONCE, NOW, authority, unsigned, unsigned_list

from cambium.trust.providers.certificates import pin_of
from cambium.trust.providers.nvidia import GpuState, NvidiaEvidence, NvidiaReference, gpu_claims

# From the GPU's own up to the root's.
NAMES = ("gpu", "boot rom", "provisioner", "line", "root")
SERIALS = {name: 0xC0 + at for at, name in enumerate(NAMES)}
DRIVER, VBIOS = "595.71.05", "96.00.9f.00.04"
DIGESTS = {index: bytes([index]) * 48 for index in range(1, 9)}
FIRMWARE = bytes(range(48))
OPAQUE = {
    6: bytes.fromhex("009f009604000000"),
    14: bytes.fromhex("08050000"),
    3: DRIVER.encode() + b"\0",
    12: bytes(256),
    11: b"\x55",
    20: FIRMWARE,
    34: b"\x01\x00",
    36: b"\x00\x00",
}


@cache
def _key(_which: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


@cache
def _small_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What differs from one GPU, or one forgery, to the next.

    Args:
        digests: measurements by index.
        opaque: changes to NVIDIA's own fields; None leaves one out.
        spoil: changes to the report, by place, before it is signed.
        signers: whose keys sign the report, and the GPU's certificate.
        authorities: whose certificates may issue others.
    """

    digests: Mapping[int, bytes] = field(default_factory=lambda: DIGESTS)
    opaque: Mapping[int, bytes | None] = field(default_factory=dict)
    more_opaque: bytes = b""
    blocks: bytes | None = None
    spoil: Mapping[int, bytes] = field(default_factory=dict)
    nonce: bytes | None = None
    certified: bytes | None = FIRMWARE
    signers: tuple[str, str] = ("gpu", "boot rom")
    authorities: tuple[str, ...] = NAMES[1:]
    valid_days: tuple[int, int] = (-30, 30)
    on_small_curve: bool = False

    def evidence(self, payload: bytes | None = None, *, nonce: str = NONCE) -> NvidiaEvidence:
        payload = payload or gpu_claims(
            nonce, session="ed25519:x", measurement=MEASUREMENT, now=NOW
        )
        return NvidiaEvidence(report=self.report(payload), chain=self.chain(), payload=payload)

    def report(self, payload: bytes) -> bytes:
        request = b"\x11\xe0\x01\xff" + (self.nonce or hashlib.sha256(payload).digest()) + b"\0"
        blocks = self.blocks if self.blocks is not None else b"".join(
            block(at, digest) for at, digest in self.digests.items()
        )  # fmt: skip
        said = {**OPAQUE, **self.opaque}
        opaque = b"".join(
            kind.to_bytes(2, "little") + sized(value, 2)
            for kind, value in said.items()
            if value is not None
        )
        answer = (b"\x11\x60\0\0" + bytes([len(self.digests)]) + sized(blocks, 3)
                  + bytes([7]) * 32 + sized(opaque + self.more_opaque, 2))  # fmt: skip
        signed = bytearray(request + answer)
        for at, value in self.spoil.items():
            signed[at : at + len(value)] = value
        key = _small_key() if self.on_small_curve else _key(self.signers[0])
        made = key.sign(bytes(signed), ec.ECDSA(hashes.SHA384()))
        return bytes(signed) + b"".join(
            n.to_bytes(48, "big") for n in utils.decode_dss_signature(made)
        )

    def chain(self) -> bytes:
        """Returns the five certificates as PEM, the GPU's first."""
        issuers = zip(NAMES, [*NAMES[1:], "root"], strict=True)
        return b"".join(self._issue(name, issuer) for name, issuer in issuers)

    def _issue(self, name: str, issuer: str) -> bytes:
        own = name == "gpu"
        key = _small_key() if own and self.on_small_curve else _key(name)
        days = self.valid_days if own else (-30, 30)
        builder = unsigned(name, issuer, public=key.public_key(), serial=SERIALS[name], days=days)
        if not own:
            ca = authority(is_one=name in self.authorities)
            builder = builder.add_extension(ca, critical=True)
        elif self.certified is not None:
            oid = x509.ObjectIdentifier("2.23.133.5.4.1")
            said = x509.UnrecognizedExtension(oid, b"\x30\x3f before " + self.certified)
            builder = builder.add_extension(said, critical=False)
        signed = builder.sign(_key(self.signers[1] if own else issuer), hashes.SHA384())
        return signed.public_bytes(serialization.Encoding.PEM)


def block(index: int, digest: bytes, *, specification: int = 1) -> bytes:
    """Returns a measurement as the GPU answers it."""
    return bytes([index, specification]) + sized(b"\x81" + sized(digest, 2), 2)


def sized(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size, "little") + data


def reference(**changes: object) -> NvidiaReference:
    good = NvidiaReference(
        root=pin_of(x509.load_pem_x509_certificates(Gpu().chain())[-1]),
        states=(state(),),
        revocation=True,
    )
    return replace(good, **changes)  # type: ignore[arg-type]


def state(**changes: object) -> GpuState:
    """Returns what is accepted: two digests at index 3, and nothing is said of the last one."""
    named = {at: frozenset({digest.hex()}) for at, digest in list(DIGESTS.items())[:-1]}
    named[3] |= {"00" * 48}
    good = GpuState(driver=DRIVER, vbios=VBIOS, measurements=named)
    return replace(good, **changes)  # type: ignore[arg-type]


def revoked(*names: str, issuer: str = "root", days: tuple[int, int] = (-1, 30)) -> bytes:
    """Returns an issuer's revocation list as DER, signed with SHA-256 as NVIDIA's are."""
    builder = unsigned_list([SERIALS[name] for name in names], issuer, days=days)
    return builder.sign(_key(issuer), hashes.SHA256()).public_bytes(serialization.Encoding.DER)
