from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cambium.core.canonical import digest_json
from cambium.core.errors import DataError
from cambium.core.nouns import Action, AdapterRef, BankEntry, Revision, SignedAct
from cambium.serve.revision_records import revision_from_manifest
from cambium.serve.signed_records import act_from_json

DIGEST = "sha256:" + "a" * 64
ACT = SignedAct(action=Action.APPROVE, target=DIGEST, state_version=3, expires=9, policy=DIGEST)
REVISION = Revision(
    number=2,
    kind="merge",
    base_digest=DIGEST,
    bank=(
        BankEntry(
            domain="law",
            adapter=AdapterRef(name="law-1", digest=DIGEST),
            router_digest="sha256:" + "b" * 64,
        ),
    ),
    policy_digest=DIGEST,
    created_at=1,
    attestation="software-dev",
    parent=DIGEST,
    proposal_digest=DIGEST,
)


def test_an_act_survives_json() -> None:
    assert act_from_json(ACT.to_json()) == ACT
    assert ACT.to_json()["domain_tag"] == "cambium.v1"


@pytest.mark.parametrize(
    "change",
    [{"action": "merge"}, {"action": None}, {"state_version": "3"}, {"state_version": -1},
     {"state_version": True}, {"state_version": 3.0}, {"expires": None}, {"target": 3},
     {"policy": []}, {"domain_tag": None}, {"extra": 1}],
)  # fmt: skip
def test_an_act_is_read_strictly(change: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        act_from_json({**ACT.to_json(), **change})


@pytest.mark.parametrize("field", sorted(ACT.to_json()))
def test_an_act_needs_every_field(field: str) -> None:
    record = ACT.to_json()
    del record[field]
    with pytest.raises(DataError):
        act_from_json(record)


@pytest.mark.parametrize("value", [None, [], "act", 3])
def test_an_act_is_a_table(value: object) -> None:
    with pytest.raises(DataError):
        act_from_json(value)


def test_a_revision_survives_its_manifest() -> None:
    again = revision_from_manifest(REVISION.manifest())
    assert again == REVISION and again.digest == REVISION.digest
    assert REVISION.digest == digest_json(REVISION.manifest())


def test_every_field_of_a_revision_is_in_its_digest() -> None:
    entry = REVISION.bank[0]
    others = [
        replace(REVISION, number=3),
        replace(REVISION, kind="rollback"),
        replace(REVISION, base_digest="x"),
        replace(REVISION, bank=()),
        replace(REVISION, bank=(replace(entry, router_digest="x"),)),
        replace(REVISION, bank=(replace(entry, adapter=AdapterRef(name="x", digest=DIGEST)),)),
        replace(REVISION, policy_digest="x"),
        replace(REVISION, created_at=2),
        replace(REVISION, attestation="x"),
        replace(REVISION, parent=None),
        replace(REVISION, of=1),
        replace(REVISION, proposal_digest=None),
    ]
    digests = {r.digest for r in [REVISION, *others]}
    assert len(digests) == len(others) + 1


@pytest.mark.parametrize("field", sorted(REVISION.manifest()))
def test_a_manifest_needs_every_field(field: str) -> None:
    manifest = REVISION.manifest()
    del manifest[field]
    with pytest.raises(DataError, match="not a revision"):
        revision_from_manifest(manifest)


@pytest.mark.parametrize("bank", [None, [], {"law": None}, {"law": {"adapter": "x"}}])
def test_a_broken_bank_is_no_manifest(bank: Any) -> None:
    with pytest.raises(DataError):
        revision_from_manifest({**REVISION.manifest(), "bank": bank})
