from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cambium.core.canonical import digest_bytes
from cambium.core.errors import DataError, DigestMismatch, Expired, ReplayDetected, SignatureInvalid
from cambium.core.nouns import Act, Action, Signature, SignedAct
from cambium.serve.signed_records import signature_from_json
from cambium.trust.acts import (
    MAX_LIFETIME_S,
    check_act,
    sign_act,
    signature_to_json,
)
from cambium.trust.keys import generate_key

NOW = 1_000_000
KEY = generate_key()
TARGET, POLICY = digest_bytes(b"target"), digest_bytes(b"policy")
EXPECTED = Act(action=Action.APPROVE, target=TARGET, state_version=7, policy=POLICY)
ACT = SignedAct(
    action=Action.APPROVE, target=TARGET, state_version=7, expires=NOW + 60, policy=POLICY
)


def check(act: SignedAct, *, now: int = NOW) -> None:
    check_act(sign_act(KEY, act), public_key=KEY.public_key, expected=EXPECTED, now=now)


def test_the_expected_act_passes_until_it_expires() -> None:
    check(ACT)
    check(ACT, now=NOW + 59)


@pytest.mark.parametrize(
    "change",
    [
        {"domain_tag": "cambium.v2"},
        {"action": Action.ROLLBACK},
        {"target": digest_bytes(b"other")},
        {"policy": digest_bytes(b"other")},
        {"target": ""},
    ],
)
def test_an_act_about_something_else_is_a_mismatch(change: dict[str, object]) -> None:
    with pytest.raises(DigestMismatch):
        check(replace(ACT, **change))


@pytest.mark.parametrize("version", [0, 6, 8])
def test_another_state_version_is_a_replay(version: int) -> None:
    with pytest.raises(ReplayDetected):
        check(replace(ACT, state_version=version))


def test_time_is_bounded_on_both_sides() -> None:
    with pytest.raises(Expired, match="expired 0 s ago"):
        check(ACT, now=NOW + 60)
    check(replace(ACT, expires=NOW + MAX_LIFETIME_S))
    with pytest.raises(Expired, match="30 days"):
        check(replace(ACT, expires=NOW + MAX_LIFETIME_S + 1))


def test_another_key_or_another_claimed_key_is_refused() -> None:
    other, good = generate_key(), sign_act(KEY, ACT)
    for signature, public in (
        (good, other.public_key),
        (replace(good, key_id=other.key_id), KEY.public_key),
        (replace(sign_act(other, ACT), key_id=KEY.key_id), KEY.public_key),
    ):
        with pytest.raises(SignatureInvalid):
            check_act(signature, public_key=public, expected=EXPECTED, now=NOW)


def test_a_payload_without_bytes_is_refused() -> None:
    broken = Signature(key_id=KEY.key_id, signature="00" * 64, act=replace(ACT, target="\ud800"))
    with pytest.raises(SignatureInvalid, match="no bytes"):
        check_act(broken, public_key=KEY.public_key, expected=EXPECTED, now=NOW)


def test_what_is_signed_is_the_contracts_canonical_json() -> None:
    signature = sign_act(KEY, ACT)
    text = json.dumps(ACT.to_json(), sort_keys=True, separators=(",", ":"))
    assert KEY.public_key.verify(text.encode(), signature.signature)


def test_a_signature_survives_json() -> None:
    signature = sign_act(KEY, ACT)
    record = json.loads(json.dumps(signature_to_json(signature)))
    assert set(record) == {"key_id", "signature", "payload"}
    assert signature_from_json(record) == signature


@pytest.mark.parametrize(
    "change",
    [{"key_id": 1}, {"signature": None}, {"payload": {}}, {"payload": "x"}, {"extra": 1}],
)
def test_malformed_signatures_are_bad_data(change: dict[str, object]) -> None:
    with pytest.raises(DataError):
        signature_from_json(signature_to_json(sign_act(KEY, ACT)) | change)


@pytest.mark.parametrize("value", [None, [], "x", 3, {}])
def test_what_is_no_signature_at_all_is_bad_data(value: object) -> None:
    with pytest.raises(DataError):
        signature_from_json(value)
