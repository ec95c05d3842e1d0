"""What failed on a device is tried again after growing pauses, a few times, or when told."""

from datetime import timedelta
from typing import Any

import pytest

from service.fleet.deployments import ATTEMPTS_MAX
from tests.service.memory import Memory, asking, settle
from tests.service.phone import Phone
from tests.service.world import BASE, BETTER, World, digest, refused


def fails(phone: Phone, kind: str = "failed") -> Any:
    plan = phone.offered()
    phone.say(kind, plan["deployment"], reason="E_HTTP")
    phone.etag = ""
    assert phone.poll()["hold"] == "backoff"
    phone.etag = ""
    return plan


def stages(world: World, rollout: str) -> dict[str, int]:
    shown = world.ok("GET", f"/v1/rollouts/{rollout}")
    return {name: shown["health"][name] for name in ("failures", "failure_devices")}


def test_pauses_grow_until_there_were_attempts_enough(world: World) -> None:
    rollout = world.ready()
    phone = world.enroll("s1", runs=digest(BASE))
    seen = set()
    for hours in (1, 6, 36):
        seen.add(fails(phone)["deployment"])
        world.now += timedelta(hours=hours, seconds=-1)
        assert phone.offered() == "backoff"
        world.tick(1)
        phone.etag = ""
    seen.add(fails(phone)["deployment"])
    assert len(seen) == ATTEMPTS_MAX, "each attempt is another one to the device"
    world.now += timedelta(days=6)
    assert phone.offered() == "backoff", "for ever"
    found = world.ok("GET", f"/v1/devices/{phone.id}/explain")["stopped_by"]
    assert found["compared"] == "its attempt is failed: E_HTTP; until an operator says retry"
    assert stages(world, rollout) == {"failures": 1, "failure_devices": 1}, "one device, once"


def test_a_failure_that_is_followed_by_a_success_still_counts_once_and_no_place_is_lost(
    world: World,
) -> None:
    rollout = world.ready(stages=[{"share_bp": 10_000, "in_flight_max": 1}])
    phone, other = (world.enroll(name, runs=digest(BASE)) for name in ("s1", "s2"))
    fails(phone)
    world.tick(3601)
    phone.install(phone.offered(), 5, 5)
    assert stages(world, rollout) == {"failures": 1, "failure_devices": 1}
    assert other.offered()["release"] == "r2"


def test_what_comes_late_of_an_earlier_attempt_changes_nothing(world: World) -> None:
    world.ready()
    phone = world.enroll("s1", runs=digest(BASE))
    first = fails(phone)["deployment"]
    world.tick(3601)
    second = phone.offered()["deployment"]
    phone.say("failed", first, reason="E_HTTP")
    phone.etag = ""
    assert phone.offered()["deployment"] == second != first


def test_a_refusal_is_the_devices_own_judgement_and_waits_for_a_person(world: World) -> None:
    world.ready()
    phone = world.enroll("s1", runs=digest(BASE))
    first = fails(phone, "refused")["deployment"]
    world.now += timedelta(days=1)
    assert phone.offered() == "backoff"
    assert world.ok("POST", f"/v1/devices/{phone.id}/retry") == {"retried": 1}
    assert phone.offered()["deployment"] != first
    assert world.ok("POST", f"/v1/devices/{phone.id}/retry") == {"retried": 0}


def test_a_person_ends_the_pauses_of_a_rollout_and_of_no_other(world: World) -> None:
    rollout = world.ready()
    phones = [world.enroll(f"s{n}", runs=digest(BASE)) for n in range(3)]
    for phone in phones[:2]:
        fails(phone)
    done = world.ok("POST", f"/v1/rollouts/{rollout}/retry", json={"reason": "the store was full"})
    assert done == {"retried": 2}
    for phone in phones:
        phone.etag = ""
        assert phone.offered()["release"] == "r2"
    entry = world.ok("GET", "/v1/audit")["items"]
    assert any(e["action"] == "rollout.retry" and e["details"]["devices"] == 2 for e in entry)
    world.ok("POST", f"/v1/rollouts/{rollout}/halt")
    assert world.ok("POST", f"/v1/rollouts/{rollout}/retry") == {"retried": 0}, "none goes back"
    refused(world.call("POST", "/v1/rollouts/nothing/retry"), 404)
    refused(world.call("POST", "/v1/devices/nothing/retry"), 404)


@pytest.mark.parametrize("by", ["time", "person"])
def test_a_pause_is_answered_from_memory_until_it_ends(
    world: World, memory: Memory, by: str
) -> None:
    world.ready()
    phone = world.enroll("s1", runs=digest(BASE))
    began = world.now
    fails(phone)
    again = settle(phone)
    assert memory.took(again)
    if by == "time":
        world.now = began + timedelta(hours=2)
    else:
        world.ok("POST", f"/v1/devices/{phone.id}/retry")
    assert asking(phone).status_code == 200 and phone.offered()["release"] == "r2"


def test_a_success_that_a_device_silently_left_is_a_failure_in_the_rate_too(world: World) -> None:
    rollout = world.ready()
    phone = world.enroll("s1", runs=digest(BASE))
    phone.install(phone.offered(), 5, 5)
    assert stages(world, rollout) == {"failures": 0, "failure_devices": 1}
    phone.runs, phone.etag = digest(BASE), ""
    assert phone.poll()["hold"] == "backoff"
    assert stages(world, rollout) == {"failures": 1, "failure_devices": 1}


def sent_back(world: World) -> Phone:
    """A device that runs what was halted, and is told to go back."""
    rollout, phone = world.ready(), world.enroll("s1", runs=digest(BASE))
    phone.install(phone.offered(), 5, 5)
    world.ok("POST", f"/v1/rollouts/{rollout}/halt")
    phone.etag = ""
    assert phone.offered()["direction"] == "back"
    phone.etag = ""
    return phone


@pytest.mark.parametrize("by", ["time", "device", "rollout"])
def test_a_way_back_that_failed_is_tried_again_too(world: World, by: str) -> None:
    phone = sent_back(world)
    first = fails(phone)["deployment"]
    world.now += timedelta(hours=1, seconds=-1)
    assert phone.offered() == "backoff"
    if by == "time":
        world.now += timedelta(seconds=1)
    else:
        named = phone.id if by == "device" else world.ok("GET", "/v1/rollouts")["items"][0]["id"]
        assert world.ok("POST", f"/v1/{by}s/{named}/retry") == {"retried": 1}
    again = phone.offered()
    assert again["direction"] == "back" and again["deployment"] != first


def test_who_is_readmitted_after_a_halt_goes_back_after_all(world: World) -> None:
    phone = sent_back(world)
    for status, told in (("quarantined", "quarantined"), ("active", "back")):
        world.ok("PATCH", f"/v1/devices/{phone.id}", json={"status": status})
        phone.etag = ""
        found = phone.offered()
        assert (found if isinstance(found, str) else found["direction"]) == told


def test_who_went_back_and_runs_again_what_was_halted_is_sent_back_again(world: World) -> None:
    phone = sent_back(world)
    phone.runs, phone.etag = digest(BASE), ""
    assert phone.poll()["hold"] == "no_rollout"
    phone.runs, phone.etag = digest(BETTER), ""
    assert phone.offered()["direction"] == "back"
    phone.runs, phone.etag = digest(BASE), ""
    assert phone.poll()["hold"] == "no_rollout"
