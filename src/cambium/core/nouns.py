"""The nouns as frozen values: adapters, proposals, signatures, revisions and their states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from cambium.core.canonical import digest_json
from cambium.core.errors import DataError

# Whose everything is that no tenant is named for.
DEFAULT_TENANT = "default"
DOMAIN_TAG = "cambium.v1"


class AdapterState(StrEnum):
    """Where an adapter stands; `quarantined` and `expired` are final."""

    EPHEMERAL = "ephemeral"
    FROZEN = "frozen"
    STABLE = "stable"
    QUARANTINED = "quarantined"
    EXPIRED = "expired"


class ProposalState(StrEnum):
    """Where a proposal stands; `merged`, `rejected` and `failed` are final."""

    CONSOLIDATING = "consolidating"
    CHECKING = "checking"
    AWAITING_APPROVAL = "awaiting_approval"
    MERGEABLE = "mergeable"
    MERGED = "merged"
    REJECTED = "rejected"
    FAILED = "failed"


class Action(StrEnum):
    """What a signature can be for."""

    APPROVE = "approve"
    ROLLBACK = "rollback"
    KILL = "kill"
    REVIVE = "revive"
    WIDEN_SCOPE = "widen_scope"
    WAIVE_GATE = "waive_gate"
    POLICY = "policy"
    REVOKE = "revoke"


def tenant_of(name: str) -> str:
    """Returns whose adapter it is, from `tenant:name`; a bare name is the default's."""
    return name.rpartition(":")[0] or DEFAULT_TENANT


@dataclass(frozen=True, kw_only=True)
class AdapterRef:
    """One adapter version: its name and the digest of its bytes."""

    name: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}"


@dataclass(frozen=True, kw_only=True)
class SignedAct:
    """What a signature covers, exactly.

    Args:
        target: the digest acted on; for a rollback, the digest of the revision to return to.
        state_version: the state's version when signed; every executed act raises it.
        expires: seconds since 1970, UTC.
        policy: digest of the policy in force.
    """

    action: Action
    target: str
    state_version: int
    expires: int
    policy: str
    domain_tag: str = DOMAIN_TAG

    def to_json(self) -> dict[str, object]:
        """Returns the payload in the contract's shape."""
        return {**self.__dict__, "action": str(self.action)}

    @classmethod
    def from_json(cls, value: object) -> SignedAct:
        """Reads a payload.

        Raises:
            DataError: a field is missing, unknown or of the wrong type.
        """
        names = {"domain_tag", "action", "target", "state_version", "expires", "policy"}
        record = cast("dict[str, object]", value) if isinstance(value, dict) else {}
        if set(record) != names:
            raise DataError(
                "the payload does not have exactly the six signed fields",
                mend=f"sign canonical JSON of {sorted(names)}",
            )
        texts = {n: v for n, v in record.items() if isinstance(v, str)}
        numbers = {n: v for n, v in record.items() if type(v) is int and v >= 0}
        typed = set(numbers) == {"state_version", "expires"} and set(texts) | set(numbers) == names
        if not typed or texts["action"] not in set(Action):
            raise DataError(
                "a field of the payload has the wrong type or value",
                mend="strings for tag, action, target and policy; whole numbers for the rest",
            )
        fields: dict[str, Any] = {**texts, **numbers, "action": Action(texts["action"])}
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A signed act as it arrives: who says they signed, the signature, what it covers."""

    key_id: str
    signature: str
    act: SignedAct


@dataclass(frozen=True, kw_only=True)
class BankEntry:
    """One domain of the stable bank: the adapter that serves it and its router's digest."""

    domain: str
    adapter: AdapterRef
    router_digest: str

    def to_json(self) -> dict[str, object]:
        """Returns the entry as it stands in a revision's manifest."""
        return {
            "adapter": self.adapter.name,
            "digest": self.adapter.digest,
            "router": self.router_digest,
        }


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A signed manifest of the stable bank; the base's weights are named, never changed.

    Args:
        number: grows by one with every merge and every rollback.
        kind: `genesis`, `merge` or `rollback`.
        of: for a rollback, the number of the revision whose bank is served again.
        proposal_digest: for a merge, what was approved.
        attestation: the attester's label, `software-dev` under the development profile.
    """

    number: int
    kind: str
    base_digest: str
    bank: tuple[BankEntry, ...]
    policy_digest: str
    created_at: int
    attestation: str
    parent: str | None = None
    of: int | None = None
    proposal_digest: str | None = None

    def manifest(self) -> dict[str, object]:
        """Returns the record whose canonical JSON is signed."""
        return {
            "type": "cambium/revision/v1",
            "number": self.number,
            "kind": self.kind,
            "base": self.base_digest,
            "bank": {entry.domain: entry.to_json() for entry in self.bank},
            "policy": self.policy_digest,
            "created_at": self.created_at,
            "attestation": self.attestation,
            "parent": self.parent,
            "of": self.of,
            "proposal": self.proposal_digest,
        }

    @property
    def digest(self) -> str:
        """Returns the digest of the manifest."""
        return digest_json(self.manifest())

    @property
    def adapters(self) -> frozenset[str]:
        """Returns the digests of what answers."""
        return frozenset(entry.adapter.digest for entry in self.bank)

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Revision:
        """Reads a manifest as `manifest` writes it.

        Raises:
            DataError: a field is missing or another type of record was given.
        """
        try:
            if manifest["type"] != "cambium/revision/v1":
                raise KeyError("type")
            bank = tuple(
                BankEntry(domain=domain, router_digest=entry["router"],
                          adapter=AdapterRef(name=entry["adapter"], digest=entry["digest"]))
                for domain, entry in sorted(manifest["bank"].items())
            )  # fmt: skip
            same = ("number", "kind", "created_at", "attestation", "parent", "of")
            return cls(base_digest=manifest["base"], bank=bank, policy_digest=manifest["policy"],
                       proposal_digest=manifest["proposal"],
                       **{name: manifest[name] for name in same})  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"not a revision's manifest: {error}", mend="restore a backup"
            ) from error
