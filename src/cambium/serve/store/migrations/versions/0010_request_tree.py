"""Traces in a Merkle tree of their own; those written before stay outside it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# Milliseconds since 1970 are beyond 32 bits; in SQLite only INTEGER counts a key up by itself.
_WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "request_leaves",
        sa.Column("seq", _WHOLE, nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_request_leaves"),
    )
    op.create_index("ix_request_leaves_request_id", "request_leaves", ["request_id"])
    op.create_table(
        "request_nodes",
        sa.Column("level", _WHOLE, nullable=False),
        sa.Column("position", _WHOLE, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "position", name="pk_request_nodes"),
    )
    op.create_table(
        "request_checkpoints",
        sa.Column("size", _WHOLE, nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("root", "key_id", "signature")),
        sa.ForeignKeyConstraint(
            ["size"], ["request_leaves.seq"], name="fk_request_checkpoints_size"
        ),
        sa.PrimaryKeyConstraint("size", name="pk_request_checkpoints"),
    )
