from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace

import pytest

from cambium.core.canonical import canonical_json, digest_bytes
from cambium.core.errors import AttestationRefused
from cambium.trust.attestation import (
    MAX_LIFETIME_S,
    SOFTWARE_DEV,
    AttestationResult,
    Claims,
    appraise,
    new_nonce,
)
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.providers.software_dev import (
    SoftwareDevAttester,
    SoftwareDevVerifier,
    endorsement_bytes,
)
from cambium.trust.providers.software_dev import (
    SoftwareEvidence as Evidence,
)

NOW = 10_000
NONCE = "ab" * 32
ROOT = generate_key()
ATTESTER = SoftwareDevAttester(ROOT)
VERIFIER = ATTESTER.verifier
MEASUREMENT = digest_bytes(b"code and base")
EVIDENCE = ATTESTER.attest(NONCE, now=NOW, measurement=MEASUREMENT)
ACCEPT = (SOFTWARE_DEV,)


def verify(
    evidence: Evidence,
    *,
    nonce: str = NONCE,
    accept: Collection[str] = ACCEPT,
    verifier: SoftwareDevVerifier = VERIFIER,
    now: int = NOW,
) -> AttestationResult:
    return appraise(evidence, verifier=verifier, nonce=nonce, accept=accept, now=now)


def signed_claims(session: SigningKey, /, **changes: object) -> Evidence:
    """Evidence as a dishonest process that holds the root would make it."""
    claims = json.loads(EVIDENCE.payload) | {"session": session.key_id} | changes
    payload = canonical_json({k: v for k, v in claims.items() if v is not ...})
    return Evidence(
        root=ROOT.key_id,
        session=session.public_key.raw,
        endorsement=ROOT.sign(endorsement_bytes(session.public_key)),
        payload=payload,
        signature=session.sign(payload),
    )


def test_the_result_is_labelled_as_software() -> None:
    result = verify(EVIDENCE)
    assert (result.label, result.hardware_rooted, result.debug) == (SOFTWARE_DEV, False, True)
    assert (result.nonce, result.measurement) == (NONCE, MEASUREMENT)
    assert result.expires_at - result.issued_at <= 300


def test_the_dishonest_helper_is_accepted_when_honest() -> None:
    """Otherwise the tests below could refuse for the wrong reason."""
    assert verify(signed_claims(generate_key())).label == SOFTWARE_DEV


@pytest.mark.parametrize("accept", [(), ("tdx",), ("software-de",), ""])
def test_a_policy_that_does_not_name_it_refuses_it(accept: Collection[str]) -> None:
    with pytest.raises(AttestationRefused, match="does not accept"):
        verify(EVIDENCE, accept=accept)


@pytest.mark.parametrize("nonce", ["", "ab" * 31, "AB" * 32, "cd" * 32, NONCE + "\n"])
def test_another_nonce_is_refused(nonce: str) -> None:
    with pytest.raises(AttestationRefused, match="nonce"):
        verify(EVIDENCE, nonce=nonce)


def test_recorded_evidence_does_not_answer_a_fresh_nonce() -> None:
    nonces = {new_nonce() for _ in range(100)}
    assert len(nonces) == 100
    for nonce in nonces:
        with pytest.raises(AttestationRefused, match="'nonce'"):
            verify(EVIDENCE, nonce=nonce)


def test_time_is_bounded_on_both_sides() -> None:
    verify(EVIDENCE, now=NOW + MAX_LIFETIME_S - 1)
    for now in (NOW - 1, NOW + MAX_LIFETIME_S, NOW + 10**6):
        with pytest.raises(AttestationRefused, match=r"expired|future"):
            verify(EVIDENCE, now=now)


def test_another_root_is_refused() -> None:
    other = SoftwareDevAttester(generate_key())
    evidence = other.attest(NONCE, now=NOW, measurement=MEASUREMENT)
    with pytest.raises(AttestationRefused, match="no trusted root"):
        verify(evidence)
    with pytest.raises(AttestationRefused, match="did not vouch"):
        verify(replace(evidence, root=ROOT.key_id))
    with pytest.raises(AttestationRefused, match="no trusted root"):
        verify(EVIDENCE, verifier=other.verifier)


