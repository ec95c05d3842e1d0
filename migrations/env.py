"""Alembic's entry: the same scripts on SQLite and PostgreSQL, on a connection of the caller."""

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection

import service.db.pipelines
import service.db.rollout_tables  # noqa: F401  (fills the metadata)
from service.db.columns import Table


def run(connection: Connection) -> None:
    """Run the migrations on one connection."""
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        render_as_batch=True,
        user_module_prefix="sa.",
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    # `alembic -x url=... revision --autogenerate`, for developers
    with create_engine(context.get_x_argument(as_dictionary=True)["url"]).connect() as opened:
        run(opened)
        opened.commit()
