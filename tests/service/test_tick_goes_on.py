"""What a tick cannot do keeps nothing else up."""

from datetime import timedelta
from unittest.mock import Mock

import pytest
from sqlalchemy import update

from service.app import _beat
from service.db.rollout_tables import Rollout, Stage
from tests.service.publishing import ALL, write
from tests.service.test_pauses import at, held, spend
from tests.service.world import BASE, BETTER, MODEL, World, digest


def broken_beside(world: World) -> str:
    """A rollout that no tick understands, newer than one that is out of bytes; returns that."""
    world.publish_all()
    world.ok("POST", "/v1/cohorts", json={"name": "else", "model": MODEL, "devices": []})
    spent = world.start_rollout("r2", "all", stages=ALL, bytes_max=1)
    world.now += timedelta(seconds=1)
    broken = world.start_rollout("r2", "else")
    write(world, update(Rollout).where(Rollout.id == broken).values(gate={"no": "gate"}))
    return spent


def test_a_rollout_that_no_tick_understands_hides_no_other(world: World) -> None:
    spent = broken_beside(world)
    with pytest.raises(ExceptionGroup, match="not everything"):
        world.tick()
    assert held(world, spent) == ("paused", ["budget"])


def test_a_tick_that_fails_keeps_no_order_up(world_sqlite: World) -> None:
    world = world_sqlite
    spent, phone = broken_beside(world), world.enroll("s1", runs=digest(BASE))
    world.ok("PATCH", at(spent), json={"bytes_max": None})
    assert phone.poll()["hold"] == "order_pending"
    world.app.state.wake = Mock()
    _beat(world.app, world.publisher, Mock(is_set=Mock(side_effect=[False, True])))
    assert phone.poll()["order"]


def test_a_device_that_cannot_be_reaped_hides_no_rollout(world: World) -> None:
    rollout, phones = spend(world)
    world.ok("PATCH", at(rollout), json={"bytes_max": 2 * len(BETTER)})
    assert phones[1].offered()["release"] == "r2"
    write(world, update(Stage).values(in_flight=0))  # a place is gone that it will give back
    world.now += timedelta(days=2)
    with pytest.raises(ExceptionGroup, match="not everything"):
        world.tick()
    assert held(world, rollout) == ("paused", ["budget"])
    write(world, update(Stage).values(in_flight=1))
