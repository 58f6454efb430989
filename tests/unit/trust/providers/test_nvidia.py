from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests import snp_machine, tdx_machine
from tests.nvidia_machine import (
    DIGESTS,
    MEASUREMENT,
    NONCE,
    NOW,
    OPAQUE,
    Gpu,
    block,
    reference,
    revoked,
    sized,
    state,
)

from cambium.core.canonical import canonical_json
from cambium.core.errors import AttestationRefused
from cambium.trust.attestation import HARDWARE, AttestationResult, appraise
from cambium.trust.providers import nvml
from cambium.trust.providers.nvidia import (
    NvidiaAttester,
    NvidiaEvidence,
    NvidiaReference,
    NvidiaVerifier,
    gpu_claims,
)
from cambium.trust.providers.sev_snp import SnpVerifier, claims_payload
from cambium.trust.providers.tdx import TdxAttester, TdxEvidence, TdxVerifier, tdx_claims
from cambium.trust.providers.with_gpu import (
    WithGpuAttester,
    WithGpuEvidence,
    WithGpuVerifier,
    nonce_over,
)

GOOD = Gpu().evidence()
ROOT_CRL, LINE_CRL = revoked(), revoked(issuer="line")
PROCESSOR = tdx_machine.Machine()
FILES = tdx_machine.collateral()


def gpu_verifier(held_to: NvidiaReference | None = None, **more: Any) -> NvidiaVerifier:
    lists = {"root_crl": ROOT_CRL, "line_crl": LINE_CRL, "now": NOW, **more}
    return NvidiaVerifier(reference=held_to or reference(), **lists)


def beside(
    gpu: NvidiaEvidence,
    *,
    over: NvidiaEvidence | None = None,
    session: str = "ed25519:x",
    measurement: str = MEASUREMENT,
    at: int = NOW,
) -> WithGpuEvidence[TdxEvidence]:
    """Returns evidence of a processor beside a GPU, as it makes it, or as it should not."""
    nonce = nonce_over(NONCE, over or gpu)
    payload = tdx_claims(nonce, session=session, measurement=measurement, now=at)
    return WithGpuEvidence(processor=PROCESSOR.evidence(payload), gpu=gpu)


def result(
    evidence: NvidiaEvidence | WithGpuEvidence[TdxEvidence] = GOOD,
    *,
    nonce: str = NONCE,
    now: int = NOW,
    accept: tuple[str, ...] = ("tdx+nvidia",),
    **more: Any,
) -> AttestationResult:
    """Appraises a GPU beside a good processor."""
    whole = beside(evidence) if isinstance(evidence, NvidiaEvidence) else evidence
    processor = TdxVerifier(reference=tdx_machine.reference(), collateral=FILES, now=now)
    verifier = WithGpuVerifier(processor=processor, gpu=gpu_verifier(now=now, **more))
    return appraise(whole, verifier=verifier, nonce=nonce, accept=accept, now=now)


def refused(match: str, evidence: Any = GOOD, **more: Any) -> None:
    with pytest.raises(AttestationRefused, match=match):
        result(evidence, **more)


def test_a_good_report_beside_a_processor_is_believed_and_labelled() -> None:
    found = result()
    assert (found.label, found.hardware_rooted, found.debug) == ("tdx+nvidia", True, False)
    assert (found.nonce, found.session, found.measurement) == (NONCE, "ed25519:x", MEASUREMENT)
    # Another accepted digest, one that nothing is said of, and reports of older firmware, are fine.
    for gpu in (
        Gpu(digests={**DIGESTS, 3: bytes(48)}),
        Gpu(digests={**DIGESTS, 8: bytes(48), 9: bytes(48)}),
        Gpu(opaque={34: None, 36: None}),
        Gpu(opaque={20: None}, certified=None),
        Gpu(opaque={21: b"\x55", 12: None}),
    ):
        assert result(gpu.evidence())
    assert result(held_to=reference(revocation=False), root_crl=None, line_crl=None)
    other = state(driver="590.1")
    assert result(held_to=reference(states=(other, state())))


