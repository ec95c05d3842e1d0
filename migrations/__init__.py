"""The history of the database schema, one Alembic revision a change."""
