"""Chains of certificates up to a pinned root, read without trusting a byte of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from cambium.core.errors import AttestationRefused
from cambium.trust.attestation import require

# What the reader of certificates raises for bytes that are none; most of it only when asked.
UNREADABLE = (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)
_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), hashes.SHA384().digest_size)
_ECDSA = {"secp256r1": (hashes.SHA256(),), "secp384r1": (hashes.SHA384(), hashes.SHA256())}


def read_der(*ders: bytes) -> list[x509.Certificate]:
    """Returns certificates; says nothing about who issued them.

    Raises:
        AttestationRefused: one is none.
    """
    try:
        return [x509.load_der_x509_certificate(der) for der in ders]
    except UNREADABLE as error:
        raise refused("a certificate cannot be read") from error


def read_pem(pem: bytes, *, count: int) -> tuple[x509.Certificate, ...]:
    """Returns the certificates of a chain; says nothing about who issued them.

    Raises:
        AttestationRefused: it holds others than `count`, or anything beside them.
    """
    try:
        found = x509.load_pem_x509_certificates(pem.rstrip(b"\0"))
    except UNREADABLE as error:
        raise refused("a certificate cannot be read") from error
    require(len(found) == count, f"the chain is not of {count} certificates")
    # Base64 has several spellings for the same bytes, and texts may stand between them.
    again = b"".join(c.public_bytes(serialization.Encoding.PEM) for c in found)
    require(again.rstrip() == pem.rstrip(b"\0\r\n"), "the certificates are not strict PEM")
    return tuple(found)


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


def need_authority(*certificates: x509.Certificate) -> None:
    """Returns when each certificate may issue others.

    Raises:
        AttestationRefused: one may not, or does not say so.
    """
    for certificate in certificates:
        try:
            found = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        except (x509.ExtensionNotFound, x509.DuplicateExtension, *UNREADABLE) as error:
            raise refused("an issuer's certificate is none of an authority") from error
        require(found.value.ca, "an issuer's certificate is none of an authority")


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
    """Returns when an issuer signed: RSASSA-PSS with SHA-384, or ECDSA on P-256 or P-384.

    Intel signs with SHA-256; NVIDIA signs certificates with SHA-384, and lists with SHA-256.

    Raises:
        InvalidSignature: it did not, or has a key of another kind.
    """
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, signed, _PSS, hashes.SHA384())
        return
    if isinstance(key, ec.EllipticCurvePublicKey):
        for algorithm in _ECDSA.get(key.curve.name, ()):
            with suppress(InvalidSignature):
                key.verify(signature, signed, ec.ECDSA(algorithm))
                return
    raise InvalidSignature


def check_ecdsa(
    key: object, signature: bytes, signed: bytes, *, curve: type[ec.EllipticCurve]
) -> None:
    """Returns when a processor signed; r and s stand one after the other, large end first.

    Args:
        curve: P-256, with SHA-256, or P-384, with SHA-384.

    Raises:
        InvalidSignature: it did not, or has a key of another kind.
        ValueError: the signature's numbers cannot be ones.
    """
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, curve):
        raise InvalidSignature
    half = len(signature) // 2
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(_ECDSA[key.curve.name][0]))


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
