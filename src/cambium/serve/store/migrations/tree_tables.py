"""The tables of a Merkle tree, as migrations make them: what stands here is history, like they are.

A change to the tables is another migration, and nothing here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

# Milliseconds since 1970 are beyond 32 bits; in SQLite only INTEGER counts a key up by itself.
WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def create_nodes(name: str) -> sa.Table:
    """Makes the table of the roots of perfect subtrees, as of 0004 and 0010."""
    return op.create_table(
        name,
        sa.Column("level", WHOLE, nullable=False),
        sa.Column("position", WHOLE, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "position", name=f"pk_{name}"),
    )


def create_checkpoints(name: str, *, over: str) -> None:
    """Makes the table of the latest signed checkpoint, as of 0004 and 0010."""
    op.create_table(
        name,
        sa.Column("size", WHOLE, nullable=False),
        *(sa.Column(part, sa.Text(), nullable=False) for part in ("root", "key_id", "signature")),
        sa.ForeignKeyConstraint(["size"], [over], name=f"fk_{name}_size"),
        sa.PrimaryKeyConstraint("size", name=f"pk_{name}"),
    )
