"""What Intel says of a processor's firmware: TCB info and enclave identity, signed, from files.

Source: Intel SGX and TDX provisioning certification service, API v4 (TCB info of version 3 for TDX,
QE identity of version 2); PCK certificate profile specification (extensions).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from cambium.trust.attestation import require
from cambium.trust.providers.certificates import (
    UNREADABLE,
    check_chain,
    check_ecdsa,
    extension_of,
    key_of,
    refused,
)
from cambium.trust.providers.tdx_quote import Quote

_SGX = "1.2.840.113741.1.13.1"
_NUM_PARTS = 16
_TCB_SIGNER = "Intel SGX TCB Signing"
# As Intel's service answers, byte for byte: the signature is over what stands between.
_SIGNED = re.compile(rb'\{"(\w+)":(\{.*\}),"signature":"([0-9a-f]{128})"\}\s*', re.DOTALL)
Object = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Collateral:
    """Intel's files: TCB info and QE identity as its service answers them, and their issuers.

    Args:
        issuers: the certificate that signs both and the root's, PEM.
        root_crl, pck_crl: revocation lists of the root and of the processors' issuer, DER.
    """

    tcb_info: bytes
    qe_identity: bytes
    issuers: bytes
    root_crl: bytes
    pck_crl: bytes


@dataclass(frozen=True, kw_only=True)
class Pck:
    """What a processor's certificate says of it.

    Args:
        parts: security versions of its sixteen components.
    """

    fmspc: str
    pce_id: str
    parts: tuple[int, ...]
    pce_svn: int


def read_pck(certificate: x509.Certificate) -> Pck:
    """Returns what Intel certified of a processor.

    Raises:
        AttestationRefused: the extension is missing or cannot be read.
    """
    found = _by_oid(extension_of(certificate, _SGX))
    try:
        tcb = _by_oid(found[f"{_SGX}.2"], tagged=False)
        parts = tuple(_whole(tcb[f"{_SGX}.2.{i}"]) for i in range(1, _NUM_PARTS + 1))
        return Pck(
            fmspc=found[f"{_SGX}.4"].hex(),
            pce_id=found[f"{_SGX}.3"].hex(),
            parts=parts,
            pce_svn=_whole(tcb[f"{_SGX}.2.17"]),
        )
    except KeyError as error:
        raise refused("the certificate does not say which chip and firmware") from error


def check_collateral(
    collateral: Collateral, *, quote: Quote, pck: Pck, root: str, now: int
) -> tuple[str, ...]:
    """Returns what Intel calls the firmware, the module and the quoting enclave.

    Args:
        root: SHA-256 of the pinned root's public key, hex digits.
        now: seconds since 1970, UTC.

    Raises:
        AttestationRefused: says which check failed.
    """
    signer = _signer(collateral.issuers, root=root, now=now)
    info = _opened(collateral.tcb_info, "tcbInfo", signer, now=now)
    identity = _opened(collateral.qe_identity, "enclaveIdentity", signer, now=now)
    try:
        require((info["id"], info["version"]) == ("TDX", 3), "the TCB info is of another kind")
        require(info["fmspc"].lower() == pck.fmspc, "the TCB info is for other processors")
        require(info["pceId"].lower() == pck.pce_id, "the TCB info is for another enclave")
        firmware = _firmware_status(info["tcbLevels"], pck=pck, tcb=quote.tcb)
        return (firmware, _module_status(info, quote), _enclave_status(identity, quote))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise refused("the collateral lacks a field") from error


def _firmware_status(levels: Sequence[Object], *, pck: Pck, tcb: bytes) -> str:
    """Returns the status of the first level that the processor and the module reach."""
    # From version 1 on the first two parts of a module's are its own, held to its own levels.
    skipped = 2 if tcb[1] else 0
    for level in levels:
        wanted = level["tcb"]
        sgx = [part["svn"] for part in wanted["sgxtcbcomponents"]]
        tdx = [part["svn"] for part in wanted["tdxtcbcomponents"]]
        require(len(sgx) == len(tdx) == _NUM_PARTS, "a level has not sixteen parts")
        reached = (
            all(has >= needs for has, needs in zip(pck.parts, sgx, strict=True))
            and pck.pce_svn >= wanted["pcesvn"]
            and all(has >= needs for has, needs in list(zip(tcb, tdx, strict=True))[skipped:])
        )
        if reached:
            return str(level["tcbStatus"])
    raise refused("its firmware reaches none of Intel's levels")


def _module_status(info: Object, quote: Quote) -> str:
    version = quote.tcb[1]
    if version:
        named = [m for m in info["tdxModuleIdentities"] if m["id"] == f"TDX_{version:02X}"]
        require(len(named) == 1, "the TCB info does not know this module")
        (module,) = named
    else:
        module = info["tdxModule"]
    _, signer, attributes = quote.module
    require(signer == module["mrsigner"].lower(), "another maker's module runs the machine")
    mask = int(module["attributesMask"], 16)
    same = int(attributes, 16) & mask == int(module["attributes"], 16) & mask
    require(same, "the module has other attributes than Intel says")
    return _status_by_version(module["tcbLevels"], quote.tcb[0]) if version else "UpToDate"


def _enclave_status(identity: Object, quote: Quote) -> str:
    require((identity["id"], identity["version"]) == ("TD_QE", 2), "the identity is another's")
    qe = quote.qe
    product, version = qe.product
    who = (identity["mrsigner"].lower(), identity["isvprodid"])
    require((qe.mrsigner, product) == who, "another enclave quotes than Intel says")
    for name, found in (("miscselect", qe.miscselect), ("attributes", qe.attributes)):
        mask = bytes.fromhex(identity[f"{name}Mask"])
        wanted = bytes.fromhex(identity[name])
        require(len(mask) == len(wanted) == len(found), f"the identity's {name} is malformed")
        same = all(f & m == w & m for f, m, w in zip(found, mask, wanted, strict=True))
        require(same, f"the enclave's {name} is not what Intel says")
    return _status_by_version(identity["tcbLevels"], version)


def _status_by_version(levels: Sequence[Object], version: int) -> str:
    for level in levels:
        if version >= level["tcb"]["isvsvn"]:
            return str(level["tcbStatus"])
    raise refused("it reaches none of Intel's levels")


def _signer(pem: bytes, *, root: str, now: int) -> x509.Certificate:
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except UNREADABLE as error:
        raise refused("the collateral's certificates cannot be read") from error
    require(len(chain) == 2, "the collateral's chain is not of two certificates")
    check_chain(chain, root=root, now=now)
    names = chain[0].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    # The root certifies issuers of processors too, and none of them speaks for Intel here.
    require([n.value for n in names] == [_TCB_SIGNER], "another key signed the collateral")
    return chain[0]


def _opened(data: bytes, name: str, signer: x509.Certificate, *, now: int) -> Object:
    """Returns what Intel signed; nothing is parsed before the signature holds."""
    found = _SIGNED.fullmatch(data)
    if found is None or found[1].decode() != name:
        raise refused(f"the collateral holds no signed {name}")
    raw = bytes.fromhex(found[3].decode())
    try:
        check_ecdsa(key_of(signer), raw, found[2], curve=ec.SECP256R1)
        said: Object = json.loads(found[2])
        first, last = (_time(said[n]) for n in ("issueDate", "nextUpdate"))
    except InvalidSignature as error:
        raise refused(f"Intel did not sign the {name}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise refused(f"the {name} cannot be read") from error
    in_time = first <= datetime.fromtimestamp(now, UTC) < last
    require(in_time, f"the {name} is not in its time")
    return said


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _by_oid(der: bytes, *, tagged: bool = True) -> dict[str, bytes]:
    """Returns the values of a DER sequence of (object identifier, value) by identifier.

    Args:
        tagged: `der` is the sequence itself; else only what is in it.
    """
    content = _fields(der)[0][1] if tagged else der
    found: dict[str, bytes] = {}
    for tag, pair in _fields(content):
        parts = _fields(pair)
        fine = tag == 0x30 and len(parts) == 2 and parts[0][0] == 0x06
        require(fine, "the certificate's extension is malformed")
        name = _oid(parts[0][1])
        require(name not in found, "the certificate says something twice")
        found[name] = parts[1][1]
    return found


def _fields(der: bytes) -> list[tuple[int, bytes]]:
    """Returns tag and content of each DER value in `der`."""
    found: list[tuple[int, bytes]] = []
    while der:
        require(len(der) >= 2, "the certificate's extension is cut off")
        tag, size, at = der[0], der[1], 2
        if size & 0x80:
            at += size & 0x7F
            size = int.from_bytes(der[2:at], "big")
        require(at + size <= len(der), "the certificate's extension is cut off")
        found.append((tag, der[at : at + size]))
        der = der[at + size :]
    return found


def _oid(raw: bytes) -> str:
    parts, value = [raw[0] // 40, raw[0] % 40] if raw else [], 0
    for byte in raw[1:]:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            parts.append(value)
            value = 0
    return ".".join(map(str, parts))


def _whole(raw: bytes) -> int:
    require(0 < len(raw) <= 3, "a version in the certificate cannot be read")
    return int.from_bytes(raw, "big")
