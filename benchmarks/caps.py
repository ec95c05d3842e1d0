"""Caps under 64 pollers at once: how many devices more than allowed are ever in flight.

`python -m benchmarks.caps` lets 64 devices poll at the same moment, a thousand times, on SQLite and
on PostgreSQL; they are threads of one worker on SQLite, which is
served so, and of four on PostgreSQL. The world is made once: between
two rounds everybody in flight is called off, by the verb that a halt uses, and the places that it
gives back are the places of the next round.
"""

import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from benchmarks.rows import Row, publish
from service.db.migrate import migrate
from service.db.rollout_tables import OPEN, Deployment, Rollout, Stage
from service.db.session import Database
from service.db.tables import Device
from service.fleet import deployments, offers
from tests.real.postgres import clone, run_postgres, template
from tests.service.world import BASE, World, digest, opened, patient

POLLERS, CAP, ROUNDS = 64, 7, 1_000
WORKERS = {"SQLite": 1, "PostgreSQL": 4}  # as they are served
TIMEOUT = timedelta(days=1)
PATIENCE_S = 600  # for one round; who waits longer waits for a worker that fell
PROCESSES = multiprocessing.get_context("spawn")  # a server's threads are nothing to copy


def measure(rounds: int = ROUNDS) -> list[Row]:
    """Poll with 64 devices at once, a thousand times, on both databases."""
    rows = []
    for name, located in DATABASES.items():
        work = f"cap of {CAP}, {POLLERS} pollers at once, {rounds:,} rounds, {name}"
        print(f"{work} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder, located(Path(folder)) as url:
            settings = patient(database=url, artifacts=str(Path(folder) / "artifacts"))
            with opened(settings, Path(folder)) as world:
                granted = storm(world.found(), rounds, WORKERS[name])
        rows += [
            Row(work, "most in flight beyond the cap", max(granted) - CAP, "devices", 0),
            Row(work, "rounds that left a place free", sum(n < CAP for n in granted), "rounds"),
        ]
    return rows


def storm(world: World, rounds: int, workers: int) -> list[int]:
    """Let 64 devices poll at once, again and again with nobody in flight before.

    Returns:
        How many each round granted.

    Raises:
        RuntimeError: the places that a stage counts are not those that devices have.
    """
    world.publish_all()
    stages = [{"share_bp": 10_000, "in_flight_max": CAP}]
    rollout = world.start_rollout("r2", "all", stages=stages)
    devices = [phone.id for phone in world.fleet(POLLERS, "")]
    database: Database = world.app.state.database
    start, end = (PROCESSES.Barrier(POLLERS + 1, timeout=PATIENCE_S) for _ in range(2))
    given = (world.app.state.settings.database, world.now, rounds, start, end)
    shares = [devices[n::workers] for n in range(workers)]
    running = [PROCESSES.Process(target=_work, args=(share, *given)) for share in shares]
    for worker in running:
        worker.start()
    granted = []
    for number in range(rounds):
        start.wait()
        end.wait()
        granted.append(_in_flight(database))
        with database.writer() as session:
            row = session.get_one(Rollout, rollout)
            deployments.cancel_all(session, row, "running", world.now)  # its stage stays open
        if _in_flight(database):
            raise RuntimeError("who is called off still has a place")
        if number % 100 == 99:
            print(f"  {number + 1} rounds", file=sys.stderr, flush=True)
    for worker in running:
        worker.join()
    return granted


def _work(
    devices: Sequence[str], url: str, now: datetime, rounds: int, start: Any, end: Any
) -> None:
    """Poll for some devices, each in a thread of its own, whenever everybody does."""
    database = Database(url, durable=False)

    def poll(device_id: str) -> None:
        try:
            for _ in range(rounds):
                start.wait()
                with database.writer() as session:
                    device = session.get_one(Device, device_id, with_for_update={"key_share": True})
                    offers.check_in(session, device, digest(BASE), TIMEOUT, now)
                end.wait()
        except BaseException:  # nobody waits for who fell
            start.abort()
            end.abort()
            raise

    with ThreadPoolExecutor(len(devices)) as threads:
        list(threads.map(poll, devices))
    database.close()


def _in_flight(database: Database) -> int:
    with database.reader() as session:
        is_open = select(func.count()).where(Deployment.state.in_(OPEN))
        devices = session.execute(is_open).scalar_one()
        places = session.scalars(select(Stage.in_flight)).one()
    if devices != places:
        raise RuntimeError(f"a stage counts {places} in flight, and {devices} are")
    return devices


@contextmanager
def _sqlite(folder: Path) -> Iterator[str]:
    url = f"sqlite:///{folder / 'fleetdiff.db'}"
    migrate(url)
    yield url


@contextmanager
def _postgresql(_folder: Path) -> Iterator[str]:
    with run_postgres() as server, template(server, migrate) as name, clone(server, name) as url:
        yield url


DATABASES = {"SQLite": _sqlite, "PostgreSQL": _postgresql}

if __name__ == "__main__":
    sys.exit(publish("caps", measure(*map(int, sys.argv[1:]))))
