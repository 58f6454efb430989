from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.tdx_machine import (
    MEASUREMENT,
    NONCE,
    NOW,
    PARTS,
    REGISTERS,
    Machine,
    collateral,
    issue,
    level,
    qe_identity,
    reference,
    revoked,
    signed,
    tcb_info,
)

from cambium.core.canonical import canonical_json
from cambium.core.errors import AttestationRefused
from cambium.trust.attestation import AttestationResult, appraise
from cambium.trust.providers.sev_snp import claims_payload
from cambium.trust.providers.tdx import (
    TdxAttester,
    TdxEvidence,
    TdxReference,
    TdxVerifier,
    tdx_claims,
)
from cambium.trust.providers.tdx_quote import SIGNED_BYTES
from cambium.trust.providers.tdx_tcb import Collateral

GOOD = Machine().evidence()
FILES = collateral()


def result(
    evidence: TdxEvidence = GOOD,
    *,
    files: Collateral = FILES,
    held_to: TdxReference | None = None,
    nonce: str = NONCE,
    now: int = NOW,
    accept: tuple[str, ...] = ("tdx",),
) -> AttestationResult:
    verifier = TdxVerifier(reference=held_to or reference(), collateral=files, now=now)
    return appraise(evidence, verifier=verifier, nonce=nonce, accept=accept, now=now)


def refused(match: str, evidence: TdxEvidence = GOOD, **more: Any) -> None:
    with pytest.raises(AttestationRefused, match=match):
        result(evidence, **more)


def test_a_good_quote_is_believed_and_labelled() -> None:
    found = result()
    assert (found.label, found.hardware_rooted, found.debug) == ("tdx", True, False)
    assert (found.nonce, found.session, found.measurement) == (NONCE, "ed25519:x", MEASUREMENT)
    # Free fields, harmless attributes, newer firmware, and the zeros of Linux' buffer, are fine.
    for machine in (
        Machine(body={184: b"config", 232: b"owner", 128: b"\xe7"}),
        Machine(body={120: (1 << 28 | 1 << 30 | 1 << 63).to_bytes(8, "little")}),
        Machine(parts=tuple(n + 1 for n in PARTS), pce_svn=12),
        Machine(body={0: bytes([9, 1, 7])}),
        Machine(qe={258: b"\x07"}),
    ):
        assert result(machine.evidence())
    assert result(replace(GOOD, quote=GOOD.quote + bytes(100)))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_every_single_byte_counts() -> None:
    pick = random.Random(1)
    for at in range(len(GOOD.quote)):
        quote = bytearray(GOOD.quote)
        quote[at] ^= 1 << pick.randrange(7)  # PEM is text
        refused("refused", replace(GOOD, quote=bytes(quote)))
    for at in range(len(GOOD.payload)):
        payload = bytearray(GOOD.payload)
        payload[at] ^= 1 << pick.randrange(8)
        refused("refused", replace(GOOD, payload=bytes(payload)))
    for at in range(0, len(GOOD.quote), 37):
        refused("refused", replace(GOOD, quote=GOOD.quote[:at]))
    for name in ("tcb_info", "qe_identity", "root_crl", "pck_crl"):
        data = getattr(FILES, name)
        for at in range(0, len(data), 3):
            changed = bytearray(data)
            changed[at] ^= 1 << pick.randrange(7)
            refused("refused", files=replace(FILES, **{name: bytes(changed)}))


@pytest.mark.parametrize(
    ("machine", "match"),
    [
        (Machine(header={0: b"\x05"}), "no quote of this version"),
        (Machine(header={2: b"\x03"}), "no quote of this version"),
        (Machine(header={4: b"\x00"}), "no quote of this version"),
        (Machine(header={12: b"\x00"}), "another maker's enclave"),
        (Machine(body={120: b"\x01"}), "debugger"),
        (Machine(body={123: b"\x00"}), "pages away"),
        (Machine(body={123: b"\x30"}), "not known"),
        (Machine(body={121: b"\x01"}), "not known"),
        (Machine(body={136: b"\xff"}), "measurements"),
        (Machine(body={328: b"\xff"}), "measurements"),
        (Machine(body={376: b"\xff"}), "measurements"),
        (Machine(body={424: b"\xff"}), "measurements"),
        (Machine(body={472: b"\xff"}), "measurements"),
        (Machine(body={520: bytes(64)}), "other claims"),
        (Machine(body={64: b"\x01"}), "another maker's module"),
        (Machine(body={112: b"\x01"}), "other attributes"),
        (Machine(body={1: b"\x03"}), "does not know this module"),
        (Machine(body={0: b"\x04"}), "'OutOfDate'"),
        (Machine(body={0: b"\x01"}), "none of Intel's levels"),
        (Machine(body={2: b"\x01"}), "'OutOfDate'"),
        (Machine(parts=(0, *PARTS[1:])), "'OutOfDate'"),
        (Machine(pce_svn=10), "'OutOfDate'"),
        (Machine(fmspc="00" * 6), "other processors"),
        (Machine(vouched=bytes(32)), "another key"),
        (Machine(qe={352: b"\x01"}), "another key"),
        (Machine(qe={128: b"\xff"}), "another enclave"),
        (Machine(qe={256: b"\x01"}), "another enclave"),
        (Machine(qe={258: b"\x03"}), "'OutOfDate'"),
        (Machine(qe={258: b"\x00"}), "none of Intel's levels"),
        (Machine(qe={16: b"\x01"}), "miscselect"),
        (Machine(qe={48: b"\x13"}), "attributes"),
        (Machine(signers=("other", "pck", "platform")), "did not sign this quote"),
        (Machine(signers=("attestation", "other", "platform")), "did not sign the enclave"),
        (Machine(signers=("attestation", "pck", "root")), "issuer did not sign"),
        (Machine(is_authority=False), "none of an authority"),
        (Machine(valid_days=(-30, -1)), "not in its time"),
        (Machine(valid_days=(1, 30)), "not in its time"),
        (Machine(types=(5, 5)), "report is missing"),
        (Machine(types=(6, 1)), "certificates are missing"),
    ],
)
def test_what_a_true_signature_does_not_excuse(machine: Machine, match: str) -> None:
    refused(match, machine.evidence())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"root": "00" * 32}, "not the one that is pinned"),
        ({"machines": frozenset()}, "measurements"),
        ({"machines": frozenset({tuple(r.hex() for r in reversed(REGISTERS))})}, "measurements"),
        ({"statuses": frozenset()}, "'UpToDate'"),
    ],
)
def test_references_decide(changes: dict[str, Any], match: str) -> None:
    refused(match, held_to=reference(**changes))


