"""What `rollout simulate` foretells is what a simulated fleet then takes, within a factor."""

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import update

from service.db.tables import DeviceModel
from tests.fleet.conftest import GATE, Simulated
from tests.fleet.simulated import HERE
from tests.fleet.simulator import Fleet
from tests.service.world import BETTER, MODEL

FACTOR = 1.6  # either way: one draw of a small fleet, and ticks that come every third of a period
WHOLE = {"share_bp": 10_000}
ONE = {"start_min": 13 * 60, "end_min": 13 * 60 + 30}  # an hour after the start, for half an hour
SPECS: dict[str, tuple[int, dict[str, Any]]] = {
    "at once": (40, {"stages": [WHOLE]}),
    "capped": (40, {"stages": [WHOLE | {"in_flight_max": 2}]}),
    "in stages": (
        40,
        {"stages": [{"share_bp": 4000, "soak_s": 5400}, WHOLE | {"in_flight_max": 4}]},
    ),
    "in a window": (40, {"stages": [WHOLE], "conditions": {"window": ONE}}),
    "in the windows of two days": (
        12,
        {"stages": [WHOLE], "conditions": {"window": {"start_min": 13 * 60 + 55, "end_min": 725}}},
    ),
}


def rehearsed(fleet: Fleet, spec: dict[str, Any]) -> Any:
    """Rehearse a rollout, as if the devices had told already how they are."""
    with fleet.world.app.state.database.writer() as session:
        session.execute(update(DeviceModel).values(surroundings=HERE))
    asked = {"model": MODEL, "release": "r2", "cohort": "all", "gate": GATE} | spec
    return fleet.world.ok("POST", "/v1/rollouts/simulate", json=asked)


@pytest.mark.parametrize(("devices", "spec"), SPECS.values(), ids=SPECS)
def test_time_and_bytes_are_as_foretold(simulated: Simulated, devices: int, spec: Any) -> None:
    fleet = simulated(devices, **spec)
    foretold = rehearsed(fleet, spec)
    fleet.run(hours=4)
    found = fleet.rollout()
    assert found["state"] == "completed"
    began, ended = (datetime.fromisoformat(found[n]) for n in ("started_at", "finished_at"))
    took_s = (ended - began).total_seconds()
    assert foretold["seconds"] / FACTOR <= took_s <= foretold["seconds"] * FACTOR
    assert foretold["bytes"] == found["bytes_sent"] > 0 and foretold["devices"] == devices
    assert all(stage["decides"] for stage in foretold["stages"])


def test_bytes_last_for_as_many_devices_as_foretold_and_then_it_is_paused(
    simulated: Simulated,
) -> None:
    spec = {"stages": [{"share_bp": 5000}, WHOLE], "bytes_max": 13 * len(BETTER) + 1}
    fleet = simulated(20, **spec)
    foretold = rehearsed(fleet, spec)["budget"]
    fleet.run(hours=4)
    found = fleet.rollout()
    assert (found["state"], found["reasons"]) == ("paused", ["budget"])
    assert foretold["devices"] == 13 == sum(stage["confirmed"] for stage in found["stages"])
    assert foretold["stage"] == found["stage"] == 2
