"""Two at once on PostgreSQL, where nobody waits for the one writer: no change is lost or undone."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from service.core.device_bodies import DeviceEvent
from service.db.rollout_tables import OPEN, Deployment, Stage
from service.db.tables import Device, DeviceModel
from service.engine import rollouts
from service.engine.tick import tick
from service.fleet import offers, registry, reports
from service.publishing import catalog
from service.settings import Settings
from tests.service.phone import Phone
from tests.service.programs import eventually
from tests.service.publishing import ALL
from tests.service.world import BASE, BETTER, MODEL, World, digest, patient, refused
from trust import sign

pytestmark = pytest.mark.real
DAY = timedelta(days=1)
WAITING = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
Begin = Callable[[Callable[[], Any]], Future[Any]]


@pytest.fixture
def settings(postgres_url: str, tmp_path: Path) -> Settings:
    return patient(database=postgres_url, artifacts=str(tmp_path / "artifacts"))


@contextmanager
def transaction(world: World) -> Iterator[tuple[Session, Begin]]:
    """Enter a transaction, and give how to begin something else before it is committed.

    That goes as far as it can: to its end, or until it waits for what this one holds.
    """
    database = world.app.state.database

    def waits() -> bool:
        with database.reader() as looking:
            return bool(looking.scalar(WAITING))

    with ThreadPoolExecutor(1) as thread, database.writer() as session:

        def begin(other: Callable[[], Any]) -> Future[Any]:
            begun = thread.submit(other)
            eventually(lambda: begun.done() or waits(), "the other is done, or waits for us")
            return begun

        yield session, begin


def checks_in(session: Session, phone: Phone) -> None:
    device = session.get_one(Device, phone.id)
    offers.check_in(session, device, phone.runs, DAY, phone.world.now)


def says(session: Session, phone: Phone, kind: str, deployment: str) -> None:
    phone.seq += 1
    said = {"seq": phone.seq, "kind": kind, "deployment": deployment}
    said["at"] = phone.world.now.isoformat()
    device = session.get_one(Device, phone.id, with_for_update={"key_share": True})
    reports.record_events(session, device, [DeviceEvent(**said)], phone.world.now)


def under_way(world: World) -> tuple[int, int]:
    """How many deployments are open, and how many places are taken."""
    with world.app.state.database.reader() as session:
        states = session.scalars(select(Deployment.state)).all()
        return sum(state in OPEN for state in states), sum(session.scalars(select(Stage.in_flight)))


def test_what_a_device_says_on_its_way_opens_nothing_again_that_a_halt_closed(world: World) -> None:
    rollout, phone = world.ready(on_halt="keep"), world.enroll("s1", runs=digest(BASE))
    plan = phone.offered()
    with transaction(world) as (session, begin):
        says(session, phone, "downloading", plan["deployment"])
        halted = begin(partial(world.call, "POST", f"/v1/rollouts/{rollout}/halt"))
    assert halted.result().status_code == 200 and under_way(world) == (0, 0)
    phone.runs, phone.etag = plan["sha256"], ""
    assert phone.poll()["hold"] == "no_rollout", "its place is not given back a second time"


def test_whoever_is_given_a_place_while_a_rollout_is_halted_is_called_off(world: World) -> None:
    rollout, phone = world.ready(), world.enroll("s1", runs=digest(BASE))
    with transaction(world) as (session, begin):
        checks_in(session, phone)
        halted = begin(partial(world.call, "POST", f"/v1/rollouts/{rollout}/halt"))
    assert halted.result().status_code == 200 and under_way(world) == (0, 0)


def test_whoever_asks_while_a_rollout_is_halted_is_given_no_place(world: World) -> None:
    rollout, phone = world.ready(), world.enroll("s1", runs=digest(BASE))
    with transaction(world) as (session, begin):
        rollouts.halt(session, rollout, "", "somebody", world.now)
        asked = begin(phone.poll)
    assert asked.result()["hold"] == "no_rollout" and under_way(world) == (0, 0)


def test_of_two_rollouts_of_a_cohort_that_start_at_once_one_starts(world: World) -> None:
    world.publish_all()
    body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": ALL}
    first, second = (world.ok("POST", "/v1/rollouts", json=body)["id"] for _ in range(2))
    with transaction(world) as (session, begin):
        rollouts.start(session, first, "somebody", world.now)
        other = begin(partial(world.call, "POST", f"/v1/rollouts/{second}/start"))
    assert first in refused(other.result(), 409, "wrong-state")["detail"]


@pytest.mark.parametrize("status", ["quarantined", "revoked"])
def test_whoever_is_shut_out_while_it_asks_is_given_nothing(world: World, status: str) -> None:
    world.ready()
    phone = world.enroll("s1", runs=digest(BASE))
    with transaction(world) as (session, begin):
        checks_in(session, phone)
        path = f"/v1/devices/{phone.id}"
        shut = begin(partial(world.call, "PATCH", path, json={"status": status}))
    assert shut.result().status_code == 200 and under_way(world) == (0, 0)
    with world.app.state.database.reader() as session:
        assert session.get_one(DeviceModel, phone.id).deployment_id is None, "no order is signed"


def test_whoever_is_revoked_while_somebody_readmits_it_stays_out(world: World) -> None:
    phone = world.enroll("s1", runs=digest(BASE))
    path = f"/v1/devices/{phone.id}"
    world.ok("PATCH", path, json={"status": "quarantined"})
    with transaction(world) as (session, begin):
        row = registry.device_named(session, phone.id)
        registry.set_device_status(session, row, "revoked", world.now)
        session.flush()
        other = begin(partial(world.call, "PATCH", path, json={"status": "active"}))
    refused(other.result(), 409, "wrong-state")
    assert world.ok("GET", path)["status"] == "revoked"


def test_the_reaper_waits_for_nobody_and_takes_no_device_that_speaks_just_then(
    world: World,
) -> None:
    world.ready()
    phones = world.fleet(3, digest(BASE))
    plans = [phone.offered()["deployment"] for phone in phones]
    late = world.now + 2 * DAY
    with transaction(world) as (session, begin):
        for phone, plan in zip(phones[1:], plans[1:], strict=True):
            says(session, phone, "downloading", plan)
        ticked = begin(partial(tick, world.app.state.database, late, DAY))
        says(session, phones[2], "failed", plans[2])
    ticked.result()
    assert under_way(world) == (1, 1), "one was silent, one failed, and one goes on"


def unneeded(world: World) -> None:
    """Upload what has been a candidate for longer than the time of grace."""
    world.publish("r1", BASE)
    world.upload(BETTER)
    world.ok("POST", "/v1/artifacts/collect")
    world.now += 8 * DAY


def test_what_is_published_while_somebody_collects_stays(world: World) -> None:
    unneeded(world)
    body = world.next_family(sign.target_of(MODEL, world.release("r2", BETTER)))
    with transaction(world) as (session, begin):
        blobs, role = world.app.state.blobs, f"family-{MODEL}"
        catalog.accept_metadata(session, blobs, role, body, world.now)
        collected = begin(partial(world.ok, "POST", "/v1/artifacts/collect"))
    assert collected.result()["deleting"]["artifacts"] == 0


def test_what_is_uploaded_again_while_somebody_collects_stays(world: World) -> None:
    unneeded(world)
    with transaction(world) as (session, begin):
        assert not catalog.record_artifact(session, digest(BETTER), len(BETTER), world.now)
        collected = begin(partial(world.ok, "POST", "/v1/artifacts/collect"))
    assert collected.result()["deleting"]["artifacts"] == 0
