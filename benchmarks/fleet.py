"""A simulated fleet's day: bytes, polls after an outage, devices that are stuck, processor time.

`python -m benchmarks.fleet [--devices 100000] [--quick] [--period 3600] [--seed 1]`. Every device
is the agent's own cycle and the server is the real one, in one thread (`tests/fleet/simulator.py`).
A release goes to all of them in four stages; power fails, answers are lost, artifacts are missing,
links are slow, clocks are wrong, devices lie, publishers die; and twice the server is away for an
hour: at noon, while a stage soaks, and in the middle of the last stage, when half of the fleet is
to be updated. What the day has come to so far is printed every hour.
"""

import argparse
import gc
import logging
import resource
import sys
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import update

from benchmarks.rows import Row, publish
from benchmarks.served import credential, device_id, fill
from service.db.migrate import migrate
from service.db.tables import Device
from service.fleet import registry
from tests.fleet.faults import Faults, drawn
from tests.fleet.liars import GoesBack, Repeats, RunsOther, SaysBetter, SaysSo
from tests.fleet.simulator import HOUR, Fleet
from tests.service.line import file, release
from tests.service.world import MODEL, World, digest, opened, patient

QUICK = 600
QUIET, BUSY = (12 * HOUR, 13 * HOUR), (17 * HOUR, 18 * HOUR)  # outages
FAULTS = Faults(
    cut=0.002,
    lost=0.01,
    missing=0.002,
    kills=0.1,
    slow=0.02,
    skewed=0.01,
    skew=timedelta(days=10),
    outages=(QUIET, BUSY),
)
LIARS = (SaysSo, RunsOther, GoesBack, Repeats, SaysBetter)
LIARS_SHARE = 0.001  # of each kind
STAGES = [
    {"share_bp": 500, "soak_s": 2 * 3600},
    {"share_bp": 2000, "soak_s": 4 * 3600},
    {"share_bp": 5000, "soak_s": 10 * 3600 + 1800},
    {"share_bp": 10_000},
]
GATE = {"margin_rel": 0.5, "hostile_count": 0, "hostile_share": 0.0, "pairs_promote_least": 20}
BATCH_DEVICES = 1000  # that one enrollment token admitted
TICK_S = 60
SAID = "poll 304", "poll 200", "artifacts 200", "events 200", "canary-reports 202", "capacity 202"


def prepared(world: World, devices: int) -> float:
    """Publish a release and a better one, enroll the fleet, and start the rollout.

    Returns how many seconds it takes, as `rollout simulate` foretells.
    """
    world.found()
    release(world, 1)
    world.publish_canary()
    release(world, 2, 1, back=True)
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    fill(world, devices, file(1))
    for first in range(0, devices, BATCH_DEVICES):
        last = min(first + BATCH_DEVICES, devices) - 1
        with world.app.state.database.writer() as session:
            batch, _ = registry.invite(session, MODEL, 1, timedelta(days=1), None, world.now)
            batch.uses_left, batch.admitted = 0, last - first + 1
            session.flush()
            ours = Device.id.between(device_id(first), device_id(last))
            session.execute(update(Device).where(ours).values(enrolled_by=batch.id))
    spec = {"model": MODEL, "release": "r2", "cohort": "all", "stages": STAGES, "gate": GATE}
    foretold = world.ok("POST", "/v1/rollouts/simulate", json=spec)
    world.start_rollout("r2", "all", stages=STAGES, gate=GATE)
    return float(foretold["seconds"])


def day(folder: Path, devices: int, period_s: int, seed: int) -> list[Row]:
    """Return what a day of such a fleet comes to."""
    database = f"sqlite:///{folder / 'fleetdiff.db'}"
    migrate(database)
    settings = patient(
        database=database, artifacts=str(folder / "artifacts"), poll_after_s=period_s
    )
    with drawn(seed), opened(settings, folder) as world:
        foretold_s = prepared(world, devices)
        known = [(device_id(n), credential(n).removeprefix("Bearer ")) for n in range(devices)]
        liars = {
            (kind + 1) * devices // (len(LIARS) + 1) + n: LIARS[kind]
            for kind in range(len(LIARS))
            for n in range(max(1, round(LIARS_SHARE * devices)))
        }
        fleet = Fleet(world, known, digest(file(1)), FAULTS, seed=seed, liars=liars, tick_s=TICK_S)
        gc.freeze()  # a hundred thousand devices stay: nobody needs to look at them again
        began = time.process_time()
        for hour in range(1, 25):
            fleet.run(hours=1)
            told(fleet, hour, time.process_time() - began)
        return rows_of(fleet, time.process_time() - began, period_s, foretold_s)


