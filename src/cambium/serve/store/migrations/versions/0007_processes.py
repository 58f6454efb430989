"""Several processes on one state: who lives, who works on what, and who teaches which adapter."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Adds the tables and the adapters' owner; nobody owns what is there."""
    op.create_table(
        "processes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("seen_at", _NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_processes"),
    )
    op.create_table(
        "claims",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["process"], ["processes.id"], name="fk_claims_process", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("name", name="pk_claims"),
    )
    op.add_column("adapters", sa.Column("owner", sa.Text()))
