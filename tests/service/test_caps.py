"""A cap is a cap: with many pollers at once, and with workers that are killed in between."""

import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
from sqlalchemy import select

from benchmarks.caps import CAP, storm
from service.db.rollout_tables import Stage
from tests.service.world import BASE, World, digest

WORKER = """
import os, signal, sys
from datetime import datetime, timedelta
from service.fleet import offers
from service.db.session import Database
from service.db.tables import Device
url, device_id, running, now, die = sys.argv[1:]
with Database(url).writer() as session:
    device = session.get_one(Device, device_id)
    offers.check_in(session, device, running, timedelta(hours=1), datetime.fromisoformat(now))
    session.flush()
    if die == "before the commit":
        os.kill(os.getpid(), signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""


def in_flight(world: World) -> int:
    with world.app.state.database.reader() as session:
        return session.scalars(select(Stage.in_flight)).one()


@pytest.mark.attack("A10")
def test_64_pollers_at_once_never_get_more_places_than_there_are(world: World) -> None:
    assert storm(world, 4, workers=2) == [CAP] * 4, "no more, and here no fewer either"


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_the_place_of_a_worker_that_is_killed_comes_back(world: World, moment: str) -> None:
    world.publish_all()
    world.start_rollout("r2", "all", stages=[{"share_bp": 10_000, "in_flight_max": 1}])
    first, second = (world.enroll(f"serial-{n}", runs=digest(BASE)) for n in (1, 2))
    words = [world.app.state.settings.database, first.id, digest(BASE), world.now.isoformat()]
    killed = subprocess.run([sys.executable, "-c", WORKER, *words, moment], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    if moment == "after the commit":  # it never told the device
        assert in_flight(world) == 1 and second.poll()["hold"] == "stage_full"
        world.tick(timedelta(hours=1).total_seconds() - 1)
        assert in_flight(world) == 1
        world.tick(2)
    assert in_flight(world) == 0
    second.etag = ""
    assert second.offered()["release"] == "r2"
