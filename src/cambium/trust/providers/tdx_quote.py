"""A TDX quote, version 4, cut into its fields; nothing in it is believed here.

Source: Intel TDX DCAP Quoting Library API, appendix A.3; the SGX report of the quoting enclave.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509

from cambium.trust.attestation import require
from cambium.trust.providers.certificates import read_pem
from cambium.trust.providers.fields import Reader, number

HEADER_BYTES, BODY_BYTES, QE_BYTES = 48, 584, 384
SIGNED_BYTES = HEADER_BYTES + BODY_BYTES
_VERSION, _ECDSA_P256, _TDX = 4, 2, 0x81
_INTEL = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_QE_REPORT, _PCK_CHAIN = 6, 5


@dataclass(frozen=True, kw_only=True)
class QeReport:
    """What the quoting enclave is, as the processor reports it."""

    raw: bytes

    @property
    def miscselect(self) -> bytes:
        """Returns four bytes."""
        return self.raw[16:20]

    @property
    def attributes(self) -> bytes:
        """Returns sixteen bytes."""
        return self.raw[48:64]

    @property
    def mrsigner(self) -> str:
        """Returns whose enclave it is, as hex digits."""
        return self.raw[128:160].hex()

    @property
    def product(self) -> tuple[int, int]:
        """Returns product id and security version."""
        return number(self.raw[256:258]), number(self.raw[258:260])

    @property
    def report_data(self) -> bytes:
        """Returns 64 bytes."""
        return self.raw[320:384]


@dataclass(frozen=True, kw_only=True)
class Quote:
    """The fields of a quote.

    Args:
        signed: header and body, which `signature` is over.
        tcb: the module's security versions, 16 bytes; the second is its major version.
        module: MRSEAM, MRSIGNERSEAM and SEAMATTRIBUTES.
        qe_auth: what the enclave adds to its key before it vouches for it.
        chain: the processor's certificate, its issuer's, and the root's.
    """

    signed: bytes
    tcb: bytes
    module: tuple[str, str, str]
    attributes: int
    mrtd: str
    rtmrs: tuple[str, str, str, str]
    report_data: bytes
    signature: bytes
    attestation_key: bytes
    qe: QeReport
    qe_signature: bytes
    qe_auth: bytes
    chain: tuple[x509.Certificate, x509.Certificate, x509.Certificate]


def read_quote(data: bytes) -> Quote:
    """Returns the fields of a quote of version 4 of a TDX machine.

    Raises:
        AttestationRefused: it is something else, or holds what this does not know.
    """
    whole = Reader(data)
    signed = whole.take(SIGNED_BYTES)
    header, body = signed[:HEADER_BYTES], signed[HEADER_BYTES:]
    kind = (number(header[0:2]), number(header[2:4]), number(header[4:8]))
    require(kind == (_VERSION, _ECDSA_P256, _TDX), "it is no quote of this version")
    require(header[12:28] == _INTEL, "another maker's enclave quotes")
    rest = Reader(whole.take(whole.number(4)))
    # Linux hands out a buffer that is longer than the quote, with zeros at its end.
    require(not any(data[SIGNED_BYTES + 4 + len(rest.data) :]), "there is more than the quote")
    signature, key = rest.take(64), rest.take(64)
    require(rest.number(2) == _QE_REPORT, "the enclave's report is missing")
    certified = Reader(rest.take(rest.number(4)))
    rest.end()
    qe, qe_signature = QeReport(raw=certified.take(QE_BYTES)), certified.take(64)
    auth = certified.take(certified.number(2))
    require(certified.number(2) == _PCK_CHAIN, "the processor's certificates are missing")
    pck, middle, root = read_pem(certified.take(certified.number(4)), count=3)
    certified.end()
    return Quote(
        signed=signed,
        tcb=body[:16],
        module=(body[16:64].hex(), body[64:112].hex(), body[112:120].hex()),
        attributes=number(body[120:128]),
        mrtd=body[136:184].hex(),
        rtmrs=(body[328:376].hex(), body[376:424].hex(), body[424:472].hex(), body[472:520].hex()),
        report_data=body[520:584],
        signature=signature,
        attestation_key=key,
        qe=qe,
        qe_signature=qe_signature,
        qe_auth=auth,
        chain=(pck, middle, root),
    )