def test_a_gpu_alone_is_accepted_by_nothing() -> None:
    assert gpu_verifier().verify(GOOD, nonce=NONCE).session == "ed25519:x"
    assert "nvidia" not in HARDWARE
    with pytest.raises(AttestationRefused, match="unknown"):
        appraise(GOOD, verifier=gpu_verifier(), nonce=NONCE, accept=("nvidia", *HARDWARE), now=NOW)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_every_single_byte_counts() -> None:
    """Held against the GPU's verifier alone, where no processor could be what refuses."""
    pick, verifier, tried = random.Random(1), gpu_verifier(), 0
    for name, bits in (("report", 8), ("payload", 8), ("chain", 7)):  # PEM is text
        data = getattr(GOOD, name)
        cut = [data[:at] for at in range(0, len(data), 37)]
        for at in range(len(data)):
            changed = bytearray(data)
            changed[at] ^= 1 << pick.randrange(bits)
            cut.append(bytes(changed))
        for wrong in [*cut, data + b"x", data + data]:
            with pytest.raises(AttestationRefused):
                verifier.verify(replace(GOOD, **{name: wrong}), nonce=NONCE)
            tried += 1
    for name, data in (("root_crl", ROOT_CRL), ("line_crl", LINE_CRL)):
        for at in range(len(data)):
            changed = bytearray(data)
            changed[at] ^= 1 << pick.randrange(8)
            with pytest.raises(AttestationRefused):
                gpu_verifier(**{name: bytes(changed)}).verify(GOOD, nonce=NONCE)
            tried += 1
    assert tried > 4000


RECORD = b"".join(block(at, digest) for at, digest in DIGESTS.items())
ANSWER = 37


@pytest.mark.parametrize(
    ("gpu", "match"),
    [
        (Gpu(spoil={0: b"\x12"}), "no request"),
        (Gpu(spoil={1: b"\xe1"}), "no request"),
        (Gpu(spoil={2: b"\x00"}), "no request"),
        (Gpu(spoil={3: b"\x01"}), "no request"),
        (Gpu(spoil={36: b"\x01"}), "another slot"),
        (Gpu(spoil={ANSWER: b"\x12"}), "no answer"),
        (Gpu(spoil={ANSWER + 1: b"\x7f"}), "no answer"),
        (Gpu(spoil={ANSWER + 3: b"\x01"}), "another slot"),
        (Gpu(spoil={ANSWER + 4: b"\x07"}), "longer than it says"),
        (Gpu(spoil={ANSWER + 4: b"\x09"}), "cut off"),
        (Gpu(spoil={ANSWER + 5: b"\x00\x00\x00"}), "cut off"),
        (Gpu(nonce=bytes(32)), "other claims"),
        (Gpu(blocks=RECORD[: len(RECORD) // 8 * 7] + block(1, DIGESTS[1])), "there twice"),
        (Gpu(blocks=block(1, DIGESTS[1], specification=2) + RECORD[55:]), "as DMTF"),
        (Gpu(blocks=RECORD[:-1]), "cut off"),
        (Gpu(digests={}), "measurements"),
        *((Gpu(digests={**DIGESTS, at: b"\xff" * 48}), "measurements") for at in range(1, 8)),
        *((Gpu(digests={n: d for n, d in DIGESTS.items() if n != at}), "measurements")
          for at in range(1, 8)),
        (Gpu(digests={**DIGESTS, 2: DIGESTS[2][:32]}), "measurements"),
        (Gpu(digests={at: DIGESTS[9 - at] for at in DIGESTS}), "measurements"),
        (Gpu(opaque={3: b"595.71.04\0"}), "driver is none"),
        (Gpu(opaque={3: b"595.71.05 "}), "names no driver"),
        (Gpu(opaque={3: b"595.71\0.05"}), "names no driver"),
        (Gpu(opaque={3: b""}), "names no driver"),
        (Gpu(opaque={3: None}), "names no driver"),
        (Gpu(opaque={6: bytes.fromhex("009f009603000000")}), "VBIOS is none"),
        (Gpu(opaque={6: bytes.fromhex("009e009604000000")}), "VBIOS is none"),
        (Gpu(opaque={6: OPAQUE[6][:7]}), "names no VBIOS"),
        (Gpu(opaque={6: None}), "names no VBIOS"),
        (Gpu(opaque={20: bytes(48)}), "other firmware"),
        (Gpu(opaque={20: b""}), "other firmware"),
        (Gpu(certified=bytes(48)), "other firmware"),
        (Gpu(certified=None), "which chip and firmware"),
        (Gpu(opaque={34: b"\x02"}), "newer version"),
        (Gpu(opaque={36: b"\x01\x00"}), "with others"),
        (Gpu(opaque={36: b"\x02"}), "with others"),
        (Gpu(opaque={26: b""}), "not known"),
        (Gpu(opaque={255: b""}), "not known"),
        (Gpu(opaque={0: b""}), "not known"),
        (Gpu(more_opaque=b"NVDAOD\0\0\x02\0\0\0"), "not known"),
        (Gpu(more_opaque=b"\x03\0" + sized(b"595.71.05", 2)), "says something twice"),
        (Gpu(more_opaque=b"\x05\0\x09\0"), "cut off"),
        (Gpu(more_opaque=b"\x05"), "not known|cut off"),
        (Gpu(signers=("other", "boot rom")), "did not sign this report"),
        (Gpu(signers=("boot rom", "boot rom")), "did not sign this report"),
        (Gpu(on_small_curve=True), "did not sign this report|cut off"),
        (Gpu(signers=("gpu", "other")), "issuer did not sign"),
        (Gpu(signers=("gpu", "root")), "issuer did not sign"),
        *((Gpu(authorities=tuple({"boot rom", "provisioner", "line", "root"} - {name})),
           "none of an authority") for name in ("boot rom", "provisioner", "line", "root")),
        (Gpu(valid_days=(-30, -1)), "not in its time"),
        (Gpu(valid_days=(1, 30)), "not in its time"),
    ],
)  # fmt: skip
def test_what_a_true_signature_does_not_excuse(gpu: Gpu, match: str) -> None:
    refused(match, gpu.evidence())


def _chain(*order: int) -> NvidiaEvidence:
    pem = GOOD.chain.split(b"-----BEGIN")[1:]
    return replace(GOOD, chain=b"".join(b"-----BEGIN" + pem[at] for at in order))


def test_another_chain_is_refused() -> None:
    refused("not of 5", _chain(0, 1, 2, 3))
    refused("not of 5", _chain(0, 1, 2, 3, 4, 4))
    refused("not the one that is pinned", _chain(4, 3, 2, 1, 0))
    refused("another issuer", _chain(0, 2, 1, 3, 4))
    refused("another issuer|did not sign", _chain(1, 1, 2, 3, 4))
    refused("strict PEM", replace(GOOD, chain=b"words\n" + GOOD.chain))
    refused("cannot be read", replace(GOOD, chain=b""))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"root": "00" * 32}, "not the one that is pinned"),
        ({"states": ()}, "driver"),
        ({"states": (state(measurements={}),)}, "measurements"),
        ({"states": (state(measurements={1: frozenset()}),)}, "measurements"),
        ({"states": (state(measurements={99: frozenset({"00" * 48})}),)}, "measurements"),
        ({"states": (state(driver="595.71.06"),)}, "driver"),
        ({"states": (state(vbios="96.00.9f.00.05"),)}, "VBIOS"),
        # Two states that each fit in a part are not one that fits.
        ({"states": (state(driver="1"), state(vbios="2"))}, "VBIOS"),
        ({"states": (state(measurements={1: frozenset({"00" * 48})}), state(vbios="2"))},
         "measurements"),
    ],
)  # fmt: skip
def test_references_decide(changes: dict[str, Any], match: str) -> None:
    refused(match, held_to=reference(**changes))


