"""What the store does not let go is said, is tried again, and holds up nothing else."""

from datetime import timedelta

import pytest

from service.blobs import Blobs
from service.fleet import retention
from tests.service.test_retention import GRACE, NONE, collect, plan, stored, sweep
from tests.service.world import World, digest


def test_a_store_that_fails_loses_nothing_and_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.upload(b"an orphan")
    collect(world)
    world.now += GRACE
    with monkeypatch.context() as patched:

        def fails(self: Blobs, sha256: str) -> None:
            raise OSError("the store is away")

        patched.setattr(type(world.app.state.blobs), "delete", fails)
        collect(world)
        world.now += timedelta(minutes=14)
        assert collect(world)["undeleted"] == NONE, "it has its time"
        world.now += timedelta(minutes=1)
        assert collect(world)["undeleted"] == {"artifacts": 1, "bytes": 9}
        assert "fleetdiff_artifacts_undeleted 1\n" in world.call("GET", "/metrics").text
    assert plan(world)[digest(b"an orphan")]["state"] == "deleting"
    sweep(world)
    assert not stored(world, b"an orphan") and collect(world)["undeleted"] == NONE


def test_what_the_store_keeps_holds_up_no_other_however_many_there_are(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retention, "SWEPT_AT_ONCE", 2)
    bodies = [f"orphan {number}".encode() for number in range(6)]
    kept = {world.upload(body) for body in bodies[:3]}
    for body in bodies[3:]:
        world.upload(body)
    kind = type(world.app.state.blobs)
    delete = kind.delete

    def refuses(self: Blobs, sha256: str) -> None:
        if sha256 in kept:
            raise PermissionError("AccessDenied")
        delete(self, sha256)

    monkeypatch.setattr(kind, "delete", refuses)
    collect(world)
    world.now += GRACE
    collect(world)
    while any(stored(world, body) for body in bodies[3:]):
        sweep(world)
    assert all(stored(world, body) for body in bodies[:3])
    told = [record for record in caplog.records if record.msg == "artifacts cannot be deleted"]
    assert told and all(vars(one)["for_example"] in kept for one in told)
    assert {vars(one)["why"] for one in told} == {"AccessDenied"}
