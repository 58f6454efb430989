"""Which attester a server has: its folder says so, and nothing falls back to another."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from cambium.core.errors import ConfigError
from cambium.trust.attestation import AttestationResult, appraise, new_nonce
from cambium.trust.keys import generate_key
from cambium.trust.providers.sev_snp import SnpAttester, SnpReference, SnpVerifier, Tcb
from cambium.trust.providers.software_dev import SoftwareDevAttester

SNP_FILE = "sev-snp.toml"
SNP_CERTIFICATES = "sev-snp"
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


_SNP_TEXT = TypeAdapter(_SnpText)


def attester_of(folder: Path, *, session: str) -> Attesting:
    """Returns the attester of a state: SEV-SNP where its references lie there, else software's.

    Args:
        session: key id of what the evidence is bound to.

    Raises:
        ConfigError: references or certificates are there, but cannot be used.
    """
    if not (folder / SNP_FILE).exists():
        return SoftwareAttesting(attester=SoftwareDevAttester(generate_key()))
    try:
        text = (folder / SNP_FILE).read_text(encoding="utf-8")
        read = _SNP_TEXT.validate_json(json.dumps(tomllib.loads(text)))
        certificates = {
            name: (folder / SNP_CERTIFICATES / f"{name}.der").read_bytes()
            for name in ("vcek", "ask", "ark")
        }
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{folder / SNP_FILE}: {where}: {first['msg']}",
                          mend="see docs/how-to/attest-with-sev-snp.md") from error  # fmt: skip
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / SNP_FILE} or its certificates cannot be read: {error}",
                          mend="see docs/how-to/attest-with-sev-snp.md") from error  # fmt: skip
    reference = SnpReference(
        ark=read.ark,
        measurements=frozenset(read.measurements),
        minimum=Tcb(**vars(read.minimum)),
        revocation=read.revocation,
    )
    crl = folder / SNP_CERTIFICATES / "crl.der"
    return SnpAttesting(attester=SnpAttester(session, certificates), reference=reference, crl=crl)
