"""The verbs of a rollout: in the right state only, and only as their caller saw it."""

from functools import partial

import pytest

from tests.service.test_rollouts import prepare
from tests.service.world import MODEL, World, outcomes, refused


def test_verbs_in_the_wrong_state_are_conflicts(world_sqlite: World) -> None:
    world = world_sqlite
    prepare(world, 3)
    rollout = world.start_rollout("r2", "all")
    assert world.call("POST", f"/v1/rollouts/{rollout}/resume").status_code == 409
    world.ok("POST", f"/v1/rollouts/{rollout}/halt", json={"reason": "changed my mind"})
    for verb in ("start", "pause", "resume", "halt"):
        assert world.call("POST", f"/v1/rollouts/{rollout}/{verb}").status_code == 409
    assert world.call("POST", "/v1/rollouts/nowhere/halt").status_code == 404


@pytest.mark.attack("A23")
def test_what_somebody_else_changed_meanwhile_is_looked_at_again_first(world: World) -> None:
    prepare(world, 3)
    rollout = world.start_rollout("r2", "all")
    path = f"/v1/rollouts/{rollout}"
    seen = world.call("GET", path).headers["etag"]
    assert seen == f'"{world.ok("GET", path)["generation"]}"'
    mine = {"headers": {"If-Match": seen}}
    world.ok("POST", f"{path}/pause")
    before = world.rows()
    for verb in ("halt", "resume", "pause", "start"):
        found = refused(world.call("POST", f"{path}/{verb}", **mine), 412, "not-as-seen")
        assert "look again" in found["detail"]
    for strange in ("", '"x"', 'W/"1"', '"1", "2"', "9" * 60):
        refused(world.call("POST", f"{path}/halt", headers={"If-Match": strange}), 412)
    assert world.rows()["rollout"] == before["rollout"]
    again = {"headers": {"If-Match": world.call("GET", path).headers["etag"]}}
    assert outcomes([partial(world.call, "POST", f"{path}/resume", **again)] * 2) == [200, 412]
    assert world.ok("GET", path)["state"] == "running"


def test_one_cohort_has_one_live_rollout(world_sqlite: World) -> None:
    world = world_sqlite
    prepare(world, 3)
    world.start_rollout("r2", "all")
    body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": [{"share_bp": 10000}]}
    second = world.ok("POST", "/v1/rollouts", json=body)["id"]
    assert world.call("POST", f"/v1/rollouts/{second}/start").status_code == 409
