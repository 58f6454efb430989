"""Bearer tokens; a state without any is served on this machine's loopback only, as before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Milliseconds since 1970 are beyond 32 bits; in SQLite only INTEGER counts a key up by itself.
_WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "tokens",
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("token_id", "hash", "name", "tenant", "roles")
        ),
        sa.Column("requests_per_minute", _WHOLE, nullable=False),
        sa.Column("created_at", _WHOLE, nullable=False),
        sa.Column("expires_at", _WHOLE, nullable=True),
        sa.Column("revoked_at", _WHOLE, nullable=True),
        sa.PrimaryKeyConstraint("token_id", name="pk_tokens"),
        sa.UniqueConstraint("hash", name="uq_tokens_hash"),
    )
