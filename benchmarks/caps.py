"""Caps under 64 pollers at once: how many devices more than allowed are ever in flight."""

import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from benchmarks.rows import Row
from service.app import create_app
from service.db.migrate import migrate
from service.db.rollout_tables import OPEN, Deployment, Stage
from service.db.session import Database
from service.db.tables import Device
from service.fleet import offers
from tests.real.postgres import clone, run_postgres, template
from tests.service.world import BASE, World, digest, patient

POLLERS, CAP, ROUNDS = 64, 7, 1_000
TIMEOUT = timedelta(days=1)


def measure() -> list[Row]:
    """Poll with 64 devices at once, a thousand times, on both databases."""
    rows = []
    for name, opened in (("SQLite", _sqlite), ("PostgreSQL", _postgresql)):
        work = f"cap of {CAP}, {POLLERS} pollers at once, {ROUNDS:,} rounds, {name}"
        print(f"{work} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as url:
            app = create_app(
                patient(database=url, artifacts=str(Path(folder) / "artifacts")),
                ticking=False,
                durable=False,
            )
            with TestClient(app) as client:
                over, least = storm(World(client, app, Path(folder) / "keys").found(), ROUNDS)
        rows += [
            Row(work, "most in flight beyond the cap", over, "devices", 0),
            Row(work, "least grants in a round", least, "devices"),
        ]
    return rows


def storm(world: World, rounds: int) -> tuple[int, int]:
    """Let 64 devices poll at once, again and again with nobody in flight.

    Returns:
        The most that were ever granted beyond the cap, and the fewest grants of a round.
    """
    world.publish_all()
    stages = [{"share_bp": 10_000, "in_flight_max": CAP}]
    world.start_rollout("r2", "all", stages=stages)
    devices = [phone.id for phone in world.fleet(POLLERS, "")]
    database: Database = world.app.state.database
    start, granted = threading.Barrier(POLLERS), []

    def poll(device_id: str) -> None:
        start.wait()
        with database.writer() as session:
            device = session.get_one(Device, device_id, with_for_update={"key_share": True})
            offers.check_in(session, device, digest(BASE), TIMEOUT, world.now)

    with ThreadPoolExecutor(POLLERS) as threads:
        for _ in range(rounds):
            _land(database)
            list(threads.map(poll, devices))
            granted.append(_in_flight(database))
    return max(granted) - CAP, min(granted)


def _land(database: Database) -> None:
    """Take every grant back."""
    with database.writer() as session:
        session.execute(update(Deployment).values(state="canceled"))
        session.execute(update(Stage).values(in_flight=0))


def _in_flight(database: Database) -> int:
    with database.reader() as session:
        is_open = select(func.count()).where(Deployment.state.in_(OPEN))
        return session.execute(is_open).scalar_one()


@contextmanager
def _sqlite(folder: Path) -> Iterator[str]:
    url = f"sqlite:///{folder / 'fleetdiff.db'}"
    migrate(url)
    yield url
    shutil.rmtree(folder / "artifacts", ignore_errors=True)


@contextmanager
def _postgresql(_folder: Path) -> Iterator[str]:
    with run_postgres() as server, template(server, migrate) as name, clone(server, name) as url:
        yield url
