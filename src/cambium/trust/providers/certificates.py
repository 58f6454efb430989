"""Chains of certificates up to a pinned root, read without trusting a byte of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from cambium.core.errors import AttestationRefused
from cambium.trust.attestation import require

# What the reader of certificates raises for bytes that are none; most of it only when asked.
UNREADABLE = (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)
_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), hashes.SHA384().digest_size)


def read_der(*ders: bytes) -> list[x509.Certificate]:
    """Returns certificates; says nothing about who issued them.

    Raises:
        AttestationRefused: one is none.
    """
    try:
        return [x509.load_der_x509_certificate(der) for der in ders]
    except UNREADABLE as error:
        raise refused("a certificate cannot be read") from error


def check_chain(chain: Sequence[x509.Certificate], *, root: str, now: int) -> None:
    """Returns when each certificate was issued by the next, in its time, and the last is pinned.

    Args:
        root: SHA-256 of the last one's public key as DER, hex digits.
        now: seconds since 1970, UTC.

    Raises:
        AttestationRefused: says which check failed.
    """
    require(pin_of(chain[-1]) == root, "the root is not the one that is pinned")
    today = datetime.fromtimestamp(now, UTC)
    for child, parent in zip(chain, [*chain[1:], chain[-1]], strict=True):
        _check_issued(child, parent)
        first, last = (_field(child, f"not_valid_{w}_utc") for w in ("before", "after"))
        in_time = first <= today <= last
        require(in_time, "a certificate is not in its time")


def pin_of(certificate: x509.Certificate) -> str:
    """Returns the SHA-256 of a certificate's public key as DER, hex digits."""
    key: Any = key_of(certificate)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, spki)).hexdigest()


def key_of(certificate: x509.Certificate) -> object:
    """Returns a certificate's public key."""
    try:
        return certificate.public_key()
    except UNREADABLE as error:
        raise refused("a certificate's key cannot be read") from error


def extension_of(certificate: x509.Certificate, oid: str) -> bytes:
    """Returns the bytes of an extension that only its maker knows."""
    try:
        found = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid))
        value: Any = found.value
        return bytes(value.value)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, *UNREADABLE) as error:
        raise refused("the certificate does not say which chip and firmware") from error


def check_signed(key: object, signature: bytes, signed: bytes) -> None:
    """Returns when an issuer signed: RSASSA-PSS with SHA-384, or ECDSA on P-256 with SHA-256.

    Raises:
        InvalidSignature: it did not, or has a key of another kind.
    """
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, signed, _PSS, hashes.SHA384())
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
    else:
        raise InvalidSignature


def has_one_algorithm(whole: bytes, signed: bytes, signature: bytes) -> bool:
    """Returns whether what is outside of the signed part says what is inside, and no more.

    The algorithm outside is not signed; RFC 5280 (4.1.1.2, 5.1.1.2) wants it to be the one inside.
    """
    outside = whole[whole.index(signed) + len(signed) :]
    return outside[: 2 + outside[1]] in signed and outside.endswith(b"\0" + signature)


def refused(why: str) -> AttestationRefused:
    """Returns the error of evidence that cannot be read or does not verify."""
    return AttestationRefused(
        f"attestation refused: {why}", mend="attest again, on a machine that the references accept"
    )


def _check_issued(child: x509.Certificate, parent: x509.Certificate) -> None:
    require(_field(child, "issuer") == _field(parent, "subject"), "it names another issuer")
    whole, signed = child.public_bytes(serialization.Encoding.DER), child.tbs_certificate_bytes
    one = has_one_algorithm(whole, signed, child.signature)
    require(one, "a certificate names two algorithms, or its signature is not whole bytes")
    try:
        check_signed(key_of(parent), child.signature, signed)
    except (InvalidSignature, ValueError) as error:
        raise refused("a certificate's issuer did not sign it") from error


def _field(certificate: x509.Certificate, what: str) -> Any:
    try:
        return getattr(certificate, what)
    except UNREADABLE as error:
        raise refused(f"a certificate's {what} cannot be read") from error
