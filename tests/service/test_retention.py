"""What nothing needs is deleted after a time of grace; what something needs never is."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select

from service.app import flush_seen
from service.db.session import Database
from service.db.tables import Artifact, Device, Release
from service.fleet import retention
from tests.service.line import ops
from tests.service.phone import Phone
from tests.service.publishing import ALL
from tests.service.world import BASE, BETTER, MODEL, PATCH, World, digest, refused
from trust import sign
from trust.accept import canonical

GRACE = timedelta(days=7)
SILENT = timedelta(days=91)
NONE = {"artifacts": 0, "bytes": 0}


def plan(world: World) -> dict[str, Any]:
    """Return digest -> what is said of each artifact."""
    items: list[Any] = []
    cursor = "0" * 64
    while True:
        page = world.ok("GET", "/v1/artifacts", params={"limit": 3, "cursor": cursor})
        items += page["items"]
        cursor = page["next"]
        if cursor is None:
            return {item["sha256"]: item for item in items}


def collect(world: World) -> Any:
    """Collect, and let the beat pass that deletes."""
    told = world.ok("POST", "/v1/artifacts/collect")
    sweep(world)
    return told


def sweep(world: World) -> None:
    retention.sweep(world.app.state.database, world.app.state.blobs)


def stored(world: World, body: bytes) -> bool:
    return world.app.state.blobs.size(digest(body)) is not None


def silent(world: World, phone: Phone) -> None:
    """Let it be long ago that a device was heard of."""
    with world.app.state.database.writer() as session:
        device = session.get_one(Device, phone.id)
        device.enrolled_at = device.last_seen_at = world.now - SILENT


def old(world: World) -> World:
    """Let it be long ago that everything was published."""
    with world.app.state.database.writer() as session:
        for release in session.scalars(select(Release)):
            release.published_at = world.now - SILENT
    return world


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


def aged(world: World) -> Any:
    """Collect, wait for the grace, and collect again."""
    collect(world)
    world.now += GRACE
    return collect(world)


def test_an_upload_that_no_release_took_goes_after_the_grace_and_not_before(world: World) -> None:
    world.upload(b"an orphan")
    assert collect(world) == {
        "candidates": {"artifacts": 1, "bytes": 9},
        "deleting": NONE,
        "undeleted": NONE,
    }
    world.now += GRACE - timedelta(seconds=1)
    assert collect(world)["deleting"]["artifacts"] == 0 and stored(world, b"an orphan")
    due = plan(world)[digest(b"an orphan")]
    world.now += timedelta(seconds=1)
    assert due["needed"] == [] and datetime.fromisoformat(due["due_at"]) == world.now
    assert collect(world)["deleting"] == {"artifacts": 1, "bytes": 9}
    assert not stored(world, b"an orphan")
    assert plan(world)[digest(b"an orphan")]["state"] == "deleted"
    refused(world.call("GET", f"/v1/artifacts/{digest(b'an orphan')}"), 404)


def test_every_artifact_that_is_kept_says_for_what(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = world.ready()
    old(world)
    world.enroll("s1", runs=digest(BASE)).poll()
    on_its_way = "r2 is where devices are on their way to"
    said = {name: item["needed"] for name, item in plan(world).items()}
    assert said[digest(BASE)] == ["r1 runs on 1 device"]
    with monkeypatch.context() as patched:
        patched.setattr(retention, "COUNTED_MAX", 1)
        assert plan(world)[digest(BASE)]["needed"] == ["r1 runs on 1 device or more"]
    brought = f"r2 is what rollout {rollout} brings"
    assert said[digest(BETTER)] == ["r2 is the newest release", brought, on_its_way]
    assert said[digest(PATCH)] == ["it is on a way to r2"]
    assert said[digest(b"shard 1")] == [f"{MODEL} is tried by it"]
    assert all(said.values())
    before = world.rows()["artifact"]
    aged(world)
    assert world.rows()["artifact"] == before


def test_a_release_is_kept_for_a_while_for_devices_that_come_with_it(world: World) -> None:
    world.publish_all()
    said = {name: item["needed"] for name, item in plan(world).items()}
    assert "r1 was published within 90 days" in said[digest(BASE)]
    assert said[digest(PATCH)] == ["it is on a way to r2"]
    aged(world)
    assert stored(world, BASE) and stored(world, PATCH)


def test_the_way_back_that_is_signed_is_kept(world: World) -> None:
    world.publish_all()
    old(world)
    world.enroll("s1", runs=digest(BETTER)).poll()
    assert plan(world)[digest(BASE)]["needed"] == ["r1 is the way back from r2"]


def test_a_floor_is_kept(world: World) -> None:
    world.publish_all()
    old(world)
    world.ok("PUT", f"/v1/models/{MODEL}/floors/r1", json={"reason": "moves the cache"})
    assert plan(world)[digest(BASE)]["needed"] == ["r1 is a floor"]


def test_a_device_that_was_silent_for_long_keeps_nothing_and_gets_the_full_file(
    world: World,
) -> None:
    world.publish_all()
    old(world)
    phone = world.enroll("s1", runs=digest(BASE))
    phone.poll()
    silent(world, phone)
    assert aged(world)["deleting"]["artifacts"] == 2, "the old release, and the patch from it"
    assert not stored(world, BASE) and not stored(world, PATCH) and stored(world, BETTER)
    world.start_rollout("r2", "all", full_downloads=True, stages=ALL)
    assert ops(phone.offered()) == [["full"]]


def test_whoever_polls_again_in_time_keeps_what_it_runs(world: World) -> None:
    world.publish_all()
    old(world)
    phone = world.enroll("s1", runs=digest(BASE))
    phone.poll()
    silent(world, phone)
    assert collect(world)["candidates"]["artifacts"] == 2
    phone.poll()
    flush_seen(world.app.state)
    world.now += GRACE
    assert collect(world)["candidates"] == collect(world)["deleting"] == NONE
    assert plan(world)[digest(BASE)]["unneeded_since"] is None


def test_a_document_that_waits_for_signatures_keeps_what_it_lists(world: World) -> None:
    world.publish("r1", BASE)
    world.upload(BETTER)
    release = world.release("r2", BETTER)
    body = canonical(sign.next_family(world.family, [sign.target_of(MODEL, release)], world.now))
    world.ok("PUT", f"/v1/drafts/family-{MODEL}", content=body)
    assert plan(world)[digest(BETTER)]["needed"] == [f"the draft of family-{MODEL} lists it"]


def test_what_was_deleted_is_brought_back_by_an_upload_and_counts_as_stored_again(
    world: World,
) -> None:
    world.publish_all()
    old(world)
    aged(world)
    reply = world.call("PUT", f"/v1/artifacts/{digest(BASE)}", content=BASE)
    assert reply.status_code == 201 and stored(world, BASE)
    item = plan(world)[digest(BASE)]
    assert (item["state"], item["unneeded_since"], item["deleted_at"]) == ("stored", None, None)


def test_a_release_whose_file_was_deleted_gets_no_rollout_until_it_is_back(world: World) -> None:
    world.publish_all()
    old(world)
    aged(world)
    asked = {"model": MODEL, "release": "r1", "cohort": "all", "stages": [{"share_bp": 10_000}]}
    found = refused(world.call("POST", "/v1/rollouts", json=asked), 409, "wrong-state")
    assert "upload it again" in found["detail"] and found["sha256"] == digest(BASE)
    world.upload(BASE)
    world.ok("POST", "/v1/rollouts", json=asked)


def test_the_next_family_may_list_what_was_deleted_but_nothing_new_without_its_bytes(
    world: World,
) -> None:
    world.publish_all()
    old(world)
    world.upload(b"an orphan")
    aged(world)
    third = sign.target_of(MODEL, world.release("r3", b"an orphan"))
    path = f"/v1/metadata/family-{MODEL}"
    refused(world.call("PUT", path, content=world.next_family(third)), 422, "missing-artifact")
    world.seq -= 1
    world.publish("r3", b"the third model")


def test_bytes_that_a_process_left_when_it_was_killed_go_at_the_next_beat(world: World) -> None:
    world.upload(b"an orphan")
    world.ok("POST", "/v1/artifacts/collect")
    world.now += GRACE
    world.ok("POST", "/v1/artifacts/collect")  # and no beat: the process ended here
    assert stored(world, b"an orphan") and plan(world)[digest(b"an orphan")]["state"] == "deleting"
    sweep(world)
    sweep(world)
    assert not stored(world, b"an orphan")


def test_an_upload_under_way_is_not_deleted_under_its_feet(world: World) -> None:
    world.upload(b"an orphan")
    collect(world)
    world.now += GRACE
    world.ok("POST", "/v1/artifacts/collect")
    world.now += timedelta(seconds=1)
    world.upload(b"an orphan")  # its bytes were there still
    sweep(world)
    assert stored(world, b"an orphan") and plan(world)[digest(b"an orphan")]["state"] == "stored"


def test_a_rollout_made_while_somebody_collects_finds_its_file_or_is_refused(world: World) -> None:
    world.publish_all()
    world.publish("r3", b"the third model")
    old(world)
    collect(world)
    world.now += GRACE
    asked = {"model": MODEL, "release": "r2", "cohort": "all", "stages": [{"share_bp": 10_000}]}
    rollout = partial(world.call, "POST", "/v1/rollouts", json=asked)
    made, _ = at_once(rollout, partial(world.call, "POST", "/v1/artifacts/collect"))
    sweep(world)
    assert stored(world, BETTER) == (made.status_code == 201)


def test_collecting_takes_the_right_to_write_releases_and_is_in_the_log(world: World) -> None:
    reader = world.token_with("releases:read")
    refused(world.call("POST", "/v1/artifacts/collect", token=reader), 403)
    world.upload(b"an orphan")
    aged(world)
    log = world.ok("GET", "/v1/audit", params={"limit": 500})["items"]
    deleted = [entry for entry in log if entry["action"] == "artifact.delete"]
    assert [entry["object"] for entry in deleted] == [digest(b"an orphan")]


def test_collecting_twice_at_once_deletes_once(world: World) -> None:
    world.upload(b"an orphan")
    collect(world)
    world.now += GRACE
    at_once(*[partial(world.call, "POST", "/v1/artifacts/collect")] * 4)
    database: Database = world.app.state.database
    with database.reader() as session:
        assert session.get_one(Artifact, digest(b"an orphan")).state == "deleting"
    log = world.ok("GET", "/v1/audit", params={"limit": 500})["items"]
    assert len([entry for entry in log if entry["action"] == "artifact.delete"]) == 1
