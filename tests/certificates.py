"""What the constructed machines of all makers have in common: claims, certificates and lists."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

NOW = 1_790_000_000
NONCE = "ab" * 32
MEASUREMENT = "sha256:" + "5" * 64
Days = tuple[int, int]


def unsigned(
    name: str,
    issuer: str,
    *,
    public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    serial: int,
    days: Days = (-30, 30),
) -> x509.CertificateBuilder:
    """Returns a certificate to add extensions to and to sign; `days` are its time around `NOW`."""
    now = datetime.fromtimestamp(NOW, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named(issuer))
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
    )


def unsigned_list(
    serials: Iterable[int], issuer: str, *, days: Days = (-1, 30)
) -> x509.CertificateRevocationListBuilder:
    """Returns an issuer's list to sign, with the certificates of these numbers on it."""
    now = datetime.fromtimestamp(NOW, UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(_named(issuer))
        .last_update(now + timedelta(days=days[0]))
        .next_update(now + timedelta(days=days[1]))
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial)
        builder = builder.add_revoked_certificate(entry.revocation_date(now).build())
    return builder


def authority(*, is_one: bool = True) -> x509.BasicConstraints:
    """Returns the extension that says whether a certificate may issue others."""
    return x509.BasicConstraints(ca=is_one, path_length=None)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
