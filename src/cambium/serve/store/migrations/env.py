"""Runs the migrations in the caller's transaction; Alembic executes this file."""

from __future__ import annotations

from alembic import context

from cambium.serve.store.schema import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    # SQLite can; Alembic assumes it cannot, because Python's driver used to commit in between.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
