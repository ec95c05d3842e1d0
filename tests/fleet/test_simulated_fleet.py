"""Stories of a whole fleet with everything that goes wrong in the field, each from a seed."""

from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from service.db.rollout_tables import OPEN, Deployment, Stage
from tests.fleet.conftest import PERIOD_S, Simulated
from tests.fleet.faults import Faults
from tests.fleet.simulator import HOUR, Fleet
from tests.service.world import BASE, BETTER, digest

NEW, OLD = digest(BETTER), digest(BASE)
BAD_WEEK = Faults(
    cut=0.02,
    lost=0.05,
    missing=0.03,
    kills=0.5,
    slow=0.1,
    skewed=0.2,
    skew=timedelta(days=20),
    outages=((0.8 * HOUR, 1.3 * HOUR),),
)


def ends(fleet: Fleet) -> tuple[Counter[str], Counter[str]]:
    return fleet.running(), Counter(deployment.state for deployment in fleet.deployments())


def test_the_same_seed_tells_the_same_story_and_another_one_another(simulated: Simulated) -> None:
    logs = []
    for seed in (3, 3, 4):
        fleet = simulated(8, BAD_WEEK, seed=seed)
        fleet.run(hours=2)
        logs.append((fleet.log, fleet.direct.counts, fleet.bytes_sent))
    assert logs[0] == logs[1] != logs[2]
    assert len(logs[0][0]) > 20


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_goes_wrong_nobody_is_stuck_without_a_reason_that_has_a_name(
    simulated: Simulated, seed: int
) -> None:
    fleet = simulated(20, BAD_WEEK, seed=seed)
    fleet.run(hours=14)
    said = Counter(what for _, _, what in fleet.log)
    assert said["power cut"] and said["publisher killed"], "the week was bad"
    reasons = fleet.why_not(NEW)
    assert all(reasons.values()), reasons
    assert fleet.running().keys() <= {NEW, OLD}
    assert fleet.running()[NEW] >= 10
    for deployment in fleet.deployments():
        if deployment.state == "confirmed":
            assert NEW in next(d.ran for d in fleet.devices if d.device_id == deployment.device_id)


def test_no_cap_is_exceeded_at_any_instant(simulated: Simulated) -> None:
    narrow = [{"share_bp": share, "in_flight_max": 3} for share in (5000, 10_000)]
    fleet = simulated(24, Faults(cut=0.02, lost=0.05, kills=0.1), stages=narrow)
    seen: list[int] = []

    def watch() -> None:
        with fleet.world.app.state.database.reader() as session:
            stages = list(session.scalars(select(Stage).order_by(Stage.number)))
            rows = select(Deployment.stage, func.count()).where(Deployment.state.in_(OPEN))
            counted = dict(session.execute(rows.group_by(Deployment.stage)).all())
        for stage in stages:
            under_way = counted.get(stage.number, 0)
            assert under_way == stage.in_flight <= stage.in_flight_max
            seen.append(under_way)

    fleet.watch = watch
    fleet.run(hours=4)
    assert max(seen) == 3, "the cap was reached, so it was tried"
    assert fleet.running() == {NEW: 24}


@pytest.mark.parametrize(
    "faults",
    [Faults(lost=0.1), Faults(kills=0.5), Faults(cut=0.02)],
    ids=["lost replies", "killed publishers", "power cuts"],
)
def test_what_only_delays_changes_nothing_in_the_end(simulated: Simulated, faults: Faults) -> None:
    calm, disturbed = simulated(12), simulated(12, faults)
    for fleet in (calm, disturbed):
        fleet.run(hours=6)
    assert ends(disturbed) == ends(calm) == ({NEW: 12}, {"confirmed": 12})
    assert disturbed.rollout()["state"] == calm.rollout()["state"] == "completed"
    health = [f.rollout()["health"] for f in (calm, disturbed)]
    assert [h["pairs"] for h in health] == [12, 12]
    assert health[0]["change_bp"] == health[1]["change_bp"], "each pair counted once"


@pytest.mark.parametrize("outage_s", [PERIOD_S / 6, PERIOD_S, 6 * PERIOD_S])
def test_no_outage_brings_the_fleet_back_all_at_once(simulated: Simulated, outage_s: float) -> None:
    begins = 2.0 * PERIOD_S
    fleet = simulated(
        300, Faults(outages=((begins, begins + outage_s),)), stages=[{"share_bp": 10_000}]
    )
    fleet.world.ok("POST", f"/v1/rollouts/{fleet.rollout()['id']}/halt", json={"reason": "quiet"})
    fleet.run(hours=(begins + outage_s + 2 * PERIOD_S) / HOUR)
    assert not any(begins < 60 * m < begins + outage_s - 60 for m in fleet.polls)
    assert fleet.peak_to_mean(begins + outage_s, fleet.now_s, 10) <= 1.5
