"""A constructed TDX machine: its own root and certificates, quotes and collateral as Intel's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from tests.certificates import MEASUREMENT, NONCE, NOW, authority, unsigned, unsigned_list

from cambium.trust.providers.certificates import pin_of
from cambium.trust.providers.tdx import TdxEvidence, TdxReference, tdx_claims
from cambium.trust.providers.tdx_quote import BODY_BYTES, HEADER_BYTES, QE_BYTES
from cambium.trust.providers.tdx_tcb import Collateral

SERIALS = {"root": 0xB1, "platform": 0xB2, "pck": 0xB3, "Intel SGX TCB Signing": 0xB4}
FMSPC, PCE_ID = "00906ed50000", "0000"
PARTS = tuple(range(1, 17))
PCE_SVN = 11
TCB = bytes([5, 1, 2, *[0] * 13])
REGISTERS = tuple(bytes([n]) * 48 for n in (1, 2, 3, 4, 5))
ATTRIBUTES = 1 << 28
QE_SIGNER, QE_PRODUCT, QE_VERSION = bytes(range(32)), 2, 4
Text = dict[str, Any]


@cache
def _key(_which: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """Returns r and s, 32 bytes each."""
    r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What differs from one machine, or one forgery, to the next.

    Args:
        body, qe: change the quote's body and the enclave's report before they are signed.
        vouched: what the enclave reports instead of its key's hash.
        signers: whose key signs quote, enclave, processor's certificate.
    """

    body: dict[int, bytes] = field(default_factory=dict)
    header: dict[int, bytes] = field(default_factory=dict)
    qe: dict[int, bytes] = field(default_factory=dict)
    vouched: bytes | None = None
    signers: tuple[str, str, str] = ("attestation", "pck", "platform")
    parts: tuple[int, ...] = PARTS
    pce_svn: int = PCE_SVN
    fmspc: str = FMSPC
    is_authority: bool = True
    valid_days: tuple[int, int] = (-30, 30)
    types: tuple[int, int] = (6, 5)

    def evidence(self, payload: bytes | None = None, *, nonce: str = NONCE) -> TdxEvidence:
        payload = payload or tdx_claims(
            nonce, session="ed25519:x", measurement=MEASUREMENT, now=NOW
        )
        return TdxEvidence(quote=self.quote(payload), payload=payload)

    def quote(self, payload: bytes) -> bytes:
        header, body, qe = bytearray(HEADER_BYTES), bytearray(BODY_BYTES), bytearray(QE_BYTES)
        header[0:8] = b"\x04\x00\x02\x00\x81\x00\x00\x00"
        header[12:28] = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
        body[0:16] = TCB
        body[16:64] = bytes([9]) * 48
        body[120:128] = ATTRIBUTES.to_bytes(8, "little")
        body[136:184] = REGISTERS[0]
        for at, register in zip((328, 376, 424, 472), REGISTERS[1:], strict=True):
            body[at : at + 48] = register
        body[520:584] = hashlib.sha512(payload).digest()
        key = _key("attestation").public_key()
        point = key.public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )[1:]
        auth = bytes(range(32))
        qe[48:64] = bytes([0x15, *[0] * 15])
        qe[128:160] = QE_SIGNER
        qe[256:260] = bytes([QE_PRODUCT, 0, QE_VERSION, 0])
        qe[320:352] = self.vouched or hashlib.sha256(point + auth).digest()
        for part, changes in ((header, self.header), (body, self.body), (qe, self.qe)):
            for at, value in changes.items():
                part[at : at + len(value)] = value
        signed, by = bytes(header + body), self.signers
        chain = b"".join(self.chain())
        certified = (bytes(qe) + sign(_key(by[1]), bytes(qe)) + _sized(auth, 2)
                     + self.types[1].to_bytes(2, "little") + _sized(chain, 4))  # fmt: skip
        data = (sign(_key(by[0]), signed) + point + self.types[0].to_bytes(2, "little")
                + _sized(certified, 4))  # fmt: skip
        return signed + _sized(data, 4)

    def chain(self) -> list[bytes]:
        """Returns the processor's certificate, its issuer's and the root's, as PEM."""
        pck = issue("pck", "platform", by=self.signers[2], days=self.valid_days,
                    sgx=sgx_extension(self.parts, self.pce_svn, self.fmspc))  # fmt: skip
        return [
            pck,
            issue("platform", "root", ca=self.is_authority),
            issue("root", "root", ca=True),
        ]


def issue(
    name: str,
    issuer: str,
    *,
    by: str | None = None,
    ca: bool = False,
    days: tuple[int, int] = (-30, 30),
    sgx: bytes | None = None,
) -> bytes:
    """Returns a certificate as PEM."""
    builder = unsigned(
        name, issuer, public=_key(name).public_key(), serial=SERIALS[name], days=days
    ).add_extension(authority(is_one=ca), critical=True)
    if sgx is not None:
        oid = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, sgx), critical=False)
    return builder.sign(_key(by or issuer), hashes.SHA256()).public_bytes(
        serialization.Encoding.PEM
    )


