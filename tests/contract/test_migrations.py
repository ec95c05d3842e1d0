"""The migrations make exactly the tables of the code, on both databases, and can be undone."""

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

import migrations
import service.db.pipelines  # noqa: F401  (fills the metadata)
from service.db.columns import Table
from service.db.migrate import migrate
from service.db.rollout_tables import Rollout
from service.db.session import Database
from tests.real.postgres import PostgresServer, clone


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.real)])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'migrated.db'}", f"sqlite:///{tmp_path / 'created.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    with clone(server) as migrated, clone(server) as created:
        yield migrated, created


def plain(value: Any) -> str:
    """As text, with the text of SQL expressions instead of their addresses."""
    if isinstance(value, dict):
        return str(sorted((key, plain(part)) for key, part in value.items()))
    return str(value)


def snapshot(url: str) -> dict[str, Any]:
    """Everything a database says about its tables, checks and partial indexes too."""
    database = Database(url)
    inspector = sa.inspect(database.engine)
    found: dict[str, Any] = {}
    for table in sorted(inspector.get_table_names()):
        if table == "alembic_version":
            continue
        parts = {
            "columns": inspector.get_columns(table),
            "pk": [inspector.get_pk_constraint(table)],
            "fk": inspector.get_foreign_keys(table),
            "uq": inspector.get_unique_constraints(table),
            "ck": inspector.get_check_constraints(table),
            "ix": inspector.get_indexes(table),
        }
        found[table] = {name: sorted(map(plain, rows)) for name, rows in parts.items()}
    database.close()
    return found


def test_migrations_and_tables_are_the_same(urls: tuple[str, str]) -> None:
    migrated, created = urls
    migrate(migrated)
    database = Database(created)
    Table.metadata.create_all(database.engine)
    database.close()
    assert snapshot(migrated) == snapshot(created)


NOON = "'2026-06-01 12:00:00'"
BEFORE_APPROVALS = f"""
INSERT INTO model VALUES ('asr', 'salt', {NOON});
INSERT INTO artifact VALUES ('a', 1, {NOON});
INSERT INTO release VALUES (1, 'asr', 'r1', 1, 'active', 'a', 1, '[]', '[]', {NOON});
INSERT INTO cohort VALUES (1, 'all', 'asr', '{{}}', {NOON});
INSERT INTO rollout (id, model, release_id, cohort_id, state, reasons, stage, generation, salt,
 gate, gate_sha256, on_halt, halt_reason, waiting_for, created_at)
 VALUES ('ro', 'asr', 1, 1, 'draft', '[]', 1, 0, '', '{{}}', '', 'keep', '', '', {NOON});
INSERT INTO stage (rollout_id, number, share_bp, soak_s, in_flight, state)
 VALUES ('ro', 1, 10000, 0, 0, 'waiting')"""


def test_a_rollout_that_is_there_keeps_its_stages_when_its_table_is_made_anew(
    urls: tuple[str, str],
) -> None:
    url = urls[0]
    migrate(url)
    database = Database(url)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0006-1")
        for statement in BEFORE_APPROVALS.split(";"):
            connection.execute(sa.text(statement))
        connection.commit()
    migrate(url)
    with database.writer() as session:
        (rollout,) = session.scalars(sa.select(Rollout))
        assert [stage.share_bp for stage in rollout.stages] == [10_000]
        rollout.state = "awaiting_approval"
    with pytest.raises(sa.exc.IntegrityError), database.writer() as session:
        session.execute(sa.delete(Rollout))
    database.close()


def test_migrating_twice_changes_nothing_and_down_leaves_nothing(urls: tuple[str, str]) -> None:
    url = urls[0]
    migrate(url)
    before = snapshot(url)
    migrate(url)
    assert snapshot(url) == before
    database = Database(url)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        connection.commit()
    database.close()
    assert snapshot(url) == {}
