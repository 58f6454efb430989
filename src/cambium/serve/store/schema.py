"""The tables; `migrations/` makes exactly these, held by a test."""

from __future__ import annotations

import json
from typing import cast

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Dialect,
    Double,
    Enum,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cambium.core.canonical import canonical_json
from cambium.core.nouns import ProposalState
from cambium.serve.adapter_states import AdapterState

Object = dict[str, object]


class CanonicalJson(TypeDecorator[object]):
    """JSON as canonical text, so that a digest taken before still holds after reading."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: object, dialect: Dialect) -> str:
        """Returns the text to store."""
        return canonical_json(value).decode("utf-8")

    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        """Returns the value as JSON reads it; a list comes back as a tuple."""
        read = json.loads(cast("str", value))
        return tuple(cast("list[object]", read)) if isinstance(read, list) else read


class Table(DeclarativeBase):
    """The root of the tables, with one rule for the names of constraints."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy reads it from the class)
        Object: CanonicalJson,
        tuple[float, ...]: CanonicalJson,
        tuple[str, ...]: CanonicalJson,
        str: Text,
        float: Double,
        # Milliseconds since 1970 are beyond 32 bits; in SQLite only INTEGER counts up by itself.
        int: BigInteger().with_variant(Integer(), "sqlite"),
        AdapterState: Enum(
            AdapterState, native_enum=False, length=16, values_callable=lambda e: [*map(str, e)]
        ),
        ProposalState: Enum(
            ProposalState, native_enum=False, length=24, values_callable=lambda e: [*map(str, e)]
        ),
    }


class Meta(Table):
    """Single values: the state's version, the digest of the base."""

    __tablename__ = "meta"
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class Policy(Table):
    """Signed policies; at most one is in force."""

    __tablename__ = "policies"
    digest: Mapped[str] = mapped_column(primary_key=True)
    toml: Mapped[str]
    signature: Mapped[Object]
    created_at: Mapped[int]
    # True or NULL, never false: a unique column then allows one policy in force.
    active: Mapped[bool | None] = mapped_column(unique=True)


class Key(Table):
    """Enrolled public keys; the same key bytes cannot enrol under two ids."""

    __tablename__ = "keys"
    key_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    public: Mapped[str] = mapped_column(unique=True)
    enrolled_at: Mapped[int]
    revoked_at: Mapped[int | None]


class Token(Table):
    """Bearer tokens, of which only the hash is kept; rows stay after revocation."""

    __tablename__ = "tokens"
    token_id: Mapped[str] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    tenant: Mapped[str]
    roles: Mapped[tuple[str, ...]]
    requests_per_minute: Mapped[int]
    created_at: Mapped[int]
    expires_at: Mapped[int | None]
    revoked_at: Mapped[int | None]


class Adapter(Table):
    """Adapters as they now stand."""

    __tablename__ = "adapters"
    name: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    state: Mapped[AdapterState] = mapped_column(index=True)
    tenant: Mapped[str]
    domain: Mapped[str | None]
    scope: Mapped[str]
    config_json: Mapped[str]
    parent_revision: Mapped[int]
    created_at: Mapped[int]
    expires_at: Mapped[int | None]
    weights_blob: Mapped[str | None]
    optimizer_blob: Mapped[str | None]
    steps: Mapped[int]
    detail: Mapped[Object]
    owner: Mapped[str | None]