def sgx_extension(parts: tuple[int, ...], pce_svn: int, fmspc: str) -> bytes:
    """Returns Intel's extension as DER, with the fields that are read."""
    levels = [_pair(f"2.{i}", _der(2, _unsigned(n))) for i, n in enumerate(parts, start=1)]
    levels += [_pair("2.17", _der(2, _unsigned(pce_svn))), _pair("2.18", _der(4, bytes(16)))]
    return _der(0x30, b"".join([
        _pair("1", _der(4, bytes(16))),
        _pair("2", _der(0x30, b"".join(levels))),
        _pair("3", _der(4, bytes.fromhex(PCE_ID))),
        _pair("4", _der(4, bytes.fromhex(fmspc))),
        _pair("5", _der(10, b"\x00")),
    ]))  # fmt: skip


def reference(**changes: object) -> TdxReference:
    root = x509.load_pem_x509_certificate(issue("root", "root", ca=True))
    good = TdxReference(
        root=pin_of(root),
        machines=frozenset({tuple(register.hex() for register in REGISTERS)}),
        statuses=frozenset({"UpToDate"}),
    )
    return replace(good, **changes)  # type: ignore[arg-type]


def level(status: str, *, sgx: int = 0, tdx: int = 0, pce: int = 0) -> Text:
    """Returns a level whose first parts ask for these versions."""
    return {
        "tcb": {
            "sgxtcbcomponents": [{"svn": sgx}, *[{"svn": 0}] * 15],
            "pcesvn": pce,
            "tdxtcbcomponents": [{"svn": 0}, {"svn": 0}, {"svn": tdx}, *[{"svn": 0}] * 13],
        },
        "tcbStatus": status,
    }


def tcb_info(**changes: Any) -> Text:
    versions = [{"tcb": {"isvsvn": 5}, "tcbStatus": "UpToDate"},
                {"tcb": {"isvsvn": 2}, "tcbStatus": "OutOfDate"}]  # fmt: skip
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    return {
        "id": "TDX",
        "version": 3,
        "issueDate": _time(-1),
        "nextUpdate": _time(30),
        "fmspc": FMSPC.upper(),
        "pceId": PCE_ID,
        "tdxModule": module,
        "tdxModuleIdentities": [{"id": "TDX_01", **module, "tcbLevels": versions}],
        "tcbLevels": [level("UpToDate", sgx=1, tdx=2, pce=11), level("OutOfDate")],
        **changes,
    }


def qe_identity(**changes: Any) -> Text:
    return {
        "id": "TD_QE",
        "version": 2,
        "issueDate": _time(-1),
        "nextUpdate": _time(30),
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11" + "00" * 15,
        "attributesMask": "FB" + "FF" * 7 + "00" * 8,
        "mrsigner": QE_SIGNER.hex().upper(),
        "isvprodid": QE_PRODUCT,
        "tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbStatus": "UpToDate"},
                      {"tcb": {"isvsvn": 1}, "tcbStatus": "OutOfDate"}],
        **changes,
    }  # fmt: skip


def signed(name: str, said: Text, *, by: str = "Intel SGX TCB Signing") -> bytes:
    """Returns what Intel's service answers."""
    text = json.dumps(said, separators=(",", ":")).encode()
    return b'{"%s":%s,"signature":"%s"}' % (
        name.encode(), text, sign(_key(by), text).hex().encode())  # fmt: skip


def revoked(*names: str, issuer: str = "root", days: tuple[int, int] = (-1, 30)) -> bytes:
    """Returns an issuer's revocation list as DER."""
    builder = unsigned_list([SERIALS[name] for name in names], issuer, days=days)
    return builder.sign(_key(issuer), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def collateral(**changes: bytes) -> Collateral:
    signer = issue("Intel SGX TCB Signing", "root")
    good = Collateral(
        tcb_info=signed("tcbInfo", tcb_info()),
        qe_identity=signed("enclaveIdentity", qe_identity()),
        issuers=signer + issue("root", "root", ca=True),
        root_crl=revoked(),
        pck_crl=revoked(issuer="platform"),
    )
    return replace(good, **changes)


def _sized(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size, "little") + data


def _time(days: int) -> str:
    when = datetime.fromtimestamp(NOW, UTC) + timedelta(days=days)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    head = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + head + content


def _pair(suffix: str, value: bytes) -> bytes:
    oid = x509.ObjectIdentifier(f"1.2.840.113741.1.13.1.{suffix}")
    # Of a name with this one attribute, what stands before its value.
    return _der(0x30, _oid(oid.dotted_string) + value)


def _oid(text: str) -> bytes:
    first, second, *rest = map(int, text.split("."))
    content = bytes([40 * first + second])
    for part in rest:
        digits = [part & 0x7F]
        while part := part >> 7:
            digits.insert(0, part & 0x7F | 0x80)
        content += bytes(digits)
    return _der(6, content)


def _unsigned(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big")
