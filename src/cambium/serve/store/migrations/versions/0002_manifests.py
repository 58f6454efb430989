"""Each accepted call to learn keeps the manifest that derives its update again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column; calls from before it have an empty manifest."""
    with op.batch_alter_table("learn_steps") as table:
        table.add_column(sa.Column("manifest", sa.Text(), nullable=False, server_default="{}"))
