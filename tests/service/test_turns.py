"""Which rollout goes first, and who belongs to one: by priority, by the day of enrollment, now."""

from typing import Any

import pytest

from tests.service.phone import Phone
from tests.service.publishing import ALL
from tests.service.world import BASE, BETTER, MODEL, World, digest, refused


def two_releases(world: World) -> World:
    world.publish_all()
    world.publish("r3", BETTER + b"!", after="r2")
    world.ok("POST", "/v1/cohorts", json={"name": "also", "model": MODEL, "filter": {}})
    return world


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(9, 1, "r2"), (1, 9, "r3"), (0, 0, "r3")]
)
def test_the_rollout_with_the_highest_priority_goes_first_then_the_newest(
    world: World, first: int, second: int, expected: str
) -> None:
    two_releases(world)
    world.start_rollout("r2", "all", stages=ALL, priority=first)
    world.tick()
    world.start_rollout("r3", "also", stages=ALL, priority=second, full_downloads=True)
    assert world.enroll("s1", runs=digest(BASE)).offered()["release"] == expected


def test_what_is_on_its_way_goes_on_whatever_comes(world_sqlite: World) -> None:
    world = two_releases(world_sqlite)
    world.start_rollout("r2", "all", stages=ALL)
    phone = world.enroll("s1", runs=digest(BASE))
    assert phone.offered()["release"] == "r2"
    world.start_rollout("r3", "also", stages=ALL, priority=9, full_downloads=True)
    phone.etag = ""
    assert phone.offered()["release"] == "r2"


def test_devices_that_enroll_after_the_start_can_stay_out_and_hold_nothing_up(
    world: World,
) -> None:
    rollout = world.ready(include_new=False, gate={"pairs_promote_least": 1})
    phone = world.enroll("s0", runs=digest(BASE))
    assert phone.offered()["release"] == "r2", "it enrolled in the moment of the start"
    world.now = world.now.replace(hour=20)
    late = world.enroll("s1", runs=digest(BASE))
    assert late.offered() == "not_in_cohort"
    found = world.ok("GET", f"/v1/devices/{late.id}/explain")["stopped_by"]
    assert found["rule"] == "enrolled" and "20:00" in found["compared"]
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["include_new"] is False


def tagged(world: World) -> Phone:
    world.publish_all()
    chosen = {"name": "beta", "model": MODEL, "filter": {"tags": {"ring": "beta"}}}
    world.ok("POST", "/v1/cohorts", json=chosen)
    world.start_rollout("r2", "beta", stages=[{"share_bp": 10_000, "in_flight_max": 1}])
    phone = world.enroll("s1", runs=digest(BASE))
    tag(world, phone, ring="beta")
    assert phone.poll()["hold"] == "order_pending"
    return phone


def tag(world: World, phone: Phone, **tags: Any) -> None:
    world.ok("PATCH", f"/v1/devices/{phone.id}", json={"tags": tags})
    phone.etag = ""


def test_who_leaves_a_cohort_before_the_order_is_called_off_and_may_come_back(
    world: World,
) -> None:
    phone = tagged(world)
    tag(world, phone)
    assert phone.offered() == "not_in_cohort"
    other = world.enroll("s2", runs=digest(BASE))
    tag(world, other, ring="beta")
    assert other.offered()["release"] == "r2", "the place is free again"
    shown = world.ok("GET", f"/v1/devices/{phone.id}")["deployments"]
    assert [(d["state"], d["reason"]) for d in shown] == [("canceled", "left the cohort")]
    other.say("failed", world.ok("GET", f"/v1/devices/{other.id}")["deployments"][0]["id"])
    tag(world, phone, ring="beta")
    assert phone.offered()["release"] == "r2"


def test_who_leaves_a_cohort_after_the_order_goes_on(world: World) -> None:
    phone = tagged(world)
    phone.etag = ""
    assert phone.offered()["release"] == "r2"
    tag(world, phone)
    assert phone.offered()["release"] == "r2"


@pytest.mark.parametrize("wrong", [{"priority": 10}, {"priority": -1}, {"include_new": "maybe"}])
def test_a_priority_that_makes_no_sense_is_refused(world_sqlite: World, wrong: Any) -> None:
    world_sqlite.publish_all()
    made = {"model": MODEL, "release": "r2", "cohort": "all", "stages": ALL} | wrong
    refused(world_sqlite.call("POST", "/v1/rollouts", json=made), 422)
