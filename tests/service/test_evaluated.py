"""What was measured before a release was signed is used where it is about the same models; sets
end when they say so."""

from datetime import timedelta
from typing import Any

import pytest

from service.core import canary
from service.core.canary import Gate
from service.db.rollout_tables import CanaryReport
from service.db.tables import Release
from tests.service.phone import Phone
from tests.service.world import BASE, BETTER, MODEL, World, digest
from trust import sign
from trust.roles import Evaluation, read_family

OLD, NEW = (20, 20, 20), (20, 23, 20)
ALL = [{"share_bp": 10_000}]
PLAIN = canary.contribution(Gate(), 20, 22, 100)[0]


def evaluated(world: World, **changes: Any) -> None:
    """Publish r1 and a canary set, and r2 with an evaluation of both."""
    world.publish("r1", BASE)
    world.publish_canary()
    assert world.family is not None
    found = read_family(MODEL, world.family).canary
    assert found is not None
    said = {"canary_set": found.sha256, "base": digest(BASE), "old": OLD, "new": NEW} | changes
    evaluation = Evaluation(**said, change_ppm=1, lower_ppm=0, upper_ppm=2, resolution_ppm=1)
    world.upload(BETTER)
    world.sign_family(sign.target_of(MODEL, world.release("r2", BETTER, evaluation=evaluation)))
    world.tick()
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})


def contributions(world: World, gate: dict[str, Any] | None = None) -> dict[str, set[int]]:
    """Let devices of every shard report 20 and 22 errors; returns shard -> what counted."""
    world.start_rollout("r2", "all", stages=ALL, full_downloads=True, gate=gate or {})
    phones: list[Phone] = world.fleet(24, digest(BASE))
    for phone, plan in zip(phones, world.plans(phones), strict=True):
        assert phone.pair(plan, 20, 22).json() == {"result": "counted"}
    with world.app.state.database.reader() as session:
        rows = [(row.shard, row.d) for row in session.query(CanaryReport)]
    return {shard: {d for s, d in rows if s == shard} for shard, _ in rows}


def test_what_a_shard_was_to_change_by_is_taken_out_of_its_pairs(world: World) -> None:
    evaluated(world)
    expected = {"00": {PLAIN + 1000}, "01": {PLAIN - 2000}, "02": {PLAIN + 1000}}
    found = contributions(world)  # of the shards that were drawn
    assert found == {shard: expected[shard] for shard in found}


@pytest.mark.parametrize(
    "changes",
    [
        {"base": "a" * 64},
        {"canary_set": "a" * 64},
        {"old": (20, 20), "new": (20, 23)},
    ],
)
def test_what_is_said_of_other_models_or_words_changes_nothing(
    world_sqlite: World, changes: dict[str, Any]
) -> None:
    evaluated(world_sqlite, **changes)
    assert set().union(*contributions(world_sqlite).values()) == {PLAIN}


def test_a_placebo_stays_as_it_was_heard(world_sqlite: World) -> None:
    evaluated(world_sqlite)
    contributions(world_sqlite, {"control_share": 0.5})
    with world_sqlite.app.state.database.reader() as session:
        heard = {(row.arm, row.d == PLAIN) for row in session.query(CanaryReport)}
    assert heard == {("control", True), ("canary", False)}


def test_a_release_that_forgot_its_evaluation_has_none(world_sqlite: World) -> None:
    world = world_sqlite
    evaluated(world)
    assert world.family is not None
    signed = read_family(MODEL, world.family).releases["r2"]
    world.sign_family(sign.target_of(MODEL, type(signed)(**vars(signed) | {"evaluation": None})))
    with world.app.state.database.reader() as session:
        assert session.query(Release).filter_by(name="r2").one().evaluation is None


def expiring(world: World) -> Phone:
    """A set that ends later than an update may take, and a rollout with one device under way."""
    end = world.now + timedelta(hours=30)
    world.publish("r1", BASE)
    world.publish_canary(expires=f"{end:%Y-%m-%dT%H:%M:%SZ}")
    world.publish("r2", BETTER, after="r1")
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    world.start_rollout("r2", "all", stages=ALL, full_downloads=True)
    return world.enroll("serial-1", runs=digest(BASE))


def test_a_set_that_is_over_holds_the_fleet_and_blames_nobody(world: World) -> None:
    start, phone = world.now, expiring(world)
    assert phone.offered()["release"] == "r2"
    for left, hold in ((1, None), (0, "metadata_expired")):
        world.now = start + timedelta(hours=30, seconds=-left)
        phone.etag = ""
        assert phone.poll()["hold"] == hold
    rollout = world.ok("GET", "/v1/rollouts")["items"][0]
    assert rollout["state"] == "running"


def metrics(world: World) -> list[str]:
    return str(world.call("GET", "/metrics").text).splitlines()


def test_the_end_of_a_set_is_announced(world_sqlite: World) -> None:
    world = world_sqlite
    expiring(world)
    (reason,) = world.ok("GET", "/v1/health")["publisher"]["reasons"]
    assert (reason["reason"], reason["role"]) == ("expires_soon", f"canary-{MODEL}")
    gauge = f'fleetdiff_metadata_expiry_seconds{{role="canary-{MODEL}"}} '
    (left,) = [line for line in metrics(world) if line.startswith(gauge)]
    assert 29 * 3600 < float(left.removeprefix(gauge)) <= 30 * 3600


def test_a_way_back_is_open_though_the_set_is_over(world_sqlite: World) -> None:
    world = world_sqlite
    phone = expiring(world)
    phone.install(phone.offered(), 20, 20)
    rollout = world.ok("GET", "/v1/rollouts")["items"][0]["id"]
    world.tick(timedelta(hours=30).total_seconds())
    world.ok("POST", f"/v1/rollouts/{rollout}/halt", json={"reason": "worse"})
    phone.etag = ""
    plan = phone.offered()
    assert (plan["direction"], plan["release"]) == ("back", "r1")