@pytest.mark.parametrize(
    ("lists", "match"),
    [
        ({"root_crl": None}, "missing"),
        ({"line_crl": None}, "missing"),
        ({"root_crl": revoked("line")}, "revoked"),
        ({"root_crl": revoked("root")}, "revoked"),
        ({"line_crl": revoked("provisioner", issuer="line")}, "revoked"),
        ({"line_crl": ROOT_CRL}, "did not sign"),
        ({"root_crl": LINE_CRL}, "did not sign"),
        ({"root_crl": revoked(days=(-9, -1))}, "not in its time"),
        ({"line_crl": b""}, "cannot be read"),
    ],
)
def test_revocation_lists_decide(lists: dict[str, Any], match: str) -> None:
    refused(match, **lists)


def test_stale_early_and_answered_before_is_refused() -> None:
    refused("another nonce", nonce="cd" * 32)
    refused("expired", now=NOW + 300)
    refused("future", now=NOW - 1)
    for accept in ((), ("tdx",), ("nvidia",), ("tdx", "sev-snp+nvidia", "software-dev")):
        refused("does not accept", accept=accept)


def test_claims_of_another_kind_are_refused_though_the_gpu_answers_them() -> None:
    good = gpu_claims(NONCE, session="ed25519:x", measurement=MEASUREMENT, now=NOW)
    other = tdx_claims(NONCE, session="ed25519:x", measurement=MEASUREMENT, now=NOW)
    for payload in (b"{}", b"[]", good + b" ", other, canonical_json({"nonce": NONCE})):
        refused("refused", Gpu().evidence(payload))


