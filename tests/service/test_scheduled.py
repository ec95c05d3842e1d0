"""A rollout with a time waits for it, and starts only if it still may."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from service.db.tables import Release
from service.engine import approvals, rollouts
from tests.service.line import release
from tests.service.publishing import ALL, approve, limit, write
from tests.service.test_four_eyes import Tokens, tokens  # noqa: F401  (a fixture)
from tests.service.test_pauses import at, held, log, shown
from tests.service.world import BASE, MODEL, START, World, digest, refused
from trust.approval import plan_digest

NIGHT = START + timedelta(hours=15)
LATER = NIGHT + timedelta(days=1)


def made(world: World, when: datetime = NIGHT, token: str | None = None, **more: Any) -> str:
    """Make a rollout of r2 to all that waits for its time."""
    body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": ALL}
    body |= {"start_at": when.isoformat()} | more
    rollout = world.ok("POST", "/v1/rollouts", token=token, json=body)["id"]
    world.ok("POST", at(rollout, "/start"), token=token)
    return str(rollout)


def until(world: World, when: datetime) -> None:
    world.now = when
    world.tick(0)


def test_a_rollout_with_a_time_asks_nobody_before_it(world: World) -> None:
    world.publish_all()
    (phone,) = world.fleet(1, digest(BASE))
    rollout = made(world)
    found = shown(world, rollout)
    assert (found["state"], found["started_at"]) == ("scheduled", None)
    assert found["health"]["waiting_for"] == "starts at 2026-06-02 03:00 UTC"
    until(world, NIGHT - timedelta(seconds=1))
    assert held(world, rollout) == ("scheduled", []) and phone.offered() == "no_rollout"
    until(world, NIGHT)
    assert held(world, rollout) == ("running", [])
    phone.etag = ""
    assert phone.offered()["release"] == "r2"
    assert log(world, rollout) == [("schedule", "tester"), ("start", "tick")]


def test_explain_and_the_status_page_say_when_it_starts(world_sqlite: World) -> None:
    world = world_sqlite
    world.publish_all()
    (phone,) = world.fleet(1, digest(BASE))
    rollout = made(world)
    found = world.ok("GET", at(rollout, "/explain"))
    assert found["start_at"] == "2026-06-02T03:00:00Z" and found["next"] is None
    assert found["waiting_for"] == "starts at 2026-06-02 03:00 UTC"
    stop = world.ok("GET", f"/v1/devices/{phone.id}/explain", params={"rollout": rollout})
    assert stop["stopped_by"]["compared"] == "the rollout is scheduled"
    page = world.client.get("/", auth=("me", world.token)).text
    assert "Starts at 2026-06-02 03:00 UTC." in page


def test_a_time_that_is_past_is_now(world_sqlite: World) -> None:
    world_sqlite.publish_all()
    assert held(world_sqlite, made(world_sqlite, START))[0] == "running"


def test_its_time_can_be_changed_and_taken_away_until_it_starts(world: World) -> None:
    world.publish_all()
    rollout = made(world)
    world.ok("PATCH", at(rollout), json={"start_at": LATER.isoformat()})
    assert shown(world, rollout)["health"]["waiting_for"] == "starts at 2026-06-03 03:00 UTC"
    until(world, NIGHT)
    assert held(world, rollout)[0] == "scheduled"
    found = world.ok("PATCH", at(rollout), json={"start_at": None})
    assert (found["state"], found["start_at"]) == ("scheduled", None), "only a tick moves it"
    assert found["health"]["waiting_for"] == "starts at the next tick"
    world.tick()
    assert held(world, rollout) == ("running", [])
    problem = refused(
        world.call("PATCH", at(rollout), json={"start_at": LATER.isoformat()}), 409, "wrong-state"
    )
    assert "began already" in problem["detail"]


def test_it_can_be_canceled_before_and_starts_never(world: World) -> None:
    world.publish_all()
    rollout = made(world)
    for verb in ("pause", "resume", "approve"):
        body = {"plan": "0" * 64} if verb == "approve" else {}
        refused(world.call("POST", at(rollout, f"/{verb}"), json=body), 409, "wrong-state")
    assert world.ok("POST", at(rollout, "/start"))["state"] == "scheduled", "it was asked for"
    world.ok("POST", at(rollout, "/halt"), json={"reason": "not this week"})
    until(world, LATER)
    assert held(world, rollout)[0] == "canceled"


@pytest.mark.parametrize("wrong", ["tomorrow", 5, True, "2026-13-01T00:00:00Z", "9999-12-31T00:00"])
def test_a_time_that_is_none_is_refused(world_sqlite: World, wrong: Any) -> None:
    world_sqlite.publish_all()
    body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": ALL}
    refused(world_sqlite.call("POST", "/v1/rollouts", json=body | {"start_at": wrong}), 422)


def test_it_does_not_start_beside_another_of_its_cohort_and_does_after_it(world: World) -> None:
    world.publish_all()
    rollout, other = made(world), world.start_rollout("r2", "all", stages=ALL)
    until(world, NIGHT)
    said = shown(world, rollout)["health"]["waiting_for"]
    assert said.startswith(f"was to start at 2026-06-02 03:00 UTC: rollout {other}")
    page = world.client.get("/", auth=("me", world.token)).text
    assert "Was to start at 2026-06-02 03:00 UTC: rollout" in page
    generation = shown(world, rollout)["generation"]
    world.tick()
    assert shown(world, rollout)["generation"] == generation, "nobody else's view is stale by that"
    world.ok("POST", at(other, "/halt"))
    world.tick()
    assert held(world, rollout) == ("running", [])


def test_it_waits_for_signatures_that_outlast_an_update(world: World) -> None:
    world.publish_all()
    rollout = made(world, START + timedelta(days=29, hours=12))
    until(world, START + timedelta(days=29, hours=12))
    assert held(world, rollout)[0] == "scheduled"
    assert "what people signed runs out" in shown(world, rollout)["health"]["waiting_for"]
    world.sign_family()
    world.tick()
    assert held(world, rollout) == ("running", [])


def behind(line: World) -> None:
    """Let a device run the first release."""
    phone = line.enroll("s1")
    phone.runs = line.ok("GET", f"/v1/models/{MODEL}/releases")["items"][0]["sha256"]
    phone.poll()


def test_it_waits_for_patches_that_were_withdrawn_since_unless_full_downloads_were_accepted(
    line: World,
) -> None:
    behind(line)
    rollout = made(line)
    line.ok("POST", f"/v1/models/{MODEL}/patches/r1/r2/withdraw", json={"reason": "crashes"})
    until(line, NIGHT)
    assert "devices on r1 (1 of 1 looked at" in shown(line, rollout)["health"]["waiting_for"]
    assert line.ok("GET", at(rollout, "/explain"))["patches_missing"][0]["release"] == "r1"
    line.ok("POST", f"/v1/models/{MODEL}/patches/r1/r2/restore")
    line.tick()
    assert held(line, rollout) == ("running", [])


def test_what_was_accepted_when_it_was_asked_for_is_accepted_when_it_starts(
    line: World,
) -> None:
    behind(line)
    line.ok("POST", f"/v1/models/{MODEL}/patches/r1/r2/withdraw", json={"reason": "crashes"})
    body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": ALL}
    rollout = line.ok("POST", "/v1/rollouts", json=body | {"start_at": NIGHT.isoformat()})["id"]
    refused(line.call("POST", at(rollout, "/start")), 409, "patches-missing")
    line.ok("POST", at(rollout, "/start"), params={"accept_full_downloads": True})
    until(line, NIGHT)
    assert held(line, rollout) == ("running", [])


def test_a_release_that_was_withdrawn_since_is_not_started(world: World) -> None:
    world.publish_all()
    rollout = made(world)
    write(world, update(Release).where(Release.name == "r2").values(status="withdrawn"))
    until(world, NIGHT)
    assert shown(world, rollout)["health"]["waiting_for"].endswith("release r2 is withdrawn")


@pytest.mark.attack("A24")
def test_an_approved_rollout_waits_for_its_time_and_another_time_is_another_plan(
    pinned: World,
    tokens: Tokens,  # noqa: F811
    tmp_path: Any,
) -> None:
    limit(pinned, tmp_path, approval_above_bp=5000)
    pinned.fleet(4, digest(BASE))
    rollout = made(pinned, token=tokens["anne"])
    assert held(pinned, rollout)[0] == "awaiting_approval"
    plan = pinned.ok("GET", at(rollout, "/plan"))
    assert plan["plan"]["start_at"] == NIGHT.isoformat()
    assert plan["sha256"] == plan_digest(plan["plan"])
    assert approve(pinned, rollout, tokens["ben"]).json()["state"] == "scheduled"
    body = {"start_at": LATER.isoformat()}
    changed = pinned.ok("PATCH", at(rollout), token=tokens["anne"], json=body)
    assert (changed["state"], changed["approved_by"]) == ("awaiting_approval", [])
    until(pinned, LATER)
    assert held(pinned, rollout)[0] == "awaiting_approval"
    assert approve(pinned, rollout, tokens["ben"]).json()["state"] == "running"


@pytest.mark.attack("A24")
def test_a_rollout_that_grew_into_needing_approvals_asks_for_them_when_its_time_comes(
    pinned: World,
    tokens: Tokens,  # noqa: F811
    tmp_path: Any,
) -> None:
    phones = pinned.fleet(4, digest(BASE))
    few = {"name": "few", "model": MODEL, "devices": [phones[0].id]}
    pinned.ok("POST", "/v1/cohorts", json=few)
    limit(pinned, tmp_path, approval_above_bp=5000)
    rollout = made(pinned, token=tokens["anne"], cohort="few")
    assert held(pinned, rollout)[0] == "scheduled"
    for phone in phones[1:]:
        pinned.ok("PUT", f"/v1/cohorts/few/devices/{phone.id}")
    until(pinned, NIGHT)
    assert held(pinned, rollout)[0] == "awaiting_approval"
    own = approve(pinned, rollout, tokens["anne"])
    refused(own, 403, "forbidden")
    assert approve(pinned, rollout, tokens["ben"]).json()["state"] == "running"


@pytest.mark.attack("A24")
def test_who_started_what_somebody_else_made_approves_it_no_more_than_that_one_when_it_grew(
    pinned: World,
    tokens: Tokens,  # noqa: F811
    tmp_path: Any,
) -> None:
    phones = pinned.fleet(4, digest(BASE))
    few = {"name": "few", "model": MODEL, "devices": [phones[0].id]}
    pinned.ok("POST", "/v1/cohorts", json=few)
    limit(pinned, tmp_path, approval_above_bp=5000)
    body = {"model": MODEL, "release": "r2", "cohort": "few", "stages": ALL}
    body |= {"start_at": NIGHT.isoformat()}
    rollout = pinned.ok("POST", "/v1/rollouts", token=tokens["anne"], json=body)["id"]
    pinned.ok("POST", at(rollout, "/start"), token=tokens["ben"])
    for phone in phones[1:]:
        pinned.ok("PUT", f"/v1/cohorts/few/devices/{phone.id}")
    until(pinned, NIGHT)
    assert shown(pinned, rollout)["health"]["waiting_for"].endswith("; ben asks")
    refused(approve(pinned, rollout, tokens["ben"]), 403, "forbidden")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_tick_that_dies_while_it_starts_one_starts_it_once(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    world.publish_all()
    rollout = made(world)
    world.now = NIGHT
    before, start = world.rows(), rollouts.start

    def killed(*args: Any) -> Any:
        if moment == "after":
            start(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(approvals.rollouts, "start", killed)
        with pytest.raises(KeyboardInterrupt):
            world.tick(0)
    assert world.rows() == before
    world.tick(0)
    world.tick(0)
    assert log(world, rollout) == [("schedule", "tester"), ("start", "tick")]


def test_patches_are_looked_for_again_when_the_time_comes_for_who_came_since(
    world_sqlite: World,
) -> None:
    """A release that nobody ran when it was asked for, and that no patch leads from."""
    world = world_sqlite
    for number, bases in ((1, ()), (2, ()), (3, (2,))):
        release(world, number, *bases)
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    rollout = made(world, release="r3")
    first = world.ok("GET", f"/v1/models/{MODEL}/releases")["items"][0]
    world.fleet(3, first["sha256"])
    until(world, NIGHT)
    assert "devices on r1 (3 of 3 looked at" in shown(world, rollout)["health"]["waiting_for"]
