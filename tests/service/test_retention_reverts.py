"""What is kept for those who are reverted, and who brings something again that was to go."""

from tests.service.publishing import ALL
from tests.service.test_retention import GRACE, NONE, collect, old, plan, stored
from tests.service.world import BETTER, World, digest, refused


def test_what_a_rollback_that_is_halted_sends_its_devices_forward_to_is_kept(world: World) -> None:
    world.publish_all()
    phone = world.enroll("s1", runs=digest(BETTER))
    phone.poll()
    rollout = world.start_rollout("r1", "all", stages=ALL, rollback=True)
    phone.runs, phone.etag = phone.offered()["sha256"], ""
    phone.poll()
    world.publish("r3", b"the third model")
    old(world)
    for verb in ("pause", "halt"):
        world.ok("POST", f"/v1/rollouts/{rollout}/{verb}")
        assert plan(world)[digest(BETTER)]["needed"] == [
            f"r2 is where rollout {rollout} sends its devices if it is halted"
        ]
    phone.etag = ""
    assert phone.offered()["sha256"] == digest(BETTER)


def test_whoever_looks_before_an_upload_finds_nothing_of_what_is_going(world: World) -> None:
    world.upload(b"an orphan")
    world.ok("POST", "/v1/artifacts/collect")
    world.now += GRACE
    world.ok("POST", "/v1/artifacts/collect")
    path = f"/v1/artifacts/{digest(b'an orphan')}"
    assert stored(world, b"an orphan") and world.call("HEAD", path).status_code == 404
    assert "upload it again" in refused(world.call("GET", path), 404, "not-found")["detail"]
    assert world.call("PUT", path, content=b"an orphan").status_code == 201
    assert world.call("HEAD", path).status_code == 200


def test_whoever_uploads_a_candidate_again_has_the_whole_time_of_grace_to_publish_it(
    world: World,
) -> None:
    world.upload(b"an orphan")
    collect(world)
    world.now += GRACE
    world.upload(b"an orphan")
    assert collect(world)["deleting"] == NONE and stored(world, b"an orphan")
