"""A success lasts as long as polls show it: who leaves the new bytes again has failed."""

import pytest

from tests.service.phone import Phone
from tests.service.publishing import ALL
from tests.service.world import BASE, BETTER, World, digest


def confirmed(world: World) -> tuple[str, Phone]:
    """A rollout to two devices, one of which took the release and proved it."""
    world.publish_all()
    world.enroll("serial-2", runs=digest(BASE)).poll()
    phone = world.enroll("serial-1", runs=digest(BASE))
    rollout = world.start_rollout("r2", "all", stages=ALL)
    phone.install(phone.offered(), 5, 5)
    assert tally(world, rollout) == (1, 0)
    return rollout, phone


def tally(world: World, rollout: str) -> tuple[int, int]:
    stage = world.ok("GET", f"/v1/rollouts/{rollout}")["stages"][0]
    return stage["confirmed"], stage["failed"]


@pytest.mark.attack("A16")
@pytest.mark.parametrize("runs", [digest(BASE), "0f" * 32, ""], ids=["old", "unknown", "none"])
def test_a_device_that_leaves_the_release_in_a_live_rollout_counts_as_failed(
    world: World, runs: str
) -> None:
    rollout, phone = confirmed(world)
    phone.runs, phone.etag = runs, ""
    phone.poll()
    assert tally(world, rollout) == (0, 1)
    phone.runs, phone.etag = digest(BETTER), ""
    phone.poll()
    assert tally(world, rollout) == (0, 1), "no second chance to say so"


def test_a_device_that_leaves_it_after_the_end_changes_no_verdict(world: World) -> None:
    rollout, phone = confirmed(world)
    world.ok("POST", f"/v1/rollouts/{rollout}/halt", json={"reason": "enough"})
    phone.runs, phone.etag = digest(BASE), ""
    phone.poll()
    assert tally(world, rollout) == (1, 0)


def test_a_device_that_goes_on_to_a_later_release_stays_a_success(world: World) -> None:
    rollout, phone = confirmed(world)
    world.publish("r3", later := b"later than all" * 100, after="r2")
    phone.runs, phone.etag = digest(later), ""
    phone.poll()
    assert tally(world, rollout) == (1, 0)
