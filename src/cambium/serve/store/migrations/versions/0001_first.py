"""The first schema.

A step says in its own words what it makes, and imports nothing of the program: the tables of
`schema.py` move on, and this step must not.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Milliseconds since 1970 are beyond 32 bits; in SQLite only INTEGER counts a key up by itself.
_WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes every table."""
    _make_ledger()
    _make_adapters()
    _make_proposals()


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text(), nullable=False) for name in names]


def _maybe_texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text(), nullable=True) for name in names]


def _numbers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, _WHOLE, nullable=False) for name in names]


def _maybe_number(name: str) -> sa.Column[int]:
    return sa.Column(name, _WHOLE, nullable=True)


def _make_ledger() -> None:
    op.create_table("meta", *_texts("key", "value"), sa.PrimaryKeyConstraint("key", name="pk_meta"))
    op.create_table(
        "policies",
        *_texts("digest", "toml", "signature"),
        *_numbers("created_at"),
        sa.Column("active", sa.Boolean(), nullable=True),
        sa.PrimaryKeyConstraint("digest", name="pk_policies"),
        sa.UniqueConstraint("active", name="uq_policies_active"),
    )
    op.create_table(
        "keys",
        *_texts("key_id", "name", "role", "public"),
        *_numbers("enrolled_at"),
        _maybe_number("revoked_at"),
        sa.PrimaryKeyConstraint("key_id", name="pk_keys"),
        sa.UniqueConstraint("public", name="uq_keys_public"),
    )
    op.create_table(
        "audit",
        *_numbers("seq", "at"),
        *_texts("kind", "body", "prev", "hash"),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
        sa.UniqueConstraint("hash", name="uq_audit_hash"),
    )
    op.create_table(
        "heads",
        *_numbers("seq"),
        *_texts("hash", "key_id", "signature"),
        sa.ForeignKeyConstraint(["seq"], ["audit.seq"], name="fk_heads_seq"),
        sa.PrimaryKeyConstraint("seq", name="pk_heads"),
    )


def _make_adapters() -> None:
    op.create_table(
        "adapters",
        *_texts("name", "digest"),
        sa.Column("state", sa.String(16), nullable=False),
        *_texts("tenant", "scope", "config_json", "detail"),
        *_maybe_texts("domain", "weights_blob", "optimizer_blob"),
        *_numbers("parent_revision", "created_at", "steps"),
        _maybe_number("expires_at"),
        sa.PrimaryKeyConstraint("name", name="pk_adapters"),
    )
    op.create_index("ix_adapters_state", "adapters", ["state"])
    op.create_table(
        "adapter_versions",
        *_texts("name", "digest", "config_json", "weights_blob"),
        *_numbers("created_at"),
        sa.ForeignKeyConstraint(["name"], ["adapters.name"], name="fk_adapter_versions_name"),
        sa.PrimaryKeyConstraint("name", "digest", name="pk_adapter_versions"),
    )
    op.create_table(
        "learn_steps",
        *_numbers("id", "at", "steps", "num_examples"),
        *_texts("adapter", "digest_before", "digest_after", "losses", "monitors"),
        *_maybe_texts("consent", "source"),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.name"], name="fk_learn_steps_adapter"),
        sa.PrimaryKeyConstraint("id", name="pk_learn_steps"),
    )
    op.create_index("ix_learn_steps_adapter", "learn_steps", ["adapter"])
    op.create_table(
        "examples",
        *_numbers("id", "at"),
        *_texts("adapter", "digest", "blob", "kind", "consent"),
        *_maybe_texts("source"),
        sa.CheckConstraint("consent <> ''", name=op.f("ck_examples_consented")),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.name"], name="fk_examples_adapter"),
        sa.PrimaryKeyConstraint("id", name="pk_examples"),
        sa.UniqueConstraint("adapter", "digest", name="uq_examples_adapter_digest"),
    )


def _make_proposals() -> None:
    op.create_table(
        "proposals",
        *_texts("id"),
        sa.Column("state", sa.String(24), nullable=False),
        *_texts("record"),
        *_numbers("created_at", "updated_at"),
        sa.PrimaryKeyConstraint("id", name="pk_proposals"),
    )
    op.create_index("ix_proposals_state", "proposals", ["state"])
    op.create_table(
        "evidence",
        *_texts("digest", "proposal", "gate", "envelope"),
        *_numbers("look", "at"),
        sa.ForeignKeyConstraint(["proposal"], ["proposals.id"], name="fk_evidence_proposal"),
        sa.PrimaryKeyConstraint("digest", name="pk_evidence"),
    )
    op.create_index("ix_evidence_proposal", "evidence", ["proposal"])
    op.create_table(
        "approvals",
        *_texts("proposal", "key_id", "signature"),
        *_numbers("at"),
        sa.ForeignKeyConstraint(["proposal"], ["proposals.id"], name="fk_approvals_proposal"),
        sa.PrimaryKeyConstraint("proposal", "key_id", name="pk_approvals"),
    )
    op.create_table(
        "revisions",
        *_numbers("number", "at"),
        *_texts("digest", "manifest", "signature"),
        sa.PrimaryKeyConstraint("number", name="pk_revisions"),
        sa.UniqueConstraint("digest", name="uq_revisions_digest"),
    )
    op.create_table(
        "traces",
        *_texts("request_id", "record"),
        *_numbers("at"),
        sa.PrimaryKeyConstraint("request_id", name="pk_traces"),
    )
