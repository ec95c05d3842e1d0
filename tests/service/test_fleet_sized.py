"""Nothing that comes often looks through a whole fleet: indexes lead to the few it is about."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from service.db import queries
from service.db.rollout_tables import Deployment, Rollout
from service.db.session import Database
from service.db.tables import Release
from tests.service.memory import before_each
from tests.service.world import BASE, BETTER, World, digest

WHOLE_FLEET = re.compile(
    r"SCAN (device|device_model|deployment|event|canary_report)\b"
    r"|INDEX ix_device_model_model_running_release \(model=\?\)"
)
WHOLE_ROLLOUT = re.compile(r"SEARCH deployment USING \S* ?INDEX \S+ \(rollout_id=\?\)")


@contextmanager
def plans(database: Database) -> Iterator[list[str]]:
    """Collect how SQLite goes about each SELECT, by its own account."""
    found: list[str] = []

    def explain(_connection: Any, cursor: Any, asked: str, values: Any, *_more: Any) -> None:
        if asked.startswith("SELECT"):
            cursor.execute(f"EXPLAIN QUERY PLAN {asked}", values)
            found.extend(f"{row[3]}   of   {asked}" for row in cursor.fetchall())

    with before_each(database, explain):
        yield found


@pytest.fixture
def rolling(world_sqlite: World) -> World:
    """A rollout whose first stage is under way, with orders and with wishes."""
    world = world_sqlite
    world.publish_all()
    phones = world.fleet(6, digest(BASE))
    world.start_rollout("r2", "all", stages=[{"share_bp": 9999}, {"share_bp": 10_000}])
    for phone in phones[:3]:
        phone.poll()
    world.tick()
    for phone in phones[3:]:
        phone.poll()
    return world


def test_a_tick_and_a_round_of_the_publisher_scan_no_table_of_the_fleet(rolling: World) -> None:
    database = rolling.app.state.database
    timeout = rolling.app.state.settings.deployment_timeout_s
    with plans(database) as found:
        rolling.tick(0.7 * timeout)
    assert len(found) > 20, "they were asked"
    assert [plan for plan in found if WHOLE_FLEET.search(plan)] == []


def test_what_a_last_stage_waits_for_is_found_by_what_it_runs(rolling: World) -> None:
    database = rolling.app.state.database
    with plans(database) as found, database.reader() as session:
        rollout = session.scalars(select(Rollout)).one()
        assert queries.remaining(session, rollout, rolling.now - timedelta(days=1), 1000) == 6
        everywhere = queries.rollout_devices(rollout).where(queries.not_out(rollout))
        others = select(Release.id).where(Release.id != rollout.release_id)
        assert len(session.scalars(queries.running_one_of(everywhere, others, 9)).all()) == 6
    ways = [plan.partition("   of ")[0] for plan in found if plan.startswith("SEARCH device_model")]
    assert len(ways) == 4
    assert all(way.endswith("(model=? AND running_release=?)") for way in ways)


def test_no_device_on_its_way_has_the_server_look_through_the_others(rolling: World) -> None:
    (phone,) = rolling.fleet(1, digest(BASE), prefix="late")
    with plans(rolling.app.state.database) as found:
        phone.install(phone.offered(), 10, 10)
        assert phone.runs == digest(BETTER)
        phone.poll()
    assert len(found) > 40, "it was asked"
    assert [plan for plan in found if WHOLE_FLEET.search(plan)] == []


@pytest.mark.parametrize(
    "asked", ["rollouts", "rollouts/{}", "rollouts/{}/explain", "health", "rollouts/simulate"]
)
def test_no_view_of_a_rollout_looks_through_its_deployments(rolling: World, asked: str) -> None:
    (rollout,) = rolling.ok("GET", "/v1/rollouts")["items"]
    path = f"/v1/{asked}".format(rollout["id"])
    body = {"model": "asr", "release": "r2", "cohort": "all", "stages": [{"share_bp": 10_000}]}
    with plans(rolling.app.state.database) as found:
        if asked == "rollouts/simulate":
            rolling.ok("POST", path, json=body)
        else:
            rolling.ok("GET", path)
    assert len(found) > 10, "it was asked"
    assert [plan for plan in found if WHOLE_ROLLOUT.search(plan)] == []


def test_a_question_that_scans_would_be_found(rolling: World) -> None:
    with plans(rolling.app.state.database) as found, rolling.app.state.database.reader() as session:
        queries.count_devices(session, "asr")
        session.query(Deployment).filter_by(rollout_id="").count()
    assert any(WHOLE_FLEET.search(plan) for plan in found)
    assert any(WHOLE_ROLLOUT.search(plan) for plan in found)
