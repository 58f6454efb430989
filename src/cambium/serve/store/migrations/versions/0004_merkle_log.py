"""The audit log as a Merkle tree: entries hash as leaves, and no longer the one before.

What was signed over the chain cannot be signed again here, so the first start afterwards signs a
first checkpoint; a copy of the old log keeps what the old signature is worth.
"""

from __future__ import annotations

import hashlib
import json

import sqlalchemy as sa
from alembic import op

from cambium.serve.store.migrations.tree_tables import create_checkpoints, create_nodes

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the new tables and hashes every entry again."""
    op.drop_table("heads")
    with op.batch_alter_table("audit") as table:
        table.drop_column("prev")
    nodes = create_nodes("audit_nodes")
    create_checkpoints("checkpoints", over="audit.seq")
    _hash_again(nodes)


def _hash_again(nodes: sa.Table) -> None:
    connection = op.get_bind()
    entries = connection.execute(sa.text("SELECT seq, at, kind, body FROM audit ORDER BY seq"))
    peaks: list[tuple[int, int, bytes]] = []
    for seq, at, kind, body in entries.all():
        # The body is stored as canonical JSON already, and the names below are in order.
        said = json.dumps(kind, ensure_ascii=False)
        text = f'{{"at":{at},"body":{body},"kind":{said},"seq":{seq},"type":"cambium/audit/v2"}}'
        found = hashlib.sha256(b"\x00" + text.encode()).digest()
        change = sa.text("UPDATE audit SET hash = :hash WHERE seq = :seq")
        connection.execute(change, {"hash": f"sha256:{found.hex()}", "seq": seq})
        level, position = 0, seq - 1
        _add(nodes, level, position, found)
        while peaks and peaks[-1][0] == level:
            found = hashlib.sha256(b"\x01" + peaks.pop()[2] + found).digest()
            level, position = level + 1, position // 2
            _add(nodes, level, position, found)
        peaks.append((level, position, found))


def _add(nodes: sa.Table, level: int, position: int, found: bytes) -> None:
    row = {"level": level, "position": position, "hash": found}
    op.get_bind().execute(nodes.insert().values(**row))