def test_an_old_firmware_passes_where_the_reference_says_so() -> None:
    old = Machine(pce_svn=10).evidence()
    refused("'OutOfDate'", old)
    assert result(old, held_to=reference(statuses=frozenset({"UpToDate", "OutOfDate"})))


def _info(**changes: Any) -> dict[str, bytes]:
    return {"tcb_info": signed("tcbInfo", tcb_info(**changes))}


def _identity(**changes: Any) -> dict[str, bytes]:
    return {"qe_identity": signed("enclaveIdentity", qe_identity(**changes))}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (_info(id="SGX"), "another kind"),
        (_info(version=2), "another kind"),
        (_info(fmspc="000000000000"), "other processors"),
        (_info(pceId="0001"), "another enclave"),
        (_info(nextUpdate="2020-01-01T00:00:00Z"), "not in its time"),
        (_info(issueDate="2090-01-01T00:00:00Z"), "not in its time"),
        (_info(nextUpdate="soon"), "cannot be read"),
        (_info(tcbLevels=[]), "none of Intel's levels"),
        (_info(tcbLevels=[level("Revoked")]), "'Revoked'"),
        (_info(tcbLevels=[{"tcb": {}}]), "lacks a field"),
        (_info(tdxModuleIdentities=[]), "does not know this module"),
        (_identity(id="QE"), "another's"),
        (_identity(mrsigner="00" * 32), "another enclave"),
        (_identity(isvprodid=1), "another enclave"),
        (_identity(attributesMask="FF"), "malformed"),
        (_identity(nextUpdate="2020-01-01T00:00:00Z"), "not in its time"),
        ({"tcb_info": signed("tcbInfo", tcb_info(), by="platform")}, "did not sign"),
        ({"tcb_info": signed("enclaveIdentity", qe_identity())}, "no signed tcbInfo"),
        ({"qe_identity": b"{}"}, "no signed enclaveIdentity"),
        ({"issuers": issue("platform", "root", ca=True) + issue("root", "root", ca=True)},
         "another key signed"),
        ({"issuers": issue("Intel SGX TCB Signing", "root")}, "two certificates"),
        ({"issuers": b""}, "cannot be read"),
        ({"root_crl": revoked("platform")}, "revoked"),
        ({"root_crl": revoked("root")}, "revoked"),
        ({"pck_crl": revoked("pck", issuer="platform")}, "revoked"),
        ({"pck_crl": revoked()}, "another issuer|did not sign"),
        ({"root_crl": revoked(days=(-9, -1))}, "not in its time"),
        ({"pck_crl": b""}, "cannot be read"),
    ],
)  # fmt: skip
def test_what_intel_says_decides(changes: dict[str, bytes], match: str) -> None:
    refused(match, files=collateral(**changes))


def test_stale_early_and_answered_before_is_refused() -> None:
    refused("another nonce", nonce="cd" * 32)
    refused("expired", now=NOW + 300)
    refused("future", now=NOW - 1)
    refused("does not accept", accept=("sev-snp", "software-dev"))


def test_claims_of_another_kind_are_refused_though_the_quote_covers_them() -> None:
    good = tdx_claims(NONCE, session="ed25519:x", measurement=MEASUREMENT, now=NOW)
    other = claims_payload(NONCE, session="ed25519:x", measurement=MEASUREMENT, now=NOW)
    for payload in (b"{}", b"[]", good + b" ", other, canonical_json({"nonce": NONCE})):
        refused("refused", Machine().evidence(payload))


def test_the_attester_fails_closed_without_such_a_processor(tmp_path: Path) -> None:
    attester = TdxAttester("ed25519:x", reports=tmp_path / "no")
    with pytest.raises(AttestationRefused, match="no report"):
        attester.attest(NONCE, now=NOW, measurement=MEASUREMENT)
    assert len(GOOD.quote) > SIGNED_BYTES
