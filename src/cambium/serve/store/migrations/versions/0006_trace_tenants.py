"""Traces by tenant and time, so that pages that follow them need not read them all."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_OF_RECORD = {
    "sqlite": "json_extract(record, '$.tenant')",
    "postgresql": "CAST(record AS json) ->> 'tenant'",
}


def upgrade() -> None:
    """Adds the column, fills it from the records, and indexes it."""
    op.add_column(
        "traces", sa.Column("tenant", sa.Text(), nullable=False, server_default="default")
    )
    found = _OF_RECORD[op.get_bind().dialect.name]
    op.execute(f"UPDATE traces SET tenant = COALESCE({found}, 'default')")
    op.create_index("ix_traces_at", "traces", ["at"])
    op.create_index("ix_traces_tenant_at", "traces", ["tenant", "at"])
    op.create_index("ix_learn_steps_at", "learn_steps", ["at"])