class AdapterVersion(Table):
    """Frozen and stable versions, by name and digest."""

    __tablename__ = "adapter_versions"
    name: Mapped[str] = mapped_column(ForeignKey("adapters.name"), primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    config_json: Mapped[str]
    weights_blob: Mapped[str]
    created_at: Mapped[int]


class LearnStep(Table):
    """Accepted calls to learn."""

    __tablename__ = "learn_steps"
    id: Mapped[int] = mapped_column(primary_key=True)
    adapter: Mapped[str] = mapped_column(ForeignKey("adapters.name"), index=True)
    at: Mapped[int] = mapped_column(index=True)
    digest_before: Mapped[str]
    digest_after: Mapped[str]
    losses: Mapped[tuple[float, ...]]
    steps: Mapped[int]
    num_examples: Mapped[int]
    consent: Mapped[str | None]
    source: Mapped[str | None]
    monitors: Mapped[Object]
    manifest: Mapped[Object] = mapped_column(server_default="{}")


class Example(Table):
    """Examples given with consent, each once for an adapter."""

    __tablename__ = "examples"
    __table_args__ = (
        UniqueConstraint("adapter", "digest"),
        CheckConstraint("consent <> ''", name="consented"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    adapter: Mapped[str] = mapped_column(ForeignKey("adapters.name"))
    digest: Mapped[str]
    blob: Mapped[str]
    kind: Mapped[str]
    source: Mapped[str | None]
    consent: Mapped[str]
    at: Mapped[int]


class Replay(Table):
    """Windows of kept examples that lessons go through again."""

    __tablename__ = "replay_rows"
    adapter: Mapped[str] = mapped_column(ForeignKey("adapters.name"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    pointer: Mapped[str]
    source: Mapped[str]
    consent: Mapped[str]
    num_tokens: Mapped[int]
    embedding: Mapped[bytes]
    loss: Mapped[float]
    novelty: Mapped[float]
    born: Mapped[int]
    replays: Mapped[int]
    in_reservoir: Mapped[bool]


class Proposal(Table):
    """Proposals, each as one record."""

    __tablename__ = "proposals"
    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[ProposalState] = mapped_column(index=True)
    record: Mapped[Object]
    created_at: Mapped[int]
    updated_at: Mapped[int]


class Evidence(Table):
    """Signed statements about candidates."""

    __tablename__ = "evidence"
    digest: Mapped[str] = mapped_column(primary_key=True)
    proposal: Mapped[str] = mapped_column(ForeignKey("proposals.id"), index=True)
    look: Mapped[int]
    gate: Mapped[str]
    envelope: Mapped[Object]
    at: Mapped[int]


class Approval(Table):
    """Signatures on proposals, one for each key."""

    __tablename__ = "approvals"
    proposal: Mapped[str] = mapped_column(ForeignKey("proposals.id"), primary_key=True)
    key_id: Mapped[str] = mapped_column(primary_key=True)
    signature: Mapped[Object]
    at: Mapped[int]


class Revision(Table):
    """Signed revisions of the stable bank."""

    __tablename__ = "revisions"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(unique=True)
    manifest: Mapped[Object]
    signature: Mapped[Object]
    at: Mapped[int]


class Trace(Table):
    """What stood behind each answer."""

    __tablename__ = "traces"
    __table_args__ = (Index("ix_traces_tenant_at", "tenant", "at"),)
    request_id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(server_default="default")
    at: Mapped[int] = mapped_column(index=True)
    record: Mapped[Object]


class Process(Table):
    """Processes that share the state; who does not renew `seen_at` loses the row."""

    __tablename__ = "processes"
    id: Mapped[str] = mapped_column(primary_key=True)
    address: Mapped[str]
    seen_at: Mapped[int]


class Claim(Table):
    """Work that one process does, for as long as it lives."""

    __tablename__ = "claims"
    name: Mapped[str] = mapped_column(primary_key=True)
    process: Mapped[str] = mapped_column(ForeignKey("processes.id", ondelete="CASCADE"))


class Audit(Table):
    """The audit log; `hash` is of the entry's leaf. What `proposal` repeats of the body finds."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_proposal_seq", "proposal", "seq"),)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[int]
    kind: Mapped[str]
    body: Mapped[Object]
    hash: Mapped[str] = mapped_column(unique=True)
    proposal: Mapped[str | None]


class _Node:
    """Roots of a Merkle tree's perfect subtrees; level 0 are the leaves."""

    level: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    hash: Mapped[bytes]


class _Checkpoint:
    """What is signed over a Merkle tree beside its size."""

    root: Mapped[str]
    key_id: Mapped[str]
    signature: Mapped[str]


class AuditNode(_Node, Table):
    """Roots of the log's perfect subtrees; level 0 are the leaves."""

    __tablename__ = "audit_nodes"


class RequestLeaf(Table):
    """Whose trace each leaf of the requests' tree is of; one that was amended has several."""

    __tablename__ = "request_leaves"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    request_id: Mapped[str] = mapped_column(index=True)


class RequestNode(_Node, Table):
    """Roots of the perfect subtrees of the requests' lane; level 0 are the leaves."""

    __tablename__ = "request_nodes"


class RequestCheckpoint(_Checkpoint, Table):
    """The latest signed checkpoint of the requests' lane: one row."""

    __tablename__ = "request_checkpoints"
    size: Mapped[int] = mapped_column(ForeignKey("request_leaves.seq"), primary_key=True)


class LatestCheckpoint(_Checkpoint, Table):
    """The latest signed checkpoint of the audit log: one row."""

    __tablename__ = "checkpoints"
    size: Mapped[int] = mapped_column(ForeignKey("audit.seq"), primary_key=True)
