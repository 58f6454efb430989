"""What a machine must be, as TOML that whoever relies on it wrote beside the state."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from cambium.core.errors import ConfigError
from cambium.trust.providers.nvidia import GpuState, NvidiaReference
from cambium.trust.providers.sev_snp import SnpReference, Tcb
from cambium.trust.providers.tdx import TdxReference

Text = TypeVar("Text")
_STRICT = ConfigDict(strict=True, extra="forbid")
_Hex = Annotated[str, Field(pattern="^[0-9a-f]+$")]
_Pin = Annotated[_Hex, Field(min_length=64, max_length=64)]
_Register = Annotated[_Hex, Field(min_length=96, max_length=96)]
_Registers = Annotated[tuple[_Register, ...], Field(min_length=1)]
_Byte = Annotated[int, Field(ge=0, le=255)]
_Index = Annotated[str, Field(pattern="^[1-9][0-9]{0,2}$")]
_Word = Annotated[str, Field(min_length=1)]


@checked(frozen=True, kw_only=True, config=_STRICT)
class _Tcb:
    boot_loader: _Byte
    tee: _Byte
    snp: _Byte
    microcode: _Byte


@checked(frozen=True, kw_only=True, config=_STRICT)
class _SnpText:
    ark: _Pin
    measurements: _Registers
    minimum: _Tcb
    revocation: bool


@checked(frozen=True, kw_only=True, config=_STRICT)
class _TdxMachine:
    mrtd: _Register
    rtmr: Annotated[tuple[_Register, ...], Field(min_length=4, max_length=4)]


@checked(frozen=True, kw_only=True, config=_STRICT)
class _TdxText:
    root: _Pin
    statuses: Annotated[tuple[str, ...], Field(min_length=1)]
    machines: Annotated[tuple[_TdxMachine, ...], Field(min_length=1)]


@checked(frozen=True, kw_only=True, config=_STRICT)
class _GpuState:
    driver: _Word
    vbios: _Word
    measurements: Annotated[dict[_Index, _Registers], Field(min_length=1)]


@checked(frozen=True, kw_only=True, config=_STRICT)
class _NvidiaText:
    root: _Pin
    revocation: bool
    states: Annotated[tuple[_GpuState, ...], Field(min_length=1)]


_SNP, _TDX, _NVIDIA = TypeAdapter(_SnpText), TypeAdapter(_TdxText), TypeAdapter(_NvidiaText)


def snp_reference(file: Path) -> SnpReference:
    """Returns the references for AMD's processors.

    Raises:
        ConfigError: the file is none, and where.
    """
    read = _read(file, _SNP)
    return SnpReference(
        ark=read.ark,
        measurements=frozenset(read.measurements),
        minimum=Tcb(**vars(read.minimum)),
        revocation=read.revocation,
    )


def tdx_reference(file: Path) -> TdxReference:
    """Returns the references for Intel's processors.

    Raises:
        ConfigError: the file is none, and where.
    """
    read = _read(file, _TDX)
    return TdxReference(
        root=read.root,
        machines=frozenset((machine.mrtd, *machine.rtmr) for machine in read.machines),
        statuses=frozenset(read.statuses),
    )


def nvidia_reference(file: Path) -> NvidiaReference:
    """Returns the references for NVIDIA's GPUs.

    Raises:
        ConfigError: the file is none, and where.
    """
    read = _read(file, _NVIDIA)
    states = tuple(
        GpuState(
            driver=state.driver,
            vbios=state.vbios.lower(),
            measurements={int(at): frozenset(found) for at, found in state.measurements.items()},
        )
        for state in read.states
    )
    return NvidiaReference(root=read.root, states=states, revocation=read.revocation)


def _read(file: Path, kind: TypeAdapter[Text]) -> Text:
    mend = f"see docs/how-to/attest-with-{file.stem}.md"
    try:
        return kind.validate_json(json.dumps(tomllib.loads(file.read_text(encoding="utf-8"))))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{file}: {where}: {first['msg']}", mend=mend) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}", mend=mend) from error
