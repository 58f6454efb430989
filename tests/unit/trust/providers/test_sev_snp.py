from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from tests.snp_machine import MEASUREMENT, NONCE, NOW, TCB, Machine, reference

from cambium.core.canonical import canonical_json
from cambium.core.errors import AttestationRefused
from cambium.trust.attestation import AttestationResult, appraise
from cambium.trust.providers.sev_snp import (
    REPORT_BYTES,
    SnpAttester,
    SnpEvidence,
    SnpReference,
    SnpVerifier,
    Tcb,
    claims_payload,
)

MACHINE = Machine()
GOOD = MACHINE.evidence()


def result(
    evidence: SnpEvidence,
    *,
    nonce: str = NONCE,
    now: int = NOW,
    accept: tuple[str, ...] = ("sev-snp",),
    held_to: SnpReference | None = None,
) -> AttestationResult:
    verifier = SnpVerifier(reference=held_to or reference(), now=now)
    return appraise(evidence, verifier=verifier, nonce=nonce, accept=accept, now=now)


def refused(evidence: SnpEvidence, match: str = "refused", **more: object) -> None:
    with pytest.raises(AttestationRefused, match=match):
        result(evidence, **more)  # type: ignore[arg-type]


def test_a_good_report_is_believed_and_labelled() -> None:
    found = result(GOOD)
    assert (found.label, found.hardware_rooted, found.debug) == ("sev-snp", True, False)
    assert (found.nonce, found.session, found.measurement) == (NONCE, "ed25519:x", MEASUREMENT)
    assert (found.issued_at, found.expires_at) == (NOW, NOW + 300)
    # Versions of the format that are known, the author's key, and newer firmware, are fine.
    for at, value in (
        (0x00, (2).to_bytes(4, "little")),
        (0x00, (5).to_bytes(4, "little")),
        (0x48, b"\x01"),
        (0x10, b"family and image"),
        (0xC0, b"host data"),
    ):
        result(MACHINE.changed(at, value))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_every_single_byte_counts() -> None:
    pick = random.Random(1)
    tried = 0
    for at in range(REPORT_BYTES):
        report = bytearray(GOOD.report)
        report[at] ^= 1 << pick.randrange(8)  # a signature each: one bit of each byte
        refused(replace(GOOD, report=bytes(report)))
        tried += 1
    for name in ("vcek", "ask", "ark", "payload"):
        data = getattr(GOOD, name)
        for at in range(len(data)):
            for bit in range(8):
                changed = bytearray(data)
                changed[at] ^= 1 << bit
                refused(replace(GOOD, **{name: bytes(changed)}))
                tried += 1
    assert tried > 20_000


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0x00, (1).to_bytes(4, "little"), "version"),
        (0x00, (4).to_bytes(4, "little"), "version"),
        (0x08, (0x10000).to_bytes(8, "little"), "malformed"),
        (0x08, (0x30000 | 1 << 17 | 1 << 18).to_bytes(8, "little"), "migrated"),
        (0x08, (0x30000 | 1 << 17 | 1 << 19).to_bytes(8, "little"), "debugger"),
        (0x30, (1).to_bytes(4, "little"), "privilege"),
        (0x34, (2).to_bytes(4, "little"), "algorithm"),
        (0x48, (2).to_bytes(4, "little"), "which chip"),
        (0x48, (4).to_bytes(4, "little"), "which chip"),
        (0x48, (7 << 2).to_bytes(4, "little"), "which chip"),
        (0x48, (1 << 20).to_bytes(4, "little"), "which chip"),
        (0x4C, b"\x01", "reserved"),
        (0x50, bytes(64), "other claims"),
        (0x90, bytes(48), "launch measurement"),
        (0x18B, b"\x01", "reserved"),
        (0x1A0, bytes(64), "chip"),
        (0x1F8, b"\x01", "reserved"),
        (0x29F, b"\x01", "reserved"),
        (0x180, bytes([4, 1, 0, 0, 0, 0, 0x80, 210]), "other firmware"),
        (0x183, b"\x01", "malformed"),
        (0x38, bytes([3, 1, 0, 0, 0, 0, 0x80, 209]), "too old"),
        (0x1E0, bytes([4, 1, 0, 0, 0, 0, 0x0F, 209]), "too old"),
        (0x1F0, bytes([4, 1, 0, 0, 0, 0, 0x80, 199]), "too old"),
    ],
)
def test_what_a_true_signature_does_not_excuse(at: int, value: bytes, why: str) -> None:
    refused(MACHINE.changed(at, value), why)


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        (Machine(signed_by="ark"), "another issuer|did not sign|RSA"),
        (Machine(signed_by="other"), "did not sign"),
        (Machine(valid_days=(-9, -1)), "time"),
        (Machine(valid_days=(1, 9)), "time"),
        (Machine(with_extensions=False), "does not say"),
        (Machine(certified_chip=bytes(64)), "another chip"),
        (Machine(certified=replace(TCB, snp=1)), "other firmware"),
        (Machine(tcb=replace(TCB, microcode=10), certified=replace(TCB, microcode=10)), "too old"),
        (Machine(chip=bytes(64)), "another chip"),
    ],
)
def test_another_machine_is_refused(machine: Machine, why: str) -> None:
    refused(machine.evidence(), why)


