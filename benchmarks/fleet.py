"""A simulated fleet's day: bytes, polls after an outage, devices that are stuck, processor time.

`python -m benchmarks.fleet [--devices 300] [--period 3600] [--seed 1]`. Every device is the
agent's own cycle and the server is the real one, in one process (`tests/fleet/simulator.py`). A
release goes to all of them in three stages; power fails, answers are lost, artifacts are missing,
links are slow, publishers die; and when all is done, the server is away for two hours.
"""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.rows import Row, publish
from service.db.migrate import migrate
from tests.fleet.faults import Faults, drawn
from tests.fleet.simulator import HOUR, Fleet
from tests.service.line import file, release
from tests.service.world import MODEL, World, digest, opened, patient

OUTAGE = (16 * HOUR, 18 * HOUR)
FAULTS = Faults(cut=0.002, lost=0.01, missing=0.002, kills=0.1, slow=0.02, outages=(OUTAGE,))
STAGES = [
    {"share_bp": 1000, "soak_s": 1800},
    {"share_bp": 5000, "soak_s": 1800},
    {"share_bp": 10_000},
]
GATE = {"margin_rel": 0.5, "hostile_count": 0, "hostile_share": 0.0, "pairs_promote_least": 20}


def prepared(world: World, devices: int) -> list[tuple[str, str]]:
    """Publish a release and one that is better, start its rollout, and enroll the fleet."""
    world.found()
    release(world, 1)
    world.publish_canary()
    release(world, 2, 1, back=True)
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    known = [(p.id, p.credential) for p in world.fleet(devices, digest(file(1)))]
    world.start_rollout("r2", "all", stages=STAGES, gate=GATE)
    return known


def day(folder: Path, devices: int, period_s: int, seed: int) -> list[Row]:
    """Return what a day of such a fleet comes to."""
    database = f"sqlite:///{folder / 'fleetdiff.db'}"
    migrate(database)
    settings = patient(
        database=database, artifacts=str(folder / "artifacts"), poll_after_s=period_s
    )
    with drawn(seed), opened(settings, folder) as world:
        known = prepared(world, devices)
        fleet = Fleet(world, known, digest(file(1)), FAULTS, seed=seed, tick_s=300)
        began = time.process_time()
        for hour in range(24):
            fleet.run(hours=1)
            on_it = fleet.running()[digest(file(2))]
            print(f"hour {hour + 1}: {on_it} of {devices} run the release", file=sys.stderr)
        cpu_s = time.process_time() - began
        return rows_of(fleet, cpu_s, period_s)


def rows_of(fleet: Fleet, cpu_s: float, period_s: int) -> list[Row]:
    """Return the figures of a day that is over."""
    devices, target = len(fleet.devices), digest(file(2))
    reasons = fleet.why_not(target)
    work = f"{devices} devices, a day"
    full = fleet.running()[target] * len(file(2))
    peak = fleet.peak_to_mean(OUTAGE[1], OUTAGE[1] + 2 * period_s)
    cuts = sum(what == "power cut" for _, _, what in fleet.log)
    killed = sum(what == "publisher killed" for _, _, what in fleet.log)
    nameless = sum(not reason for reason in reasons.values())
    return [
        Row(work, "run the release in the end", fleet.running()[target], "devices"),
        Row(work, "do not, for a reason that has a name", len(reasons) - nameless, "devices"),
        Row(work, "stuck without such a reason", nameless, "devices", 0),
        Row(work, "bytes of artifacts / of full downloads", fleet.bytes_sent / full, "", 0.1),
        Row(work, "peak / mean of polls after the outage", peak, "", 1.5),
        Row(work, "power cuts", cuts, "times"),
        Row(work, "publishers killed", killed, "times"),
        Row(work, "requests", fleet.requests, "requests"),
        Row(work, "processor, server and devices, a request", cpu_s / fleet.requests * 1e3, "ms"),
        Row(work, "processor, server and devices", cpu_s, "s"),
    ]


def main() -> int:
    """Simulate, print, and say whether every goal holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=300)
    parser.add_argument("--period", type=int, default=3600, metavar="S")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        rows = day(Path(folder), args.devices, args.period, args.seed)
    return publish("fleet", rows)


if __name__ == "__main__":
    sys.exit(main())
