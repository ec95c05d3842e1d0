"""What pauses a rollout by itself: missing patches, silence, failures; and how each ends."""

from datetime import timedelta
from typing import Any

from service.fleet.reports import note_seen
from tests.service.line import edge, file, release
from tests.service.phone import Phone
from tests.service.publishing import ALL
from tests.service.test_pauses import at, held, shown
from tests.service.test_rollouts import NEARLY_ALL, SMALL_GATE
from tests.service.world import BASE, MODEL, World, digest, refused

HALF_A_DAY = timedelta(hours=12).total_seconds() + 1


def two_stages(world: World, **more: Any) -> str:
    """Publish r1 > r2 > r3, let the first stage of r3 be safe, and a patch turn out bad."""
    for number, bases in ((1, ()), (2, (1,)), (3, (2,))):
        release(world, number, *bases)
    world.publish_canary()
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    edge_of = edge(world, 1, 2)
    runs = world.ok("GET", f"/v1/models/{MODEL}/releases")["items"][0]["sha256"]
    phones = world.fleet(12, runs)
    stages = [{"share_bp": 9999, "soak_s": 3600}, {"share_bp": 10_000}]
    rollout = world.start_rollout("r3", "all", gate=SMALL_GATE, stages=stages, **more)
    for phone in phones[:10]:
        phone.install(phone.offered(), 20, 10)
    world.ok(
        "POST",
        f"/v1/models/{MODEL}/patches/{edge_of['from']}/{edge_of['to']}/withdraw",
        json={"reason": "crashes"},
    )
    world.tick(3600)
    return rollout


def test_no_stage_opens_whose_patches_are_missing_until_they_are_published(world: World) -> None:
    rollout = two_stages(world)
    assert held(world, rollout) == ("paused", ["patches_missing"])
    assert shown(world, rollout)["stage"] == 1
    problem = refused(world.call("POST", at(rollout, "/resume")), 409, "still-held")
    assert problem["reasons"] == ["patches_missing"]
    assert "r1 (2 of 12 looked at" in problem["detail"]
    world.ok("POST", f"/v1/models/{MODEL}/patches/r1/r2/restore")
    world.tick()
    assert held(world, rollout) == ("running", [])
    world.tick()
    assert shown(world, rollout)["stage"] == 2


def test_whoever_accepts_full_downloads_resumes_without_the_patches(world_sqlite: World) -> None:
    world = world_sqlite
    rollout = two_stages(world)
    world.ok("POST", at(rollout, "/resume"), params={"accept_full_downloads": True})
    world.tick()
    assert (held(world, rollout), shown(world, rollout)["stage"]) == (("running", []), 2)


def test_whoever_accepted_them_at_the_start_is_not_asked_again(world_sqlite: World) -> None:
    rollout = two_stages(world_sqlite, full_downloads=True)
    assert shown(world_sqlite, rollout)["stage"] == 2


def nearly_spent(world: World) -> tuple[str, int]:
    """Let two devices take r2 by patch; the budget then lacks one byte for a third."""
    for number, bases in ((1, ()), (2, (1,))):
        release(world, number, *bases)
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    size = edge(world, 1, 2)["bytes"]
    costs = {"bytes_max": len(file(2)) + 3 * size - 1}
    rollout = world.start_rollout("r2", "all", stages=ALL, **costs)
    for phone in world.fleet(2, digest(file(1)), prefix="first"):
        plan = phone.offered()
        phone.say("applied", plan["deployment"], bytes=size)
        phone.runs, phone.etag = plan["sha256"], ""
        phone.poll()
    return rollout, size


def test_a_budget_that_holds_a_full_file_and_no_patch_before_it_is_spent(world: World) -> None:
    rollout, size = nearly_spent(world)
    (late,) = world.fleet(1, digest(file(1)), prefix="late")
    assert late.offered() == "budget"
    world.tick()
    assert held(world, rollout) == ("paused", ["budget"])
    problem = refused(world.call("POST", at(rollout, "/resume")), 409, "still-held")
    assert f"a device takes {len(file(2)) + size}" in problem["detail"]
    world.ok("PATCH", at(rollout), json={"bytes_max": len(file(2)) + 3 * size})
    world.tick()
    assert held(world, rollout) == ("running", []) and late.offered()["release"] == "r2"


