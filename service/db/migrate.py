"""Bring a database to the newest schema, by the scripts in `migrations/`.

In process: no command line is started and no configuration file is read, so the server, the
tests and a person at the shell all migrate the same way.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config

import migrations
from service.db.session import Database


def migrate(url: str) -> None:
    """Upgrade the database at a URL; a database that is up to date is left alone."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    database = Database(url)
    try:
        with database.engine.execution_options(fleetdiff_writes=True).connect() as connection:
            if database.is_sqlite:  # a table may be made anew under the rows that refer to it
                connection.connection.execute("PRAGMA foreign_keys=OFF")  # no transaction began yet
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    finally:
        database.close()
