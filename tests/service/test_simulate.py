"""A rollout is rehearsed before it is there, and nothing is kept of it."""

from typing import Any

import pytest

from tests.service.line import file, release
from tests.service.test_conditions import says
from tests.service.world import MODEL, World, digest, refused

ASKED: dict[str, Any] = {
    "model": MODEL,
    "release": "r2",
    "cohort": "all",
    "stages": [{"share_bp": 1000, "soak_s": 7200}, {"share_bp": 10_000}],
}


@pytest.fixture
def small(world: World) -> World:
    release(world, 1)
    release(world, 2, 1)
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    world.fleet(3, digest(file(1)))
    world.enroll("slow", attributes={"network": "slow"}, runs=digest(file(1))).poll()
    world.enroll("unknown").poll()
    world.enroll("done", runs=digest(file(2))).poll()
    return world


def test_it_says_whom_it_reaches_and_what_they_fetch(small: World) -> None:
    before = small.rows()
    found = small.ok("POST", "/v1/rollouts/simulate", json=ASKED)
    assert small.rows() == before, "nothing is kept"
    groups = {(g["release"], g["network"]): (g["devices"], g["bytes"]) for g in found["groups"]}
    patch = groups["r1", ""][1]
    assert groups == {("r1", ""): (3, patch), ("r1", "slow"): (1, patch), ("", ""): (1, 200_000)}
    assert (found["devices"], found["bytes"]) == (5, 4 * patch + 200_000)
    assert 0 < patch < 2000 and found["bytes_full"] == 5 * 200_000
    assert found["stages"][0]["seconds"] == 7200 < found["seconds"]
    assert [stage["decides"] for stage in found["stages"]] == [False, False], "too few devices"
    slowly = small.ok("POST", "/v1/rollouts/simulate", json=ASKED | {"per_minute_max": 1})
    assert slowly["seconds"] >= found["seconds"] and slowly["assumed"]["per_minute_max"] == 1
    assert found["patches_missing"] == [] and found["assumed"]["success"] == 1


def test_a_window_and_a_budget_are_told_in_words_and_in_numbers(small: World) -> None:
    known, _, _ = small.fleet(3, digest(file(1)), prefix="told")
    says(known, utc_offset_s=3600, network="slow")
    asked = ASKED | {"conditions": {"window": {"start_min": 60, "end_min": 120}}}
    found = small.ok("POST", "/v1/rollouts/simulate", json=asked)
    groups = [(g["release"], g["network"], g["devices"]) for g in found["groups"]]
    assert groups == [("r1", "slow", 1)], "as it says itself where it is"
    assert found["untold"] == 7, "the others would be told that their agents are too old"
    assert found["seconds_anytime"] < 3 * 3600 < 12 * 3600 <= found["seconds"], "noon passed"
    window, rest = (note["says"] for note in found["notes"])
    assert window.startswith("devices begin from 01:00 to 02:00 by their own clocks, in 1 zone: ")
    assert rest.startswith("7 more devices get nothing")
    later = {"start_at": "2026-06-02T00:00Z", "stages": [{"share_bp": 10_000}]}
    found = small.ok("POST", "/v1/rollouts/simulate", json=asked | later)
    assert found["seconds"] == found["seconds_anytime"], "it is 01:00 there when it starts"


@pytest.mark.parametrize(("spare", "devices", "stage"), [(-1, 0, 2), (0, 1, 2), (10**9, 8, None)])
def test_a_budget_says_for_how_many_devices_its_bytes_last(
    small: World, spare: int, devices: int, stage: int | None
) -> None:
    small.fleet(3, digest(file(1)), prefix="more")
    asked = ASKED | {"bytes_max": 200_000 + spare}
    found = small.ok("POST", "/v1/rollouts/simulate", json=asked)
    assert (found["budget"]["devices"], found["budget"]["stage"]) == (devices, stage)
    (note,) = found["notes"]
    assert note["about"] == "budget" and ("pauses" in note["says"]) is bool(stage)
    assert (f"about {devices} of 8 devices" in note["says"]) is bool(stage)
    enough = ASKED | {"bytes_max": found["budget"]["bytes_needed"]}
    found = small.ok("POST", "/v1/rollouts/simulate", json=enough)
    assert found["budget"]["stage"] is None
    assert found["notes"][0]["says"] == "the bytes last for all of 8 devices"


@pytest.mark.parametrize(
    ("more", "status", "name"),
    [
        ({"release": "r9"}, 404, "not-found"),
        ({"cohort": "none"}, 404, "not-found"),
        ({"stages": [{"share_bp": 5000}]}, 422, "invalid-request"),
        ({"gate": {"alpha": 1}}, 422, "invalid-request"),
    ],
)
def test_what_could_not_be_created_is_not_rehearsed(
    small: World, more: dict[str, Any], status: int, name: str
) -> None:
    refused(small.call("POST", "/v1/rollouts/simulate", json=ASKED | more), status, name)


def test_it_is_for_those_who_may_make_rollouts(small: World) -> None:
    reader = small.token_with("rollouts:read", name="reader")
    refused(small.call("POST", "/v1/rollouts/simulate", reader, json=ASKED), 403)