def test_a_budget_that_still_pays_for_one_of_those_to_come_is_not_spent(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    rollout, _size = nearly_spent(world)
    (late,), (unknown,) = (world.fleet(1, runs, prefix=runs) for runs in (digest(file(1)), ""))
    world.tick()
    assert late.offered() == "budget"
    assert held(world, rollout) == ("running", []), "a full file is all that the other one takes"
    assert unknown.offered()["release"] == "r2"


def test_devices_under_way_that_are_not_heard_of_pause_before_they_are_blamed(
    world: World,
) -> None:
    rollout = world.ready()
    phones = world.fleet(6, digest(BASE))
    assert {phone.offered()["release"] for phone in phones} == {"r2"}
    world.tick(HALF_A_DAY)
    assert held(world, rollout) == ("running", []), "when they were seen is not written yet"
    seen_at = {phone.id: world.now - timedelta(seconds=HALF_A_DAY) for phone in phones}
    heard(world, seen_at)
    world.tick()
    assert held(world, rollout) == ("paused", ["silence"])
    said = world.ok("GET", at(rollout, "/decisions"))["items"][-1]["reason"]
    assert said.startswith("silence: 6 of 6 devices under way fell silent")
    world.tick(86400)
    assert shown(world, rollout)["stages"][0]["failed"] == 0
    world.ok("POST", at(rollout, "/resume"), json={"reason": "the link is back"})
    world.tick()
    assert held(world, rollout) == ("running", []), "they have their full time again"
    heard(world, {phone.id: world.now for phone in phones})
    world.tick(HALF_A_DAY - 60)
    assert held(world, rollout) == ("running", []), "heard of within it"
    world.tick(120)
    assert held(world, rollout) == ("paused", ["silence"])


def test_a_second_pause_gives_a_device_its_full_time_again_and_no_more(world: World) -> None:
    rollout, phone = world.ready(), world.enroll("s1", runs=digest(BASE))
    assert phone.offered()["release"] == "r2"
    for _ in range(2):
        world.ok("POST", at(rollout, "/pause"))
        world.tick(2 * 86400)
        heard(world, {phone.id: world.now})
        world.ok("POST", at(rollout, "/resume"))
    world.tick(86400)
    assert shown(world, rollout)["stages"][0]["failed"] == 0
    world.tick()
    assert shown(world, rollout)["stages"][0]["failed"] == 1


def heard(world: World, seen_at: dict[str, Any]) -> None:
    with world.app.state.database.writer() as session:
        note_seen(session, seen_at)


def fail(world: World, phones: list[Phone]) -> None:
    for phone, plan in zip(phones, world.plans(phones), strict=True):
        phone.say("refused", plan["deployment"], reason="E_CANARY")


def test_failures_that_a_person_has_seen_are_the_new_zero(world: World) -> None:
    world.publish_all()
    gate = SMALL_GATE | {"hostile_count": 3}
    rollout = world.start_rollout("r2", "all", gate=gate, stages=NEARLY_ALL)
    phones = world.fleet(20, digest(BASE))
    fail(world, phones[:5])
    world.tick()
    assert held(world, rollout) == ("paused", ["failure_rate"])
    world.ok("POST", at(rollout, "/resume"), json={"reason": "one shelf without power"})
    world.tick()
    found = shown(world, rollout)
    assert found["state"] == "running"
    assert (found["health"]["failures"], found["health"]["failure_devices"]) == (0, 0)
    assert found["stages"][0]["refused"] == 5
    fail(world, phones[5:10])
    world.tick()
    assert held(world, rollout) == ("paused", ["failure_rate"]), "as many again"
    assert shown(world, rollout)["health"]["failures"] == 5