def test_a_chain_in_another_order_or_of_another_machine_is_refused() -> None:
    other = Machine().evidence()
    for changed in (
        replace(GOOD, vcek=other.vcek),
        replace(GOOD, report=other.report),
        replace(GOOD, ask=GOOD.ark),
        replace(GOOD, ark=GOOD.ask),
        replace(GOOD, vcek=GOOD.ask),
        replace(GOOD, vcek=b""),
        replace(GOOD, report=GOOD.report[:-1]),
        replace(GOOD, report=GOOD.report + b"\0"),
    ):
        refused(changed)


def test_references_decide() -> None:
    refused(GOOD, "pinned", held_to=reference(ark="0" * 64))
    refused(GOOD, "launch measurement", held_to=reference(measurements=frozenset()))
    refused(GOOD, "too old", held_to=reference(minimum=replace(TCB, tee=2)))
    result(GOOD, held_to=reference(minimum=TCB))


def test_stale_early_and_answered_before_is_refused() -> None:
    refused(GOOD, "another nonce", nonce="cd" * 32)
    refused(GOOD, "expired", now=NOW + 300)
    refused(GOOD, "future", now=NOW - 1)
    refused(GOOD, "does not accept", accept=("software-dev",))
    refused(GOOD, "does not accept", accept=())


@pytest.mark.parametrize(
    "change",
    [
        {"type": "other"},
        {"nonce": None},
        {"issued_at": "1"},
        {"expires_at": True},
        {"expires_at": NOW + 301},
        {"measurement": "not a digest"},
        {"more": 1},
    ],
)
def test_claims_of_another_kind_are_refused_though_the_report_covers_them(
    change: dict[str, object],
) -> None:
    claims = {**json.loads(GOOD.payload), **change}
    refused(MACHINE.evidence(canonical_json(claims)))
    refused(MACHINE.evidence(json.dumps(claims, indent=1).encode()))


def test_versions_compare_part_by_part() -> None:
    newer = replace(TCB, boot_loader=9, microcode=0)
    assert not newer.is_at_least(TCB) and not TCB.is_at_least(newer)
    assert TCB.is_at_least(TCB)
    assert Tcb.from_bytes(bytes([1, 2, 0, 0, 0, 0, 3, 4])) == Tcb(
        boot_loader=1, tee=2, snp=3, microcode=4
    )


def test_the_attester_hands_the_claims_to_the_kernel_and_fails_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vcek, ask, ark = MACHINE.certificates()
    certificates = {"vcek": vcek, "ask": ask, "ark": ark}
    attester = SnpAttester("ed25519:x", certificates, reports=tmp_path)
    with pytest.raises(AttestationRefused, match="no report"):
        attester.attest(NONCE, now=NOW, measurement=MEASUREMENT)
    missing = SnpAttester("ed25519:x", certificates, reports=tmp_path / "no")
    with pytest.raises(AttestationRefused, match="no report"):
        missing.attest(NONCE, now=NOW, measurement=MEASUREMENT)
    read = Path.read_bytes

    def kernel(path: Path) -> bytes:
        if path.name != "outblob":
            return read(path)
        payload = claims_payload(NONCE, session="ed25519:x", measurement=MEASUREMENT, now=NOW)
        given = (path.parent / "inblob").read_bytes()
        (path.parent / "inblob").unlink()
        report = MACHINE.report(payload)
        assert bytes(report[0x50:0x90]) == given
        return MACHINE.sign(report)

    monkeypatch.setattr(Path, "read_bytes", kernel)
    assert result(attester.attest(NONCE, now=NOW, measurement=MEASUREMENT)).hardware_rooted
