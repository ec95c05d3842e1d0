"""Small simulated fleets: a rollout of a better release has begun, and nobody has heard of it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.db.migrate import migrate
from tests.fleet.faults import CALM, Faults, drawn
from tests.fleet.simulator import Fleet
from tests.service.world import BASE, digest, opened, patient

PERIOD_S = 600
# As in the demo, a verdict from few devices; what a small fleet's luck does is no harm here.
GATE = {
    "margin_rel": 1.0,
    "clip": 0.06,
    "hostile_count": 0,
    "hostile_share": 0,
    "pairs_halt_least": 4,
    "pairs_promote_least": 4,
    "sigma": 0.05,
    "pairs_expected": 5,
    "alpha_promote": 0.49,
    "failures_fine": 0.5,
    "failures_bad": 0.9,
}
STAGES = [
    {"share_bp": 5000, "soak_s": 600, "in_flight_max": 6},
    {"share_bp": 10_000, "in_flight_max": 12},
]
Simulated = Callable[..., Fleet]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database migrated once by the real scripts; each fleet copies the file."""
    path = tmp_path_factory.mktemp("template") / "fleetdiff.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def simulated(empty_database: Path, tmp_path: Path) -> Iterator[Simulated]:
    """Make a fleet of its own server: `simulated(devices, faults, seed=, liars=, **rollout)`."""
    with ExitStack() as running:
        made = 0

        def make(
            devices: int,
            faults: Faults = CALM,
            *,
            seed: int = 1,
            liars: Any = None,
            **rollout: Any,
        ) -> Fleet:
            nonlocal made
            made += 1
            folder = tmp_path / f"server-{made}"
            folder.mkdir()
            database = shutil.copy(empty_database, folder / "fleetdiff.db")
            settings = patient(
                database=f"sqlite:///{database}",
                artifacts=str(folder / "artifacts"),
                poll_after_s=PERIOD_S,
                deployment_timeout_s=6 * 3600,
            )
            with drawn(seed):
                world = running.enter_context(opened(settings, folder)).found()
                world.ready(**{"gate": GATE, "stages": STAGES} | rollout)
                known = [(p.id, p.credential) for p in world.fleet(devices, digest(BASE))]
            fleet = Fleet(
                world, known, digest(BASE), faults, seed=seed, liars=liars, tick_s=PERIOD_S / 3
            )
            running.callback(fleet.close)
            return fleet

        yield make
