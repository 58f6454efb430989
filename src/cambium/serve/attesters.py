"""Which attester a server has: its folder says so, and nothing falls back to another."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from cambium.core.errors import AttestationRefused, ConfigError
from cambium.trust.attestation import TDX, AttestationResult, appraise, new_nonce
from cambium.trust.keys import generate_key
from cambium.trust.providers.sev_snp import SnpAttester, SnpReference, SnpVerifier, Tcb
from cambium.trust.providers.software_dev import SoftwareDevAttester
from cambium.trust.providers.tdx import TdxAttester, TdxReference, TdxVerifier
from cambium.trust.providers.tdx_tcb import Collateral

SNP_FILE, TDX_FILE = "sev-snp.toml", "tdx.toml"
SNP_CERTIFICATES, TDX_FOLDER = "sev-snp", "tdx"
TDX_FILES = {
    "tcb_info": "tcb-info.json",
    "qe_identity": "qe-identity.json",
    "issuers": "issuers.pem",
    "root_crl": "root-crl.der",
    "pck_crl": "pck-crl.der",
}
Text = TypeVar("Text")
_STRICT = ConfigDict(strict=True, extra="forbid")
_Hex = Annotated[str, Field(pattern="^[0-9a-f]+$")]
_Byte = Annotated[int, Field(ge=0, le=255)]


class Attesting(Protocol):
    """Evidence made and appraised in one go, for what a server is about to do."""

    @property
    def label(self) -> str:
        """Returns the label that everything relying on this carries."""
        ...

    def attest(self, *, accept: tuple[str, ...], measurement: str, now: int) -> AttestationResult:
        """Returns a fresh appraisal of this process.

        Raises:
            AttestationRefused: none could be made, or it is not accepted.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SoftwareAttesting:
    """Of the development profile: proves that this process holds a key, and nothing else."""

    attester: SoftwareDevAttester

    @property
    def label(self) -> str:
        """Returns `software-dev`."""
        return self.attester.verifier.label

    def attest(self, *, accept: tuple[str, ...], measurement: str, now: int) -> AttestationResult:
        """Returns a fresh appraisal of this process."""
        nonce = new_nonce()
        evidence = self.attester.attest(nonce, now=now, measurement=measurement)
        verifier = self.attester.verifier
        return appraise(evidence, verifier=verifier, nonce=nonce, accept=accept, now=now)


@dataclass(frozen=True, kw_only=True)
class SnpAttesting:
    """Of AMD SEV-SNP machines, held to the folder's references."""

    attester: SnpAttester
    reference: SnpReference
    crl: Path

    @property
    def label(self) -> str:
        """Returns `sev-snp`."""
        return SnpVerifier(reference=self.reference, now=0).label

    def attest(self, *, accept: tuple[str, ...], measurement: str, now: int) -> AttestationResult:
        """Returns a fresh appraisal of this machine and process."""
        nonce = new_nonce()
        evidence = self.attester.attest(nonce, now=now, measurement=measurement)
        # Read anew each time: a newer list counts without a restart.
        crl = self.crl.read_bytes() if self.crl.exists() else None
        verifier = SnpVerifier(reference=self.reference, now=now, crl=crl)
        return appraise(evidence, verifier=verifier, nonce=nonce, accept=accept, now=now)


@dataclass(frozen=True, kw_only=True)
class TdxAttesting:
    """Of Intel TDX machines, held to the folder's references and Intel's collateral."""

    attester: TdxAttester
    reference: TdxReference
    folder: Path

    @property
    def label(self) -> str:
        """Returns `tdx`."""
        return TDX

    def attest(self, *, accept: tuple[str, ...], measurement: str, now: int) -> AttestationResult:
        """Returns a fresh appraisal of this machine and process."""
        nonce = new_nonce()
        evidence = self.attester.attest(nonce, now=now, measurement=measurement)
        try:
            # Read anew each time: newer files count without a restart.
            read = {name: (self.folder / file).read_bytes() for name, file in TDX_FILES.items()}
        except OSError as error:
            raise AttestationRefused(
                f"attestation refused: Intel's collateral cannot be read ({error.strerror})",
                mend="see docs/how-to/attest-with-tdx.md",
            ) from error
        verifier = TdxVerifier(reference=self.reference, collateral=Collateral(**read), now=now)
        return appraise(evidence, verifier=verifier, nonce=nonce, accept=accept, now=now)