class Claiming(SoftwareDevVerifier):
    """A verifier of another label that reads the same evidence, against the rules."""

    label = "nobody"  # type: ignore[assignment]


def test_the_label_is_the_verifiers_and_evidence_cannot_borrow_a_better_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(AttestationRefused, match="does not accept"):
        verify(EVIDENCE, accept=("tdx",))
    claimed = signed_claims(generate_key(), profile="tdx", hardware_rooted=True)
    with pytest.raises(AttestationRefused, match="'profile'"):
        verify(claimed, accept=("tdx", SOFTWARE_DEV))
    monkeypatch.setattr(Claiming, "label", "tdx")
    with pytest.raises(AttestationRefused, match="'profile'"):
        verify(claimed, accept=("tdx",), verifier=Claiming(root=ROOT.public_key))


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(AttestationRefused, match="unknown"):
        verify(EVIDENCE, accept=("nobody",), verifier=Claiming(root=ROOT.public_key))


@dataclass(frozen=True)
class Saying:
    """A provider whose evidence is authentic whatever it says."""

    label: str = SOFTWARE_DEV

    def verify(self, evidence: Claims, *, nonce: str) -> Claims:
        return evidence


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"issued_at": NOW + 1}, "future"),
        ({"expires_at": NOW}, "expired"),
        ({"expires_at": NOW + MAX_LIFETIME_S + 1}, "outlive"),
        ({"measurement": "none"}, "measurement"),
    ],
)
def test_times_and_measurement_are_checked_whoever_vouches(
    change: dict[str, object], why: str | None
) -> None:
    claims = replace(Claims(session="s", measurement=MEASUREMENT, issued_at=NOW,
                            expires_at=NOW + 1), **change)  # type: ignore[arg-type]  # fmt: skip
    if why is None:
        assert appraise(claims, verifier=Saying(), nonce=NONCE, accept=ACCEPT, now=NOW).label
        return
    with pytest.raises(AttestationRefused, match=why):
        appraise(claims, verifier=Saying(), nonce=NONCE, accept=ACCEPT, now=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "other"},
        {"profile": "tdx"},
        {"hardware_rooted": True},
        {"hardware_rooted": 0},
        {"debug": False},
        {"debug": 1},
        {"nonce": "cd" * 32},
        {"session": ROOT.key_id},
        {"measurement": "none"},
        {"measurement": None},
        {"issued_at": NOW + 1},
        {"issued_at": NOW - 1},  # lives 301 s
        {"issued_at": "now"},
        {"expires_at": NOW},
        {"expires_at": NOW + MAX_LIFETIME_S + 1},
        {"expires_at": float(NOW + 10)},
        {"extra": 1},
        *({name: ...} for name in json.loads(EVIDENCE.payload)),
    ],
)
def test_every_claim_is_checked_even_when_signed(changes: dict[str, object]) -> None:
    with pytest.raises(AttestationRefused):
        verify(signed_claims(generate_key(), **changes))


def test_every_edited_byte_is_refused() -> None:
    tried = 0
    for name in ("payload", "signature", "endorsement", "session", "root"):
        value = getattr(EVIDENCE, name)
        text = value.decode() if isinstance(value, bytes) else value
        for position in range(len(text)):
            for other in ("0", "f", "x"):
                if text[position] == other:
                    continue
                edited = text[:position] + other + text[position + 1 :]
                changed = edited.encode() if isinstance(value, bytes) else edited
                with pytest.raises(AttestationRefused):
                    verify(replace(EVIDENCE, **{name: changed}))
                tried += 1
    assert tried > 1500


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, b'{"a":1,"a":1}']
)
def test_signed_nonsense_is_refused(payload: bytes) -> None:
    session = generate_key()
    evidence = replace(signed_claims(session), payload=payload, signature=session.sign(payload))
    with pytest.raises(AttestationRefused):
        verify(evidence)
