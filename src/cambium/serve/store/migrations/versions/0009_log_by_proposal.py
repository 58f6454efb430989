"""The log's entries by the proposal that they name, so that a page need not read the whole log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0007"
branch_labels = None
depends_on = None

_OF_BODY = {
    "sqlite": "json_extract(body, '$.proposal')",
    "postgresql": "CAST(body AS json) ->> 'proposal'",
}


def upgrade() -> None:
    """Adds the column, fills it from the bodies, and indexes it."""
    op.add_column("audit", sa.Column("proposal", sa.Text(), nullable=True))
    found = _OF_BODY[op.get_bind().dialect.name]
    op.execute(f"UPDATE audit SET proposal = {found}")
    op.create_index("ix_audit_proposal_seq", "audit", ["proposal", "seq"])