def told(fleet: Fleet, hour: int, cpu_s: float) -> None:
    """Say how far the day is, and what it has cost so far."""
    there, asked, rollout = fleet.running()[digest(file(2))], fleet.direct.counts, fleet.rollout()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = [
        f"{hour:2}:00  {there} run the release; {asked.total()} requests; {cpu_s:.0f} s of "
        f"processor, {memory:.0f} MiB",
        f"{rollout['state']}, stage {rollout['stage']}: {rollout['health']['waiting_for']}",
        ", ".join(
            f"{said} {n} x {each_ms:.2f} ms" for said in SAID for n, each_ms in [_cost(fleet, said)]
        ),
    ]
    print("\n       ".join(lines), file=sys.stderr, flush=True)


def rows_of(fleet: Fleet, cpu_s: float, period_s: int, foretold_s: float) -> list[Row]:
    """Return the figures of a day that is over."""
    target, work = digest(file(2)), f"{len(fleet.devices)} devices, a day"
    there, asked = fleet.running()[target], fleet.direct.counts.total()
    quiet, busy = (fleet.peak_to_mean(end, end + 2 * period_s) for _, end in (QUIET, BUSY))
    reasons = Counter(fleet.why_not(target).values())
    nameless = reasons.pop("", 0)
    said = Counter(what for _, _, what in fleet.log)
    rollout = fleet.rollout()
    began, ended = (rollout["started_at"], rollout["finished_at"])
    took_s = _at(ended) - _at(began) if ended else 86_400
    server_s = sum(fleet.direct.spent_s.values())
    return [
        Row(work, "run the release in the end", there, "devices"),
        *(Row(work, f"do not: {why}", n, "devices") for why, n in reasons.most_common()),
        Row(work, "do not, and explain names no reason", nameless, "devices", 0),
        Row(
            work, "bytes / full downloads", fleet.bytes_sent / max(there * len(file(2)), 1), "", 0.1
        ),
        Row(work, "peak / mean of polls in two periods after an outage", quiet, "", 1.5),
        Row(work, "the same with an update for half of the fleet", busy, ""),
        Row(work, "the rollout took, with both outages", took_s / HOUR, "hours"),
        Row(work, "as rollout simulate foretold, without any", foretold_s / HOUR, "hours"),
        Row(work, "power cuts", said["power cut"], "times"),
        Row(work, "publishers killed", said["publisher killed"], "times"),
        Row(work, "requests", asked, "requests"),
        *(
            Row(work, f"processor of the server: {said}, of {n} each", each_ms, "ms")
            for said in SAID
            for n, each_ms in [_cost(fleet, said)]
        ),
        Row(work, "processor: the server's answers", server_s, "s"),
        Row(work, "processor: all", cpu_s, "s"),
    ]


def _cost(fleet: Fleet, said: str) -> tuple[int, float]:
    """Return how often that was said, and what it took the server each time."""
    kind = next((kind for kind in fleet.direct.counts if kind.endswith(f" {said}")), "")
    count = fleet.direct.counts[kind]
    return count, fleet.direct.spent_s[kind] / max(count, 1) * 1e3


def _at(written: Any) -> float:
    return datetime.fromisoformat(written).timestamp()


def main() -> int:
    """Simulate, print, and say whether every goal holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK} devices")
    parser.add_argument("--period", type=int, default=3600, metavar="S")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # what so many devices have to say of their troubles
    with TemporaryDirectory() as folder:
        devices = QUICK if args.quick else args.devices
        rows = day(Path(folder), devices, args.period, args.seed)
    return publish("fleet", rows)


if __name__ == "__main__":
    sys.exit(main())
