"""Intel TDX: quotes of a confidential machine's processor, held to pinned roots and references.

Verifier tested on constructed evidence, every byte and every field corrupted; live path untested:
no machine of the project has such a processor.

The quote's 64 bytes of free data are the SHA-512 of the claims, as for SEV-SNP. A key that lives
as long as the quoting enclave signs the quote, the enclave vouches for that key in a report, the
processor's key (PCK) signs the report, and Intel certifies the processor. How old its firmware is,
Intel says in signed collateral (`tdx_tcb`), which lies in files: nothing here asks a network.

Source: Intel TDX DCAP Quoting Library API, appendix A.3 (quote version 4); Intel TDX Module base
architecture specification (TD attributes); RFC 9334 for the roles.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from cambium.trust.attestation import TDX, Claims, require
from cambium.trust.providers.certificates import (
    check_chain,
    check_ecdsa,
    key_of,
    need_authority,
    refused,
)
from cambium.trust.providers.claims import read_reported, reported_claims
from cambium.trust.providers.revocation_list import check_not_revoked
from cambium.trust.providers.tdx_quote import Quote, read_quote
from cambium.trust.providers.tdx_tcb import Collateral, check_collateral, read_pck
from cambium.trust.providers.tsm import TSM_REPORTS, tsm_report

CLAIMS_TYPE = "cambium/attestation-tdx/v1"
# Of nonce, session, measurement and now: the bytes that are vouched for.
tdx_claims = partial(reported_claims, CLAIMS_TYPE)
# No page is taken away unnoticed; what Linux asks of a machine that is to trust its own memory.
_SEPT_VE_DISABLE = 1 << 28
# Protection keys, key locker, performance counters: they open nothing to the host.
_HARMLESS = 1 << 30 | 1 << 31 | 1 << 63


@dataclass(frozen=True, kw_only=True)
class TdxReference:
    """What a machine must be, decided beforehand by whoever relies on it.

    Args:
        root: SHA-256 of the DER public key of Intel's root, hex digits.
        machines: accepted (MRTD, RTMR0, RTMR1, RTMR2, RTMR3), each 48 bytes as hex digits: the
            firmware that was launched, and what it measured from there on.
        statuses: what Intel may say of the firmware's age, as `UpToDate`; others are refused.
    """

    root: str
    machines: frozenset[tuple[str, ...]]
    statuses: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class TdxEvidence:
    """A quote, which carries its certificates, and the claims that it covers."""

    quote: bytes
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class TdxVerifier:
    """Trusts Intel's pinned root to vouch for a machine, and the references to say which.

    Args:
        collateral: what Intel says of firmware and revoked certificates, as files.
        now: seconds since 1970, UTC.
    """

    reference: TdxReference
    collateral: Collateral
    now: int

    @property
    def label(self) -> str:
        """Returns `tdx`."""
        return TDX

    def verify(self, evidence: TdxEvidence, *, nonce: str) -> Claims:
        """Returns the claims that a trusted processor vouches for and that answer `nonce`.

        Raises:
            AttestationRefused: says which check failed.
        """
        quote = read_quote(evidence.quote)
        pck = self._chain(quote)
        _check_signatures(quote, pck)
        self._check_machine(quote)
        status = check_collateral(
            self.collateral, quote=quote, pck=read_pck(pck), root=self.reference.root, now=self.now
        )
        for found in status:
            require(found in self.reference.statuses, f"Intel calls its firmware {found!r}")
        bound = hashlib.sha512(evidence.payload).digest()
        require(quote.report_data == bound, "the quote is for other claims")
        return read_reported(evidence.payload, CLAIMS_TYPE, nonce=nonce)

    def _chain(self, quote: Quote) -> x509.Certificate:
        """Returns the processor's certificate, verified up to the pinned root, none revoked."""
        pck, middle, root = quote.chain
        check_chain(quote.chain, root=self.reference.root, now=self.now)
        need_authority(middle, root)
        lists = ((self.collateral.root_crl, root, (middle, root)),
                 (self.collateral.pck_crl, middle, (pck,)))  # fmt: skip
        for der, issuer, issued in lists:
            check_not_revoked(der, issuer=issuer, issued=issued, now=self.now)
        return pck

    def _check_machine(self, quote: Quote) -> None:
        attributes = quote.attributes
        require(not attributes & 1, "a debugger may look into the machine")
        require(bool(attributes & _SEPT_VE_DISABLE), "the host may take pages away unnoticed")
        known = not attributes & ~(_SEPT_VE_DISABLE | _HARMLESS)
        require(known, "the machine has attributes that are not known")
        found = (quote.mrtd, *quote.rtmrs)
        require(found in self.reference.machines, "the measurements are none that are accepted")


class TdxAttester:
    """Asks the processor through Linux' `configfs-tsm`; untested for want of such a machine."""

    def __init__(self, session: str, *, reports: Path = TSM_REPORTS) -> None:
        self._session = session
        self._reports = reports

    def attest(self, nonce: str, *, now: int, measurement: str) -> TdxEvidence:
        """Returns evidence that answers `nonce`, valid for 300 s.

        Raises:
            AttestationRefused: the machine has no such processor, or it said no.
        """
        payload = tdx_claims(nonce, session=self._session, measurement=measurement, now=now)
        quote = tsm_report(hashlib.sha512(payload).digest(), self._reports)
        return TdxEvidence(quote=quote, payload=payload)


def _check_signatures(quote: Quote, pck: x509.Certificate) -> None:
    """Checks quote by the enclave's key, that key by the enclave, the enclave by the processor."""
    try:
        point = b"\x04" + quote.attestation_key
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        check_ecdsa(key, quote.signature, quote.signed, curve=ec.SECP256R1)
    except (InvalidSignature, ValueError) as error:
        raise refused("its key did not sign this quote") from error
    vouched = hashlib.sha256(quote.attestation_key + quote.qe_auth).digest() + bytes(32)
    require(quote.qe.report_data == vouched, "the enclave vouches for another key")
    try:
        check_ecdsa(key_of(pck), quote.qe_signature, quote.qe.raw, curve=ec.SECP256R1)
    except (InvalidSignature, ValueError) as error:
        raise refused("the processor did not sign the enclave's report") from error
