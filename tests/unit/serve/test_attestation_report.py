from __future__ import annotations

from dataclasses import replace
from typing import Any

from cambium.core.canonical import digest_bytes
from cambium.serve.attestation_report import report_id, to_ear
from cambium.trust.attestation import SOFTWARE_DEV, AttestationResult

RESULT = AttestationResult(
    label=SOFTWARE_DEV, hardware_rooted=False, debug=True, nonce="ab" * 32, session="s",
    measurement=digest_bytes(b"x"), issued_at=1, expires_at=2,
)  # fmt: skip


def status(result: AttestationResult) -> Any:
    found: Any = to_ear(result)
    return found["submods"]["server"]["ear.status"]


def test_software_vouches_for_no_hardware() -> None:
    assert status(RESULT) == "none"
    assert status(replace(RESULT, hardware_rooted=True)) == "affirming"


def test_every_field_is_in_the_report() -> None:
    other: dict[str, Any] = {
        "label": "tdx", "hardware_rooted": True, "debug": False, "nonce": "cd" * 32,
        "session": "t", "measurement": digest_bytes(b"y"), "issued_at": 0, "expires_at": 3,
    }  # fmt: skip
    reports = {report_id(replace(RESULT, **{name: value})) for name, value in other.items()}
    assert len(reports | {report_id(RESULT)}) == len(other) + 1
