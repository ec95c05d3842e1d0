"""What devices reported is deleted some time after a rollout's end; what it adds up to stays."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select

from service.__main__ import main
from service.db.rollout_tables import CanaryReport, Rollout
from service.fleet import retention
from tests.service.test_sums import kept, reported
from tests.service.world import World

KEPT = timedelta(hours=2)  # days, elsewhere


def halted(world: World) -> str:
    """Halt a rollout of which devices have reported."""
    rollout = reported(world)
    world.ok("POST", f"/v1/rollouts/{rollout}/halt", json={"reason": "enough"})
    return rollout


def forget(world: World) -> None:
    retention.forget_reports(world.app.state.database, KEPT, world.now)


def reports(world: World) -> int:
    with world.app.state.database.reader() as session:
        return session.execute(select(func.count()).select_from(CanaryReport)).scalar_one()


def test_reports_go_long_after_their_rollout_ended_and_its_sums_and_decisions_stay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "FORGOTTEN_AT_ONCE", 2)
    path = f"/v1/rollouts/{(rollout := halted(world))}"
    before = kept(world, rollout), world.ok("GET", f"{path}/decisions")
    there = reports(world)
    assert there > 4, "more than go at once"
    world.now += KEPT - timedelta(seconds=1)
    forget(world)
    assert (reports(world), world.ok("GET", path)["reports_deleted_at"]) == (there, None)
    world.now += timedelta(seconds=1)
    forget(world)
    assert (reports(world), world.ok("GET", path)["reports_deleted_at"] is None) == (0, False)
    assert (kept(world, rollout), world.ok("GET", f"{path}/decisions")) == before


@pytest.mark.parametrize("state", ["running", "paused"])
def test_reports_of_a_rollout_that_goes_on_are_kept_however_old(world: World, state: str) -> None:
    rollout = reported(world)
    if state == "paused":
        world.ok("POST", f"/v1/rollouts/{rollout}/pause", json={"reason": "later"})
    there = reports(world)
    world.now += 4 * KEPT
    forget(world)
    assert reports(world) == there > 0


def test_who_ends_in_the_middle_of_it_is_followed_by_somebody_who_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout, there = halted(world), reports(world)
    world.now += KEPT
    with world.app.state.database.writer() as session:  # said, and then the power failed
        session.get_one(Rollout, rollout).reports_deleted_at = world.now
    world.now += timedelta(hours=1)
    assert reports(world) == there
    forget(world)
    assert reports(world) == 0


def test_sums_without_their_pairs_are_no_disagreement(
    world_sqlite: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = world_sqlite
    halted(world)
    world.now += KEPT
    forget(world)
    monkeypatch.setenv("FLEETDIFF_DATABASE", world.app.state.settings.database)
    monkeypatch.setenv("FLEETDIFF_ARTIFACTS", world.app.state.settings.artifacts)
    assert main(["verify-sums"]) == 0
    assert "of 0 rollouts" in capsys.readouterr().err, "there is nothing to add up"
