"""The migrations make exactly the tables of the code, on both databases, and can be undone."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

import migrations
import service.db.pipelines  # noqa: F401  (fills the metadata)
from service.core.canary import Gate
from service.db.columns import Table
from service.db.migrate import migrate
from service.db.rollout_tables import Rollout
from service.db.session import Database
from service.fleet import sums
from tests.real.postgres import PostgresServer, clone
from tests.service import tally


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


FILLED = ((sa.Boolean, False), (sa.Integer, 0), (sa.DateTime, datetime(2026, 6, 1, tzinfo=UTC)))


def put(connection: sa.Connection, name: str, /, **values: Any) -> None:
    """Insert a row into a table as it is now; what it must hold beside these values is empty."""
    table = sa.Table(name, sa.MetaData(), autoload_with=connection)
    for column in table.c:
        if column.nullable or column.server_default is not None or column.name in values:
            continue
        fill = next((value for kind, value in FILLED if isinstance(column.type, kind)), "")
        values[column.name] = [] if isinstance(column.type, sa.JSON) else fill
    connection.execute(sa.insert(table).values(values))


@contextmanager
def before(url: str, revision: str) -> Iterator[sa.Connection]:
    """Give a connection to a database as it was at a revision, with one model of one release."""
    migrate(url)
    database = Database(url)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
        put(connection, "model", name="asr")
        put(connection, "artifact", sha256="a")
        put(connection, "release", id=1, model="asr", name="r1", status="active", sha256="a")
        put(connection, "cohort", id=1, name="all", model="asr")
        yield connection
        connection.commit()
    database.close()
    migrate(url)


def rollout(connection: sa.Connection, id_: str, **more: Any) -> None:
    known = {"model": "asr", "release_id": 1, "cohort_id": 1, "on_halt": "keep"} | more
    put(connection, "rollout", id=id_, **{"state": "running", "gate": vars(Gate())} | known)


def test_pairs_that_were_counted_are_summed_by_scope_and_outcomes_by_stage(
    urls: tuple[str, str],
) -> None:
    """What 0011 made of rows that were there is what the code itself adds up from them."""
    clip = Gate().clip
    with before(urls[0], "0009") as connection:
        rollout(connection, "ro")
        for number in (1, 2):
            share = {"share_bp": 5000 * number, "state": "running"}
            put(connection, "stage", rollout_id="ro", number=number, **share)
        outcomes = ("confirmed", "refused", "failed", "canceled", "offered", "confirmed")
        for number, state in enumerate(outcomes):
            device, hardware = f"d{number}", f"h{number % 2}"
            put(connection, "device", id=device, serial=device, hardware=hardware, status="active")
            stage = 1 + number // 5
            of = {"rollout_id": "ro", "device_id": device, "stage": stage}
            moved = {"release_id": 1, "direction": "forward", "state": state}
            put(connection, "deployment", id=device, **of, **moved)
            errors = {"old_sub": 10, "new_del": 12 if number else 99, "ref_words": 100}
            pair = of | errors | {"counted": number != 2, "report_id": device}
            put(connection, "canary_report", **pair)
        back = {"direction": "back", "state": "failed", "release_id": 1, "stage": 1}
        put(connection, "deployment", id="back", rollout_id="ro", device_id="d0", **back)
    database = Database(urls[0])
    with database.reader() as session:
        assert sums.disagreements(session, "ro") == []
        found = {
            key[1]: (of.n, *errors) for key, (of, errors) in sums.by_scope(session, "ro").items()
        }
        (row,) = session.scalars(sa.select(Rollout))
        counts = [(stage.finished, stage.failures) for stage in row.stages]
        whole, _ = sums.by_scope(session, "ro")["canary", "all"]
    database.close()
    # Of the third device nothing counts; the first is clipped.
    assert found["all"] == (5, 50, 99 + 4 * 12, 500)
    assert found["stage:1"] == (4, 40, 99 + 3 * 12, 400) and found["stage:2"] == (1, 10, 12, 100)
    assert found["hw:h0"][0] == 2 and found["hw:h1"][0] == 3
    assert whole.sd == round(clip * 100_000) + 4 * 2_000 and whole.sb == 5 * 10_000
    assert counts == [(3, 2), (1, 0)], "what was called off, is open or led back is no outcome"


def test_what_became_of_deployments_is_counted_by_stage(urls: tuple[str, str]) -> None:
    ends = ("confirmed", "confirmed", "refused", "failed", "canceled", "downloading")
    with before(urls[0], "0022-1") as connection:
        rollout(connection, "ro")
        rollout(connection, "bare", state="draft")
        for of, number in (("ro", 1), ("ro", 2), ("bare", 1)):
            share = {"share_bp": 5000 * number, "in_flight": int((of, number) == ("ro", 1))}
            put(connection, "stage", rollout_id=of, number=number, state="running", **share)
        for number, state in enumerate((*ends, "confirmed", "rolled_back", "failed")):
            device = f"d{number}"
            put(connection, "device", id=device, serial=device, status="active")
            of = {"rollout_id": "ro", "device_id": device, "release_id": 1, "bytes_sent": 10}
            of |= {"stage": 1 + number // 6, "direction": "back" if number > 6 else "forward"}
            put(connection, "deployment", id=device, state=state, **of)
    database = Database(urls[0])
    with database.reader() as session:
        kept = tally.kept(session)
        assert kept == tally.counted(session)
        assert kept["ro", 1]["confirmed"] == 2 and kept["ro", 2]["rolled_back"] == 1
        assert tally.sent(session) == ({"ro": 90}, {"ro": 90})
    database.close()


def test_a_paused_rollout_is_paused_since_its_last_decision_or_else_its_making(
    urls: tuple[str, str],
) -> None:
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC)
    times = [noon + timedelta(hours=hour) for hour in range(3)]
    with before(urls[0], "0016-1") as connection:
        for name, state in (("seen", "paused"), ("bare", "paused"), ("live", "running")):
            rollout(connection, name, state=state, created_at=noon)
        for seq, at in enumerate(times):
            for name in ("seen", "live"):
                told = {"rollout_id": name, "seq": seq, "at": at, "decision": "pause"}
                put(connection, "rollout_decision", **told)
    database = Database(urls[0])
    with database.reader() as session:
        paused_at = {row.id: row.paused_at for row in session.scalars(sa.select(Rollout))}
    database.close()
    assert paused_at == {"seen": times[-1], "bare": noon, "live": None}
