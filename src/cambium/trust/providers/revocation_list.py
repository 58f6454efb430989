"""Revocation lists (CRL, RFC 5280) of an attestation root, as files: nothing here asks a network.

A list that is out of its time, of another issuer or of a kind that this does not know refuses, like
a listed certificate.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from cambium.core.errors import AttestationRefused
from cambium.trust.attestation import require
from cambium.trust.providers.certificates import UNREADABLE, check_signed, has_one_algorithm

_UNREADABLE = (*UNREADABLE, x509.DuplicateExtension)


def check_not_revoked(
    der: bytes, *, issuer: x509.Certificate, issued: Sequence[x509.Certificate], now: int
) -> None:
    """Returns when the issuer's list is good at `now` and names none of what it issued.

    Args:
        der: the list; signed with RSASSA-PSS and SHA-384, or ECDSA and SHA-256.
        now: seconds since 1970, UTC.

    Raises:
        AttestationRefused: says which check failed.
    """
    try:
        found = x509.load_der_x509_crl(der)
        signed, signature, critical = found.tbs_certlist_bytes, found.signature, found.extensions
        first, last = found.last_update_utc, found.next_update_utc
        whole = found.public_bytes(serialization.Encoding.DER)
        named = [found.get_revoked_certificate_by_serial_number(c.serial_number) for c in issued]
        same_issuer = found.issuer == issuer.subject
        check_signed(issuer.public_key(), signature, signed)
    except _UNREADABLE as error:
        raise _refused("the revocation list cannot be read") from error
    except InvalidSignature as error:
        raise _refused("the root did not sign the revocation list") from error
    one = has_one_algorithm(whole, signed, signature)
    require(whole == der and one, "the revocation list is not strict DER")
    require(same_issuer, "the revocation list is another issuer's")
    # A delta, or a list of a part: what is not there would look like what is fine.
    require(not any(e.critical for e in critical), "a revocation list of this kind is not known")
    today = datetime.fromtimestamp(now, UTC)
    in_time = last is not None and first <= today < last
    require(in_time, "the revocation list is not in its time")
    require(not any(named), "a certificate of the chain was revoked")


def _refused(why: str) -> AttestationRefused:
    return AttestationRefused(
        f"attestation refused: {why}", mend="fetch the maker's list, and attest again"
    )
