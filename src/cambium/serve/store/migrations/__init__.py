"""The Alembic environment; `cambium.serve.store.database.migrate` runs it."""