@checked(frozen=True, kw_only=True, config=_STRICT)
class _Tcb:
    boot_loader: _Byte
    tee: _Byte
    snp: _Byte
    microcode: _Byte


@checked(frozen=True, kw_only=True, config=_STRICT)
class _SnpText:
    """The references' TOML."""

    ark: Annotated[_Hex, Field(min_length=64, max_length=64)]
    measurements: Annotated[
        tuple[Annotated[_Hex, Field(min_length=96, max_length=96)], ...], Field(min_length=1)
    ]
    minimum: _Tcb
    revocation: bool


_Register = Annotated[_Hex, Field(min_length=96, max_length=96)]


@checked(frozen=True, kw_only=True, config=_STRICT)
class _TdxMachine:
    mrtd: _Register
    rtmr: Annotated[tuple[_Register, ...], Field(min_length=4, max_length=4)]


@checked(frozen=True, kw_only=True, config=_STRICT)
class _TdxText:
    """The references' TOML."""

    root: Annotated[_Hex, Field(min_length=64, max_length=64)]
    statuses: Annotated[tuple[str, ...], Field(min_length=1)]
    machines: Annotated[tuple[_TdxMachine, ...], Field(min_length=1)]


_SNP_TEXT, _TDX_TEXT = TypeAdapter(_SnpText), TypeAdapter(_TdxText)


def attester_of(folder: Path, *, session: str) -> Attesting:
    """Returns the attester of a state: of the processor whose references lie there, or software's.

    Args:
        session: key id of what the evidence is bound to.

    Raises:
        ConfigError: references or certificates are there, but cannot be used, or of two processors.
    """
    snp, tdx = folder / SNP_FILE, folder / TDX_FILE
    if snp.exists() and tdx.exists():
        raise ConfigError(f"{snp} and {tdx} are both there", mend="keep the one that is meant")
    if snp.exists():
        return _snp_attester(folder, session)
    if tdx.exists():
        return _tdx_attester(folder, session)
    return SoftwareAttesting(attester=SoftwareDevAttester(generate_key()))


def _snp_attester(folder: Path, session: str) -> SnpAttesting:
    read = _references(folder / SNP_FILE, _SNP_TEXT)
    files = folder / SNP_CERTIFICATES
    try:
        certificates = {
            name: (files / f"{name}.der").read_bytes() for name in ("vcek", "ask", "ark")
        }
    except OSError as error:
        raise ConfigError(f"the certificates of {folder / SNP_FILE} cannot be read: {error}",
                          mend="see docs/how-to/attest-with-sev-snp.md") from error  # fmt: skip
    reference = SnpReference(
        ark=read.ark,
        measurements=frozenset(read.measurements),
        minimum=Tcb(**vars(read.minimum)),
        revocation=read.revocation,
    )
    attester = SnpAttester(session, certificates)
    return SnpAttesting(attester=attester, reference=reference, crl=files / "crl.der")


def _tdx_attester(folder: Path, session: str) -> TdxAttesting:
    read = _references(folder / TDX_FILE, _TDX_TEXT)
    reference = TdxReference(
        root=read.root,
        machines=frozenset((machine.mrtd, *machine.rtmr) for machine in read.machines),
        statuses=frozenset(read.statuses),
    )
    files = folder / TDX_FOLDER
    return TdxAttesting(attester=TdxAttester(session), reference=reference, folder=files)


def _references(file: Path, kind: TypeAdapter[Text]) -> Text:
    mend = f"see docs/how-to/attest-with-{file.stem}.md"
    try:
        return kind.validate_json(json.dumps(tomllib.loads(file.read_text(encoding="utf-8"))))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{file}: {where}: {first['msg']}", mend=mend) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}", mend=mend) from error
