"""Under which conditions devices begin, and what a rollout may cost; exactly, by whoever asks."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from service.core.conditions import opens_at
from service.db.rollout_tables import OPEN, Budget, Deployment, Stage
from service.db.tables import Device
from service.fleet import offers
from tests.service.memory import Memory, asking, settle
from tests.service.phone import Phone
from tests.service.publishing import ALL
from tests.service.world import BASE, BETTER, MODEL, START, World, digest, refused

NIGHT = {"start_min": 60, "end_min": 5 * 60}
POLLERS = 24


def says(phone: Phone, **where: Any) -> None:
    here = {"utc_offset_s": 0} | where
    said = {"memory_bytes": 1 << 30, "room_bytes": 1 << 30, "surroundings": here}
    assert phone.request("POST", "/capacity", json=said).status_code == 202
    phone.etag = ""


def asked(world: World, serial: str = "s1", **where: Any) -> Phone:
    phone = world.enroll(serial, runs=digest(BASE))
    says(phone, **where)
    return phone


@pytest.mark.parametrize(
    ("conditions", "held", "fine"),
    [
        ({"networks": ["fast", "slow"]}, {"network": "metered"}, {"network": "slow"}),
        ({"networks": ["fast"]}, {}, {"network": "fast"}),
        ({"idle": True}, {"charging": True}, {"idle": True}),
        ({"idle": True, "charging": True}, {"idle": True}, {"idle": True, "charging": True}),
    ],
)
def test_a_device_that_says_that_a_condition_is_not_met_takes_no_place(
    world_sqlite: World, conditions: Any, held: Any, fine: Any
) -> None:
    world = world_sqlite
    world.ready(conditions=conditions, stages=[{"share_bp": 10_000, "in_flight_max": 1}])
    phone, other = asked(world, **held), asked(world, "s2", **fine)
    assert phone.offered() == "conditions"
    assert other.offered()["conditions"] == conditions, "the device looks at them again"
    says(phone, **fine)
    assert phone.offered() == "stage_full"


def test_an_agent_that_keeps_no_conditions_is_offered_nothing_that_has_some(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    world.ready(conditions={"idle": True})
    phone = world.enroll("s1", runs=digest(BASE))
    assert phone.offered() == "agent_too_old"
    found = world.ok("GET", f"/v1/devices/{phone.id}/explain")["stopped_by"]
    assert found["compared"] == "its agent does not say that it keeps any"


def test_a_window_is_in_the_devices_own_time_and_what_memory_answers_ends_with_it(
    world: World, memory: Memory
) -> None:
    world.ready(conditions={"window": NIGHT})
    west, east = asked(world, utc_offset_s=-11 * 3600), asked(world, "s2", utc_offset_s=9 * 3600)
    assert west.offered()["release"] == "r2", "it is 01:00 there, and the window opens"
    assert east.offered() == "outside_window", "it is 21:00 there"
    found = world.ok("GET", f"/v1/devices/{east.id}/explain")["stopped_by"]
    assert found["compared"] == "21:00 by the device's clock; it takes 01:00 to 05:00"
    assert found["until"] == (START + timedelta(hours=4)).isoformat().replace("+00:00", "Z")
    again = settle(east)
    assert memory.took(again), "until then nothing changes"
    world.now = START + timedelta(hours=4, seconds=-1)
    assert memory.took(again)
    world.now = START + timedelta(hours=4)
    assert asking(east).status_code == 200 and east.offered()["release"] == "r2"


def test_the_clock_of_a_device_may_change_and_a_cached_answer_with_it(
    world: World, memory: Memory
) -> None:
    world.ready(conditions={"window": NIGHT})
    phone = asked(world, utc_offset_s=9 * 3600)
    assert memory.took(settle(phone))
    says(phone, utc_offset_s=-11 * 3600)
    assert phone.offered()["release"] == "r2"


@pytest.mark.parametrize(
    ("start", "end", "hour", "wait_min"),
    [
        (60, 300, 1, 0),
        (60, 300, 5, 20 * 60),
        (60, 300, 0, 60),
        (1320, 120, 23, 0),
        (1320, 120, 1, 0),
        (1320, 120, 2, 20 * 60),
        (0, 1439, 23, 0),
    ],
)
def test_a_window_may_last_over_midnight(start: int, end: int, hour: int, wait_min: int) -> None:
    now = START.replace(hour=hour)
    found = opens_at({"start_min": start, "end_min": end}, 0, now)
    assert found == now + timedelta(minutes=wait_min)


@pytest.mark.parametrize(
    "wrong",
    [
        {"conditions": {"window": {"start_min": 5, "end_min": 5}}},
        {"conditions": {"window": {"start_min": 5, "end_min": 1440}}},
        {"conditions": {"window": {"start_min": 5}}},
        {"conditions": {"networks": ["pigeon"]}},
        {"conditions": {"moon": "full"}},
        {"per_minute_max": 0},
        {"bytes_max": -1},
    ],
)
def test_conditions_that_make_no_sense_are_refused(world_sqlite: World, wrong: Any) -> None:
    world_sqlite.publish_all()
    made = {"model": MODEL, "release": "r2", "cohort": "all", "stages": ALL} | wrong
    refused(world_sqlite.call("POST", "/v1/rollouts", json=made), 422)


def committed(world: World) -> int:
    with world.app.state.database.reader() as session:
        return session.scalars(select(Budget.bytes_committed)).one()


def test_bytes_are_reserved_at_the_worst_and_given_back_when_less_was_sent(world: World) -> None:
    worst = len(BETTER)  # so small that no patch is worth it
    world.ready(bytes_max=2 * worst - 1)
    first, second = asked(world), asked(world, "s2")
    plan = first.offered()
    assert [[step["bytes"] for step in way] for way in plan["pipelines"]] == [[worst]]
    assert second.offered() == "budget" and committed(world) == worst
    with world.app.state.database.reader() as session:
        assert session.scalars(select(Stage.in_flight)).one() == 1, "no place without the bytes"
    first.say("applied", plan["deployment"], bytes=10)
    first.runs, first.etag = plan["sha256"], ""
    first.poll()
    assert committed(world) == 10
    plan = second.offered()
    second.say("failed", plan["deployment"], bytes=1 << 50)
    assert committed(world) == 10 + worst, "whoever boasts spends no more than it could"


def test_so_many_begin_in_a_minute_and_the_next_ones_in_the_next(world: World) -> None:
    world.ready(per_minute_max=2)
    world.now = START + timedelta(minutes=1)
    phones = [asked(world, f"s{n}") for n in range(3)]
    assert [p.poll()["hold"] for p in phones] == ["order_pending", "order_pending", "per_minute"]
    world.now += timedelta(seconds=59)
    phones[2].etag = ""
    assert phones[2].poll()["hold"] == "per_minute"
    world.now += timedelta(seconds=1)
    phones[2].etag = ""
    assert phones[2].poll()["hold"] == "order_pending"


@pytest.mark.attack("A10")
@pytest.mark.parametrize("cap", ["per_minute_max", "bytes_max"])
def test_many_pollers_at_once_never_get_more_than_the_budget(world: World, cap: str) -> None:
    most = 5 if cap == "per_minute_max" else 5 * len(BETTER) + 1
    world.ready(**{cap: most})
    database = world.app.state.database
    devices = [phone.id for phone in world.fleet(POLLERS, "")]
    start = threading.Barrier(POLLERS)

    def poll(device_id: str) -> None:
        start.wait()
        with database.writer() as session:
            device = session.get_one(Device, device_id, with_for_update={"key_share": True})
            offers.check_in(session, device, digest(BASE), timedelta(days=1), world.now)

    with ThreadPoolExecutor(POLLERS) as threads:
        for _ in range(3):
            list(threads.map(poll, devices))
    with database.reader() as session:
        is_open = select(func.count()).where(Deployment.state.in_(OPEN))
        assert session.execute(is_open).scalar_one() == 5
        assert session.scalars(select(Stage.in_flight)).one() == 5


def test_an_approval_is_of_the_conditions_and_the_budget_too(world_sqlite: World) -> None:
    world = world_sqlite
    rollout = world.ready(conditions={"charging": True}, bytes_max=7)
    shown = world.ok("GET", f"/v1/rollouts/{rollout}")
    spent = {"per_minute_max": None, "bytes_max": 7, "bytes_committed": 0}
    assert (shown["conditions"], shown["budget"]) == ({"charging": True}, spent)
    plan = world.ok("GET", f"/v1/rollouts/{rollout}/plan")["plan"]
    assert plan["conditions"] == {"charging": True}
    assert plan["budget"] == {"per_minute_max": None, "bytes_max": 7}
