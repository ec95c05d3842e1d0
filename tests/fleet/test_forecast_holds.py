"""What `rollout simulate` foretells is what a simulated fleet then takes, within a factor."""

from datetime import datetime
from typing import Any

import pytest

from tests.fleet.conftest import GATE, Simulated
from tests.service.world import MODEL

FACTOR = 1.6  # either way: one draw of a small fleet, and ticks that come every third of a period
SPECS: dict[str, list[dict[str, Any]]] = {
    "at once": [{"share_bp": 10_000}],
    "capped": [{"share_bp": 10_000, "in_flight_max": 2}],
    "in stages": [{"share_bp": 4000, "soak_s": 5400}, {"share_bp": 10_000, "in_flight_max": 4}],
}


@pytest.mark.parametrize("stages", SPECS.values(), ids=SPECS)
def test_time_and_bytes_are_as_foretold(simulated: Simulated, stages: Any) -> None:
    fleet = simulated(40, stages=stages)
    spec = {"model": MODEL, "release": "r2", "cohort": "all", "stages": stages, "gate": GATE}
    foretold = fleet.world.ok("POST", "/v1/rollouts/simulate", json=spec)
    fleet.run(hours=4)
    found = fleet.rollout()
    assert found["state"] == "completed"
    began, ended = (datetime.fromisoformat(found[n]) for n in ("started_at", "finished_at"))
    took_s = (ended - began).total_seconds()
    assert foretold["seconds"] / FACTOR <= took_s <= foretold["seconds"] * FACTOR
    assert foretold["bytes"] == found["bytes_sent"] > 0 and foretold["devices"] == 40
    assert all(stage["decides"] for stage in foretold["stages"])
