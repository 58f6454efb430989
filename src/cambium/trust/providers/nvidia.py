"""NVIDIA confidential computing: reports of a GPU, held to pinned roots and references.

Verifier tested on constructed evidence, every byte and every field corrupted; live path untested:
no machine of the project has a GPU in that mode.

The 32 bytes that a GPU answers are the SHA-256 of the claims, so that it vouches for nonce, session
and times; for the rest it vouches by itself: which VBIOS and driver, which firmware and settings.
A debugger's mode is a setting, and measured.

A GPU says nothing of the processor beside it: whoever asks it, from wherever, gets an answer. So
`nvidia` is not in `HARDWARE`, and no policy accepts it; what can be accepted is a processor that
vouches for the GPU's evidence too (`with_gpu`).

Source: NVIDIA's nvtrust and attestation SDK (what is compared); TCG, DICE Attestation Architecture
(the certificate's digest of firmware); RFC 9334 for the roles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from cambium.trust.attestation import NVIDIA, Claims, require
from cambium.trust.providers.certificates import (
    check_chain,
    check_ecdsa,
    extension_of,
    key_of,
    need_authority,
    read_pem,
    refused,
)
from cambium.trust.providers.claims import read_reported, reported_claims
from cambium.trust.providers.nvidia_report import GpuReport, read_report
from cambium.trust.providers.nvml import gpu_report
from cambium.trust.providers.revocation_list import check_not_revoked

CLAIMS_TYPE = "cambium/attestation-nvidia/v1"
# Of nonce, session, measurement and now: the bytes that are vouched for.
gpu_claims = partial(reported_claims, CLAIMS_TYPE)
NUM_CERTIFICATES = 5
# The digest of the firmware that holds the key, at the extension's end.
_DICE, _DIGEST_BYTES = "2.23.133.5.4.1", 48
_ALONE = 0


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """One state of a GPU that is accepted.

    Args:
        driver, vbios: their versions, as `595.71.05` and `96.00.9f.00.04`.
        measurements: accepted digests, hex digits, by index; what is not named may be anything.
    """

    driver: str
    vbios: str
    measurements: Mapping[int, frozenset[str]]

    def is_of(self, report: GpuReport) -> bool:
        """Returns whether the report has, at each index that is named, what is accepted there."""
        return bool(self.measurements) and all(
            report.measurements.get(index) in accepted
            for index, accepted in self.measurements.items()
        )


@dataclass(frozen=True, kw_only=True)
class NvidiaReference:
    """What a GPU must be, decided beforehand by whoever relies on it.

    Args:
        root: SHA-256 of the DER public key of NVIDIA's root of devices, hex digits.
        states: one of them must be the GPU's, as a whole.
        revocation: the lists of the root and of what it certified are demanded.
    """

    root: str
    states: tuple[GpuState, ...]
    revocation: bool


@dataclass(frozen=True, kw_only=True)
class NvidiaEvidence:
    """A report, the certificates up to NVIDIA's root as PEM, and the claims that it answers."""

    report: bytes
    chain: bytes
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class NvidiaVerifier:
    """Trusts NVIDIA's pinned root to vouch for a GPU, and the references to say which.

    Args:
        now: seconds since 1970, UTC.
        root_crl, line_crl: the lists, as DER, of the root and of the line of GPUs whose issuer it
            certified; where there is one, it counts.
    """

    reference: NvidiaReference
    now: int
    root_crl: bytes | None = None
    line_crl: bytes | None = None

    @property
    def label(self) -> str:
        """Returns `nvidia`, which nothing accepts alone."""
        return NVIDIA

    def verify(self, evidence: NvidiaEvidence, *, nonce: str) -> Claims:
        """Returns the claims that a trusted GPU vouches for and that answer `nonce`.

        Raises:
            AttestationRefused: says which check failed.
        """
        report = read_report(evidence.report)
        gpu = self._chain(evidence)
        _check_signature(report, gpu)
        self._check_gpu(report, gpu)
        bound = hashlib.sha256(evidence.payload).digest()
        require(report.nonce == bound, "the GPU's report is for other claims")
        return read_reported(evidence.payload, CLAIMS_TYPE, nonce=nonce)

    def _chain(self, evidence: NvidiaEvidence) -> x509.Certificate:
        """Returns the GPU's certificate, verified up to the pinned root, none revoked."""
        chain = read_pem(evidence.chain, count=NUM_CERTIFICATES)
        check_chain(chain, root=self.reference.root, now=self.now)
        need_authority(*chain[1:])
        *_, issuer, line, root = chain
        for der, by, issued in (
            (self.root_crl, root, (root, line)),
            (self.line_crl, line, (issuer,)),
        ):
            missing = der is None and self.reference.revocation
            require(not missing, "a revocation list is missing")
            if der is not None:
                check_not_revoked(der, issuer=by, issued=issued, now=self.now)
        return chain[0]

    def _check_gpu(self, report: GpuReport, gpu: x509.Certificate) -> None:
        if report.firmware_id is not None:
            certified = extension_of(gpu, _DICE)[-_DIGEST_BYTES:]
            require(report.firmware_id == certified, "the certificate is for other firmware")
        # Several together trust what lies between them, and none of that is looked at here.
        require(report.mode in (None, _ALONE), "the GPU shares its mode with others")
        states = [s for s in self.reference.states if s.driver == report.driver]
        require(bool(states), f"the driver is none that is accepted: {report.driver}")
        states = [s for s in states if s.vbios == report.vbios]
        require(bool(states), f"the VBIOS is none that is accepted: {report.vbios}")
        known = any(state.is_of(report) for state in states)
        require(known, "the GPU's measurements are none that are accepted")


class NvidiaAttester:
    """Asks the one GPU of a machine through NVIDIA's library; untested for want of such a GPU."""

    def __init__(
        self, session: str, *, ask: Callable[[bytes], tuple[bytes, bytes]] = gpu_report
    ) -> None:
        """Takes the session's id, and what answers 32 bytes with report and certificates."""
        self._session = session
        self._ask = ask

    def attest(self, nonce: str, *, now: int, measurement: str) -> NvidiaEvidence:
        """Returns evidence that answers `nonce`, valid for 300 s.

        Raises:
            AttestationRefused: the machine has no such GPU, or it said no.
        """
        payload = gpu_claims(nonce, session=self._session, measurement=measurement, now=now)
        report, chain = self._ask(hashlib.sha256(payload).digest())
        return NvidiaEvidence(report=report, chain=chain, payload=payload)


def _check_signature(report: GpuReport, gpu: x509.Certificate) -> None:
    try:
        check_ecdsa(key_of(gpu), report.signature, report.signed, curve=ec.SECP384R1)
    except (InvalidSignature, ValueError) as error:
        raise refused("the GPU did not sign this report") from error