def test_the_processor_vouches_for_this_gpu_and_for_the_same() -> None:
    """A GPU elsewhere answers whoever asks; only the machine's own processor covers its answer."""
    another = Gpu(digests={**DIGESTS, 8: bytes(48)}).evidence()
    assert result(another)
    refused("another nonce", beside(another, over=GOOD))
    refused("same", beside(GOOD, session="ed25519:y"))
    refused("same", beside(GOOD, measurement="sha256:" + "6" * 64))
    refused("same", beside(GOOD, at=NOW - 1))
    plain = tdx_claims(NONCE, session="ed25519:x", measurement=MEASUREMENT, now=NOW)
    refused("another nonce", replace(beside(GOOD), processor=PROCESSOR.evidence(plain)))
    broken = replace(beside(GOOD).processor, payload=b"{}")
    refused("other claims", replace(beside(GOOD), processor=broken))
    debugged = tdx_machine.Machine(body={120: b"\x01"})
    payload = tdx_claims(
        nonce_over(NONCE, GOOD), session="ed25519:x", measurement=MEASUREMENT, now=NOW
    )
    refused("debugger", replace(beside(GOOD), processor=debugged.evidence(payload)))


def test_amds_processor_vouches_for_a_gpu_too() -> None:
    payload = claims_payload(nonce_over(NONCE, GOOD), session="ed25519:x",
                             measurement=MEASUREMENT, now=NOW)  # fmt: skip
    evidence = WithGpuEvidence(processor=snp_machine.Machine().evidence(payload), gpu=GOOD)
    processor = SnpVerifier(reference=snp_machine.reference(), now=NOW)
    verifier = WithGpuVerifier(processor=processor, gpu=gpu_verifier())
    accept = ("sev-snp+nvidia",)
    found = appraise(evidence, verifier=verifier, nonce=NONCE, accept=accept, now=NOW)
    assert (found.label, found.hardware_rooted, found.debug) == ("sev-snp+nvidia", True, False)


class Library:
    """NVIDIA's management library, as it would answer."""

    class NVMLError(Exception):
        """What it raises."""

    def __init__(self, *, state: tuple[int, int, int] = (1, 0, 2), count: int = 1) -> None:
        self.state, self.count, self.open = state, count, 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetConfComputeState(self) -> SimpleNamespace:
        feature, tools, environment = self.state
        return SimpleNamespace(ccFeature=feature, devToolsMode=tools, environment=environment)

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, _: int, nonce: bytes) -> SimpleNamespace:
        if nonce == bytes(32):
            raise self.NVMLError("Timeout")
        report = Gpu(nonce=nonce).report(b"")
        buffer = list(report + bytes(0x2000 - len(report)))
        return SimpleNamespace(attestationReport=buffer, attestationReportSize=len(report))

    def nvmlDeviceGetConfComputeGpuCertificate(self, _: int) -> SimpleNamespace:
        chain = Gpu().chain()
        return SimpleNamespace(attestationCertChain=list(chain + bytes(99)),
                               attestationCertChainSize=len(chain))  # fmt: skip


def test_the_attester_asks_the_gpu_and_then_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(nvml, "import_module", lambda _: library)

    class Processor:
        def attest(self, nonce: str, *, now: int, measurement: str) -> TdxEvidence:
            said = tdx_claims(nonce, session="ed25519:x", measurement=measurement, now=now)
            return PROCESSOR.evidence(said)

    attester = WithGpuAttester(processor=Processor(), gpu=NvidiaAttester("ed25519:x"))
    assert result(attester.attest(NONCE, now=NOW, measurement=MEASUREMENT))
    assert library.open == 0
    with pytest.raises(AttestationRefused, match="Timeout"):
        nvml.gpu_report(bytes(32))
    assert library.open == 0


@pytest.mark.parametrize(
    "library",
    [
        Library(state=(0, 0, 2)),
        Library(state=(1, 1, 2)),
        Library(state=(1, 0, 1)),
        Library(state=(1, 0, 0)),
        Library(count=0),
        Library(count=2),
    ],
)
def test_the_attester_fails_closed(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "import_module", lambda _: library)
    with pytest.raises(AttestationRefused):
        NvidiaAttester("ed25519:x").attest(NONCE, now=NOW, measurement=MEASUREMENT)


def test_without_library_or_processor_there_is_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: str) -> Any:
        raise ModuleNotFoundError

    monkeypatch.setattr(nvml, "import_module", missing)
    gpu = NvidiaAttester("ed25519:x")
    with pytest.raises(AttestationRefused, match="not installed"):
        gpu.attest(NONCE, now=NOW, measurement=MEASUREMENT)
    monkeypatch.setattr(nvml, "import_module", lambda _: Library())
    processor = TdxAttester("ed25519:x", reports=tmp_path / "no")
    with pytest.raises(AttestationRefused, match="no report"):
        WithGpuAttester(processor=processor, gpu=gpu).attest(
            NONCE, now=NOW, measurement=MEASUREMENT
        )
