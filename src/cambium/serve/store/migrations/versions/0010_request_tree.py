"""Traces in a Merkle tree of their own; those written before stay outside it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from cambium.serve.store.migrations.tree_tables import WHOLE, create_checkpoints, create_nodes

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "request_leaves",
        sa.Column("seq", WHOLE, nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_request_leaves"),
    )
    op.create_index("ix_request_leaves_request_id", "request_leaves", ["request_id"])
    create_nodes("request_nodes")
    create_checkpoints("request_checkpoints", over="request_leaves.seq")
