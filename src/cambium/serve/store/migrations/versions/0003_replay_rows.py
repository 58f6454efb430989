"""What lessons go through again, of what was given with consent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Milliseconds since 1970 are beyond 32 bits; in SQLite only INTEGER counts a key up by itself.
_WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes the table; examples from before it are not gone through by themselves."""
    texts = ("pointer", "source", "consent")
    op.create_table(
        "replay_rows",
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in texts),
        sa.Column("num_tokens", _WHOLE, nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.Column("novelty", sa.Double(), nullable=False),
        sa.Column("born", _WHOLE, nullable=False),
        sa.Column("replays", _WHOLE, nullable=False),
        sa.Column("in_reservoir", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("adapter", "key", name="pk_replay_rows"),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.name"], name="fk_replay_rows_adapter"),
    )
