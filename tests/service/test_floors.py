"""Whoever starts a rollout learns at once who is below a floor, why, and what brings them on."""

import shlex
from typing import Any

import pytest

from release_manager.__main__ import build_parser
from release_manager.arguments import cohort_filter
from service.db.rollout_tables import Rollout
from tests.service.line import file, ops, release
from tests.service.publishing import ALL
from tests.service.test_pauses import at
from tests.service.world import MODEL, World, digest


@pytest.fixture
def floored(line: World) -> World:
    """A floor at r2 of r1 > r2 > r3; two devices on r1, three on r2."""
    line.ok("PUT", f"/v1/models/{MODEL}/floors/r2", json={"reason": "it moves the cache"})
    for devices, number in ((2, 1), (3, 2)):
        line.fleet(devices, digest(file(number)), prefix=f"on{number}")
    return line


def cohort(world: World, name: str, **chosen: Any) -> str:
    return str(
        world.ok("POST", "/v1/cohorts", json={"name": name, "model": MODEL} | chosen)["name"]
    )


def draft(world: World, to: str = "all") -> str:
    body = {"model": MODEL, "release": "r3", "cohort": to, "stages": ALL}
    return str(world.ok("POST", "/v1/rollouts", json=body)["id"])


def test_a_draft_and_a_rehearsal_say_who_will_be_held_and_what_comes_first(floored: World) -> None:
    rollout = draft(floored)
    (held,) = floored.ok("GET", at(rollout))["below_floor"]
    told = {"floor": "r2", "devices": 2, "running": ["r1"], "reason": "it moves the cache"}
    assert held == told | {"help": f"first: fleetdiff rollout start {MODEL} r2 --cohort all"}
    for path in (at(rollout, "/explain"), f"/v1/patches/missing?rollout={rollout}"):
        assert floored.ok("GET", path)["below_floor"] == [held]
    asked = {"model": MODEL, "release": "r3", "cohort": "all", "stages": ALL}
    found = floored.ok("POST", "/v1/rollouts/simulate", json=asked)
    assert found["below_floor"] == [held]
    assert found["devices"] == 3, "the others are not reached"


def test_the_commands_that_a_started_rollout_names_bring_the_devices_on(floored: World) -> None:
    floored.fleet(1, digest(file(1)), prefix="elsewhere", hardware=["h 2"])
    phone = floored.enroll("mine", runs=digest(file(1)), hardware="h 1")
    to = cohort(floored, "some", filter={"hardware": ["h 1", "h3"]})
    assert phone.poll()["hold"] == "no_rollout"
    started = floored.ok("POST", at(draft(floored, to), "/start"))
    assert phone.offered() == "floor"
    (held,) = started["below_floor"]
    assert (held["devices"], held["running"]) == (1, ["r1"])
    make, start = (shlex.split(line)[1:] for line in held["help"].split(" && "))
    args = build_parser().parse_args(make)
    cohort(floored, args.name, filter=cohort_filter(args.filter))
    assert floored.ok("GET", f"/v1/cohorts/{args.name}")["sample"] == [phone.id]
    args = build_parser().parse_args(start)
    floored.start_rollout(args.release, args.cohort, stages=ALL)
    plan = phone.offered()
    assert plan["release"] == "r2" and ops(plan)[0] == ["patch"]
    phone.runs, phone.etag = plan["sha256"], ""
    assert phone.offered()["release"] == "r3"
    assert floored.ok("GET", at(started["id"]))["below_floor"] == []


@pytest.mark.parametrize("kind", ["listed", "unknown bytes", "empty tag"])
def test_where_no_filter_says_who_they_are_nobody_else_is_named(floored: World, kind: str) -> None:
    phone = floored.enroll("mine", runs="" if kind == "unknown bytes" else digest(file(1)))
    phone.poll()
    chosen: dict[str, Any] = {
        "listed": {"devices": [phone.id]},
        "unknown bytes": {"filter": {"hardware": ["h1"]}},
        "empty tag": {"filter": {"tags": {"ring": ""}}},
    }[kind]
    if kind == "empty tag":
        floored.ok("PATCH", f"/v1/devices/{phone.id}", json={"tags": {"ring": ""}})
    started = floored.ok("POST", at(draft(floored, cohort(floored, "few", **chosen)), "/start"))
    (held,) = started["below_floor"]
    assert "with every ID of fleetdiff device list --cohort few that runs" in held["help"]
    assert "--filter" not in held["help"] and "--device ID" in held["help"]
    assert ("unknown bytes" in held["help"]) is ("unknown" in held["running"])


def test_of_two_floors_the_lower_one_comes_first(floored: World) -> None:
    release(floored, 4, 3)
    floored.ok("PUT", f"/v1/models/{MODEL}/floors/r3", json={"reason": "and back"})
    with floored.app.state.database.writer() as session:
        session.get_one(Rollout, rollout := draft(floored)).release_id = 4
    held = floored.ok("GET", at(rollout))["below_floor"]
    assert [(one["floor"], one["devices"]) for one in held] == [("r2", 2), ("r3", 3)]


def test_a_rollout_that_ended_and_one_of_the_floor_itself_hold_nobody(floored: World) -> None:
    rollout = draft(floored)
    floored.ok("POST", at(rollout, "/start"))
    assert floored.ok("POST", at(rollout, "/halt"))["below_floor"] == []
    own = floored.start_rollout("r2", "all", stages=ALL)
    assert floored.ok("GET", at(own))["below_floor"] == []
