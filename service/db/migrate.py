"""Bring a database to the newest schema, by the scripts in `migrations/`.

In process: no command line is started and no configuration file is read, so the server, the
tests and a person at the shell all migrate the same way.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection

import migrations
from service.db.session import Database


def migrate(url: str, revision: str = "head") -> None:
    """Upgrade the database at a URL; a database that is up to date is left alone."""
    database = Database(url)
    try:
        with database.engine.connect() as connection:
            run(connection, revision)
            connection.commit()
    finally:
        database.close()


def run(connection: Connection, revision: str) -> None:
    """Upgrade, on a connection of the caller."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
