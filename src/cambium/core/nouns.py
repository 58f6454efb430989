"""The nouns as frozen values: adapters, proposals, signatures, revisions and their states."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cambium.core.canonical import digest_json

# Whose everything is that no tenant is named for.
DEFAULT_TENANT = "default"
DOMAIN_TAG = "cambium.v1"


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
class Act:
    """What is to be done, as a verifier knows it and not as a signer says.

    Args:
        target: the digest acted on; for a rollback, the digest of the revision to return to.
        state_version: the state's version; every executed act raises it.
        policy: digest of the policy in force.
    """

    action: Action
    target: str
    state_version: int
    policy: str


@dataclass(frozen=True, kw_only=True)
class SignedAct(Act):
    """What a signature covers, exactly; `expires` in seconds since 1970, UTC."""

    expires: int
    domain_tag: str = DOMAIN_TAG

    def to_json(self) -> dict[str, object]:
        """Returns the payload in the contract's shape."""
        return {**self.__dict__, "action": str(self.action)}


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
