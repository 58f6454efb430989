"""A GPU's attestation report cut into its fields; nothing in it is believed here.

It is a request for measurements and the answer, as they went over the bus (SPDM 1.1), one behind
the other, and what NVIDIA adds to the answer as opaque data: type, size, value.

Source: DMTF DSP0274, Security Protocol and Data Model 1.1 (GET_MEASUREMENTS, MEASUREMENTS,
measurement block); NVIDIA, Opaque Data Format (the format without a header) and nvtrust.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cambium.core.errors import AttestationRefused
from cambium.trust.attestation import require
from cambium.trust.providers.fields import Reader, number

NONCE_BYTES, SIGNATURE_BYTES = 32, 96
_SPDM_1_1, _GET_MEASUREMENTS, _MEASUREMENTS = 0x11, 0xE0, 0x60
_SIGN, _ALL = 1, 0xFF
_DMTF = 1
_DRIVER, _VBIOS, _FIRMWARE_ID, _VERSION, _MODE = 3, 6, 20, 34, 36
# A type that this does not know could take back what the others say.
_KNOWN = {*range(1, 26), *range(32, 37)}
_NEWEST = 1
_TEXT = re.compile(rb"[0-9A-Za-z.-]+")


@dataclass(frozen=True, kw_only=True)
class GpuReport:
    """The fields of a report.

    Args:
        signed: everything but the signature, which is over it.
        nonce: what the request asked to be answered.
        measurements: digests by index, as hex digits.
        vbios: as NVIDIA writes it, `96.00.9f.00.04`.
        firmware_id: digest of the firmware that holds the key, if the report has one.
        mode: 0 for one GPU alone, other numbers for several together; None where it says nothing.
    """

    signed: bytes
    nonce: bytes
    measurements: Mapping[int, str]
    driver: str
    vbios: str
    firmware_id: bytes | None
    mode: int | None
    signature: bytes


def read_report(data: bytes) -> GpuReport:
    """Returns the fields of a report of a GPU.

    Raises:
        AttestationRefused: it is something else, or holds what this does not know.
    """
    whole = Reader(data)
    asked = tuple(whole.take(4))
    require(asked == (_SPDM_1_1, _GET_MEASUREMENTS, _SIGN, _ALL),
            "it is no request for all measurements, signed")  # fmt: skip
    nonce = whole.take(NONCE_BYTES)
    slot = whole.number(1)
    version, code, _, answered = whole.take(4)
    require((version, code) == (_SPDM_1_1, _MEASUREMENTS), "it is no answer with measurements")
    require(slot == answered & 0x0F, "it is signed by a key of another slot")
    count = whole.number(1)
    measurements = _measurements(whole.take(whole.number(3)), count)
    whole.take(NONCE_BYTES)  # the GPU's own, which makes each answer another one
    said = _opaque(whole.take(whole.number(2)))
    signature = whole.take(SIGNATURE_BYTES)
    whole.end()
    if _VERSION in said:
        require(number(said[_VERSION]) <= _NEWEST, "the GPU's own data is of a newer version")
    return GpuReport(
        signed=data[:-SIGNATURE_BYTES],
        nonce=nonce,
        measurements=measurements,
        driver=_text(said, _DRIVER),
        vbios=_vbios(said),
        firmware_id=said.get(_FIRMWARE_ID),
        mode=number(said[_MODE]) if _MODE in said else None,
        signature=signature,
    )


def _measurements(data: bytes, count: int) -> dict[int, str]:
    record, found = Reader(data), dict[int, str]()
    for _ in range(count):
        index, specification = record.take(2)
        require(specification == _DMTF, "a measurement is not as DMTF specifies them")
        block = Reader(record.take(record.number(2)))
        block.take(1)  # what kind of code or setting: NVIDIA's references go by index alone
        digest = block.take(block.number(2))
        block.end()
        require(index not in found, "a measurement is there twice")
        found[index] = digest.hex()
    record.end()
    return found


def _opaque(data: bytes) -> dict[int, bytes]:
    rest, found = Reader(data), dict[int, bytes]()
    while rest.more():
        kind = rest.number(2)
        require(kind in _KNOWN, "the GPU's own data is of a format that is not known")
        require(kind not in found, "the GPU's own data says something twice")
        found[kind] = rest.take(rest.number(2))
    return found


def _text(said: Mapping[int, bytes], kind: int) -> str:
    raw = said.get(kind, b"").rstrip(b"\0")
    if not _TEXT.fullmatch(raw):
        raise AttestationRefused("attestation refused: the report names no driver",
                                 mend="attest again")  # fmt: skip
    return raw.decode()


def _vbios(said: Mapping[int, bytes]) -> str:
    raw = said.get(_VBIOS, b"")
    require(len(raw) == 8, "the report names no VBIOS")
    return bytes((*raw[3::-1], raw[4])).hex(".")
