"""Back as a rollout: only where the family signs the way, and then as any other rollout."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from neural_diff.apply import apply
from service.db.tables import Release
from tests.service.line import file, ops, patch, release
from tests.service.memory import Memory, asking, settle
from tests.service.phone import Phone
from tests.service.publishing import ALL, write
from tests.service.test_pauses import at, held, shown
from tests.service.test_rollouts import SMALL_GATE
from tests.service.world import BASE, BETTER, MODEL, World, digest, refused
from trust import sign
from trust.roles import read_family


def back(world: World, name: str = "r1", **more: Any) -> str:
    return world.start_rollout(name, "all", rollback=True, **{"stages": ALL} | more)


def body(name: str = "r1") -> dict[str, Any]:
    asked = {"model": MODEL, "release": name, "cohort": "all", "stages": ALL}
    return asked | {"rollback": True}


def sign_back(world: World, **changes: Any) -> None:
    """Let the family say something else of the ways back to r1."""
    assert world.family is not None
    before = read_family(MODEL, world.family).releases["r1"]
    world.sign_family(sign.target_of(MODEL, replace(before, **changes)))


def refused_start(world: World, name: str = "r1") -> Any:
    rollout = world.ok("POST", "/v1/rollouts", json=body(name))["id"]
    return refused(world.call("POST", at(rollout, "/start")), 409, "no-edge")


def test_a_rollback_goes_stage_by_stage_along_the_signed_edge(world: World) -> None:
    world.publish_all()
    phones = world.fleet(12, digest(BETTER))
    stages = [{"share_bp": 9999}, {"share_bp": 10_000}]
    rollout = back(world, stages=stages, gate=SMALL_GATE)
    assert shown(world, rollout)["rollback"] is True
    for phone in phones:
        plan = phone.offered()
        assert (plan["release"], plan["canary"]["arm"]) == ("r1", "canary")
        assert ops(plan) == [["full"]], "the trial takes the file, an undo would have none"
        phone.install(plan, 20, 10)
        assert phone.runs == digest(BASE)
    for _ in range(3):
        world.tick()
    found = shown(world, rollout)
    assert found["state"] == "completed"
    assert sum(stage["confirmed"] for stage in found["stages"]) == 12


def test_the_gate_halts_a_rollback_too_and_who_went_is_sent_forward_again(world: World) -> None:
    world.publish_all()
    phones = world.fleet(12, digest(BETTER))
    rollout = back(world, gate=SMALL_GATE)
    for phone, plan in zip(phones, [phone.offered() for phone in phones], strict=True):
        phone.install(plan, 10, 30)
    world.tick()
    assert held(world, rollout)[0] == "halted"
    phones[0].etag = ""
    plan = phones[0].offered()
    assert (plan["direction"], plan["release"]) == ("back", "r2")


def test_a_device_goes_back_by_the_patch_that_brought_it_to_the_very_bytes(
    world: World, tmp_path: Path
) -> None:
    release(world, 1)
    release(world, 2, 1, back=True)
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    phone = world.enroll("s1", runs=digest(file(2)))
    phone.poll()
    has = {"memory_bytes": 1 << 30, "room_bytes": 1 << 30, "goes_back": True}
    phone.request("POST", "/capacity", json=has)
    back(world)
    phone.etag = ""
    plan = phone.offered()
    assert ops(plan) == [["back"], ["full"]]
    (step,) = plan["pipelines"][0]
    got, base, made = (tmp_path / name for name in ("patch", "base", "made"))
    got.write_bytes(patch(1, 2))
    assert step["sha256"] == digest(patch(1, 2))
    base.write_bytes(file(2))
    apply(base, [got], made, back=True)
    assert made.read_bytes() == file(1)
    phone.runs, phone.etag = digest(made.read_bytes()), ""
    phone.poll()
    found = world.ok("GET", f"/v1/devices/{phone.id}")
    assert found["running_release"] == "r1"


def test_without_a_signed_edge_nothing_starts(world: World) -> None:
    world.publish("r1", BASE)
    world.publish("r2", BETTER)
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    world.fleet(2, digest(BETTER))
    assert "no way back from r2 to r1" in refused_start(world)["detail"]


def test_an_edge_that_has_ended_is_none(world: World) -> None:
    world.publish_all()
    world.fleet(2, digest(BETTER))
    sign_back(world, rollback_until=int((world.now + timedelta(days=1)).timestamp()))
    world.ok("POST", at(back(world), "/halt"))
    world.now += timedelta(days=1)
    refused_start(world)


@pytest.mark.parametrize("how", ["expired", "withdrawn"])
def test_a_rollback_whose_way_is_signed_no_more_is_paused_until_it_is_again(
    world: World, how: str
) -> None:
    world.publish_all()
    phones = world.fleet(12, digest(BETTER))
    stages = [{"share_bp": 9999}, {"share_bp": 10_000}]
    rollout = back(world, stages=stages, gate=SMALL_GATE)
    for phone in phones[:11]:
        phone.install(phone.offered(), 20, 10)
    world.tick()
    world.tick()
    assert held(world, rollout) == ("running", [])
    assert shown(world, rollout)["health"]["waiting_for"].startswith("safe; 1 device")
    until = {"rollback_until": int(world.now.timestamp()) + 60}
    sign_back(world, **(until if how == "expired" else {"rollback_from": ()}))
    world.tick(61)
    assert held(world, rollout) == ("paused", ["edge_ended"])
    told = world.ok("GET", at(rollout, "/explain"))
    assert told["reasons"] == ["edge_ended"]
    assert told["next"]["because"] == "the family signs the way back again"
    problem = refused(world.call("POST", at(rollout, "/resume")), 409, "still-held")
    assert "signs no way back to r1 any more" in problem["detail"]
    (late,) = phones[11:]
    late.etag = ""
    assert late.poll()["hold"] == "paused"
    sign_back(world, rollback_until=0, rollback_from=("r2",))
    world.tick()
    assert held(world, rollout) == ("running", [])
    late.etag = ""
    late.install(late.offered(), 20, 10)
    world.tick()
    assert held(world, rollout) == ("completed", [])


def test_where_nobody_runs_what_an_edge_leads_from_nothing_starts(world_sqlite: World) -> None:
    world = world_sqlite
    world.publish_all()
    world.publish("r3", BASE + BETTER)
    world.fleet(2, digest(BASE + BETTER))
    assert "from r3 to r1" in refused_start(world)["detail"]


def test_who_runs_what_no_edge_leads_from_is_held_while_others_go(world: World) -> None:
    world.publish_all()
    world.publish("r3", BASE + BETTER)
    (goes,) = world.fleet(1, digest(BETTER))
    (stays,) = world.fleet(1, digest(BASE + BETTER), prefix="other")
    back(world)
    assert goes.offered()["release"] == "r1" and stays.offered() == "no_pipeline"
    stop = world.ok("GET", f"/v1/devices/{stays.id}/explain")["stopped_by"]
    assert stop["rule"] == "direction" and "not signed" in stop["compared"]


def test_an_edge_alone_takes_nobody_back_unless_the_rollout_says_so(world: World) -> None:
    world.publish_all()
    (phone,) = world.fleet(1, digest(BETTER))
    world.start_rollout("r1", "all", stages=ALL)
    assert phone.offered() == "no_pipeline"


def test_a_way_back_undoes_no_floor(world: World) -> None:
    world.publish_all()
    (phone,) = world.fleet(1, digest(BETTER))
    world.ok("PUT", f"/v1/models/{MODEL}/floors/r2", json={"reason": "a new tokenizer"})
    back(world)
    assert phone.offered() == "floor"
    stop = world.ok("GET", f"/v1/devices/{phone.id}/explain")["stopped_by"]
    assert stop["compared"] == "the way back would undo the floor r2: a new tokenizer"
    assert world.call("DELETE", f"/v1/models/{MODEL}/floors/r2").status_code == 204
    phone.etag = ""
    assert phone.offered()["release"] == "r1"


@pytest.mark.parametrize("first", ["forward", "back"])
def test_what_one_rollout_brings_no_other_takes_back_meanwhile(
    world_sqlite: World, first: str
) -> None:
    world = world_sqlite
    world.publish_all()
    world.fleet(1, digest(BETTER))
    world.ok("POST", "/v1/cohorts", json={"name": "some", "model": MODEL, "filter": {}})
    forward = {"model": MODEL, "release": "r2", "cohort": "some", "stages": ALL}
    one, other = (forward, body()) if first == "forward" else (body(), forward)
    live = world.ok("POST", "/v1/rollouts", json=one)["id"]
    world.ok("POST", at(live, "/start"))
    second = world.ok("POST", "/v1/rollouts", json=other)["id"]
    problem = refused(world.call("POST", at(second, "/start")), 409, "wrong-state")
    assert problem["rollout"] == live
    world.ok("POST", at(live, "/halt"))
    assert world.ok("POST", at(second, "/start"))["state"] == "running"


@pytest.mark.attack("M26")
def test_an_edge_that_is_only_in_the_database_moves_nobody(pinned: World) -> None:
    pinned.publish("r3", BASE + BETTER)
    (phone,) = pinned.fleet(1, digest(BASE + BETTER))
    write(pinned, update(Release).where(Release.name == "r1").values(rollback_from=["r2", "r3"]))
    back(pinned)
    for _ in range(3):
        phone.etag = ""
        bundle = phone.poll()
        assert bundle["order"] is None and bundle["plan"] is None
        pinned.tick()


def test_who_silently_leaves_what_it_was_taken_back_to_has_failed(world: World) -> None:
    world.publish_all()
    (phone,) = world.fleet(1, digest(BETTER))
    rollout = back(world)
    phone.install(phone.offered(), 20, 10)
    leave(phone)
    assert shown(world, rollout)["stages"][0]["failed"] == 1


def leave(phone: Phone) -> None:
    phone.runs, phone.etag = digest(BETTER), ""
    phone.poll()


def test_people_approve_that_it_is_a_rollback(world_sqlite: World) -> None:
    world = world_sqlite
    world.publish_all()
    made = world.ok("POST", "/v1/rollouts", json=body())["id"]
    assert world.ok("GET", at(made, "/plan"))["plan"]["rollback"] is True
    assert "back to r1" in world.client.get("/", auth=("me", world.token)).text


def test_an_order_back_is_told_from_memory_no_longer_than_its_edge_is_signed(
    world: World, memory: Memory
) -> None:
    world.publish_all()
    assert world.family is not None
    before = read_family(MODEL, world.family).releases["r1"]
    until = world.now + timedelta(hours=1)
    end = replace(before, rollback_until=int(until.timestamp()))
    world.sign_family(sign.target_of(MODEL, end))
    world.tick()
    phone = world.enroll("s1", runs=digest(BETTER))
    phone.poll()
    back(world)
    phone.etag = ""
    assert phone.offered()["release"] == "r1"
    ask = settle(phone)
    assert memory.took(ask)
    world.now = until
    assert asking(phone).json()["hold"] == "no_pipeline"
