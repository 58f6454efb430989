"""Which attester a server has: its folder says so, and nothing falls back to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from cambium.core.errors import AttestationRefused, ConfigError
from cambium.serve.references import nvidia_reference, snp_reference, tdx_reference
from cambium.trust.attestation import (
    NVIDIA,
    SEV_SNP,
    TDX,
    AttestationResult,
    Verifier,
    appraise,
    new_nonce,
)
from cambium.trust.keys import generate_key
from cambium.trust.providers.nvidia import NvidiaAttester, NvidiaVerifier
from cambium.trust.providers.sev_snp import SnpAttester, SnpEvidence, SnpVerifier
from cambium.trust.providers.software_dev import SoftwareDevAttester, SoftwareEvidence
from cambium.trust.providers.tdx import TdxAttester, TdxEvidence, TdxVerifier
from cambium.trust.providers.tdx_tcb import Collateral
from cambium.trust.providers.with_gpu import (
    Attester,
    WithGpuAttester,
    WithGpuEvidence,
    WithGpuVerifier,
)

SNP_FILE, TDX_FILE, NVIDIA_FILE = "sev-snp.toml", "tdx.toml", "nvidia.toml"
SNP_CERTIFICATES, TDX_FOLDER, NVIDIA_FOLDER = "sev-snp", "tdx", "nvidia"
TDX_FILES = {
    "tcb_info": "tcb-info.json",
    "qe_identity": "qe-identity.json",
    "issuers": "issuers.pem",
    "root_crl": "root-crl.der",
    "pck_crl": "pck-crl.der",
}
Evidence = TypeVar("Evidence")


@dataclass(frozen=True, kw_only=True)
class Attesting(Generic[Evidence]):
    """Evidence made and appraised in one go, for what a server is about to do.

    Args:
        verifier_at: makes the verifier of a second, from files as they are then: newer ones count
            without a restart.
        label: the verifier's, which everything relying on this carries.
    """

    attester: Attester[Evidence]
    verifier_at: Callable[[int], Verifier[Evidence]]
    label: str

    def attest(self, *, accept: tuple[str, ...], measurement: str, now: int) -> AttestationResult:
        """Returns a fresh appraisal of this machine and process.

        Raises:
            AttestationRefused: none could be made, or it is not accepted.
        """
        nonce = new_nonce()
        evidence = self.attester.attest(nonce, now=now, measurement=measurement)
        verifier = self.verifier_at(now)
        return appraise(evidence, verifier=verifier, nonce=nonce, accept=accept, now=now)


Found = (
    Attesting[SoftwareEvidence]
    | Attesting[SnpEvidence]
    | Attesting[TdxEvidence]
    | Attesting[WithGpuEvidence[SnpEvidence]]
    | Attesting[WithGpuEvidence[TdxEvidence]]
)


def attester_of(folder: Path, *, session: str) -> Found:
    """Returns the attester of a state: of the hardware whose references lie there, or software's.

    Args:
        session: key id of what the evidence is bound to.

    Raises:
        ConfigError: references or certificates are there, but cannot be used, are of two
            processors, or of a GPU without a processor.
    """
    snp, tdx, nvidia = (folder / name for name in (SNP_FILE, TDX_FILE, NVIDIA_FILE))
    if snp.exists() and tdx.exists():
        raise ConfigError(f"{snp} and {tdx} are both there", mend="keep the one that is meant")
    if snp.exists():
        found = _snp(folder, session)
        return _with_gpu(found, folder, session) if nvidia.exists() else found
    if tdx.exists():
        also = _tdx(folder, session)
        return _with_gpu(also, folder, session) if nvidia.exists() else also
    if nvidia.exists():
        raise ConfigError(f"{nvidia} is there alone, and a GPU says nothing of what asks it",
                          mend=f"put {SNP_FILE} or {TDX_FILE} beside it")  # fmt: skip
    software = SoftwareDevAttester(generate_key())
    return Attesting(attester=software, verifier_at=lambda now: software.verifier,
                     label=software.verifier.label)  # fmt: skip


def _snp(folder: Path, session: str) -> Attesting[SnpEvidence]:
    reference, files = snp_reference(folder / SNP_FILE), folder / SNP_CERTIFICATES
    try:
        certificates = {
            name: (files / f"{name}.der").read_bytes() for name in ("vcek", "ask", "ark")
        }
    except OSError as error:
        raise ConfigError(f"the certificates of {folder / SNP_FILE} cannot be read: {error}",
                          mend="see docs/how-to/attest-with-sev-snp.md") from error  # fmt: skip

    def verifier(now: int) -> SnpVerifier:
        return SnpVerifier(reference=reference, now=now, crl=_if_there(files / "crl.der"))

    attester = SnpAttester(session, certificates)
    return Attesting(attester=attester, verifier_at=verifier, label=SEV_SNP)


def _tdx(folder: Path, session: str) -> Attesting[TdxEvidence]:
    reference, files = tdx_reference(folder / TDX_FILE), folder / TDX_FOLDER

    def verifier(now: int) -> TdxVerifier:
        try:
            read = {name: (files / file).read_bytes() for name, file in TDX_FILES.items()}
        except OSError as error:
            raise AttestationRefused(
                f"attestation refused: Intel's collateral cannot be read ({error.strerror})",
                mend="see docs/how-to/attest-with-tdx.md",
            ) from error
        return TdxVerifier(reference=reference, collateral=Collateral(**read), now=now)

    return Attesting(attester=TdxAttester(session), verifier_at=verifier, label=TDX)


def _with_gpu(
    processor: Attesting[Evidence], folder: Path, session: str
) -> Attesting[WithGpuEvidence[Evidence]]:
    reference, files = nvidia_reference(folder / NVIDIA_FILE), folder / NVIDIA_FOLDER

    def verifier(now: int) -> WithGpuVerifier[Evidence]:
        lists = {name: _if_there(files / f"{name.replace('_', '-')}.der")
                 for name in ("root_crl", "line_crl")}  # fmt: skip
        gpu = NvidiaVerifier(reference=reference, now=now, **lists)
        return WithGpuVerifier(processor=processor.verifier_at(now), gpu=gpu)

    attester = WithGpuAttester(processor=processor.attester, gpu=NvidiaAttester(session))
    return Attesting(attester=attester, verifier_at=verifier,
                     label=f"{processor.label}+{NVIDIA}")  # fmt: skip


def _if_there(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None
