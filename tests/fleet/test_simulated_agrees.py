"""The simulated device is the agent: side by side, the server hears the same of both."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from device_agent import agent
from device_agent.config import Config, Limits
from service.core.access import SCOPES
from service.db.rollout_tables import Deployment, Event
from service.db.tables import DeviceModel
from tests.fleet.simulated import SimulatedDevice
from tests.fleet.simulator import Fleet
from tests.service.line import file, release
from tests.service.served import served
from tests.service.world import MODEL, World, digest, opened, patient


@pytest.fixture
def world(empty_database: Path, tmp_path: Path) -> Iterator[World]:
    url = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'fleetdiff.db')}"
    with opened(patient(database=url, artifacts=str(tmp_path / "artifacts")), tmp_path) as world:
        world.now, world.app.state.clock = datetime.now(UTC), lambda: datetime.now(UTC)
        world.token = world.token_with(*SCOPES)
        release(world.found(), 1)
        release(world, 2, 1)
        world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
        yield world


def told(world: World, device_id: str) -> tuple[Any, ...]:
    """All that the server knows of a device's update, but names and times."""
    with world.app.state.database.reader() as session:
        events = session.query(Event).filter_by(device_id=device_id).order_by(Event.seq)
        deployment = session.query(Deployment).filter_by(device_id=device_id).one()
        row = session.get_one(DeviceModel, device_id)
        return (
            [(e.seq, e.kind, e.reason, e.bytes, bool(e.deployment_id)) for e in events],
            deployment.shown("direction state reason bytes_sent way failed_way to_sha256"),
            row.shown("running_sha256 hops hashed_hops goes_back order_seq"),
        )


def listening(app: Any, heard: list[str]) -> Any:
    """Note in which order what is asked of an app."""

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            heard.append(f"{scope['method']} {scope['path'].removeprefix('/device/v1/')}")
        await app(scope, receive, send)

    return noting


def noted(send: Any, heard: list[str]) -> Any:
    def noting(method: str, path: str, *more: Any) -> Any:
        heard.append(f"{method} {path.partition('?')[0]}")
        return send(method, path, *more)

    return noting


def config(address: str, folder: Path, root: Path) -> Config:
    return Config(
        server=address,
        model=MODEL,
        serial="real",
        hardware="h1",
        state_dir=folder,
        root=root,
        dev_root=True,
        limits=Limits(start_spread_s=0.0),
    )


def test_a_real_and_a_simulated_device_tell_the_server_the_same(
    world: World, tmp_path: Path
) -> None:
    root, factory = tmp_path / "root.json", tmp_path / "factory"
    root.write_bytes(world.newest_metadata("root"))
    factory.write_bytes(file(1))
    token = world.ok("POST", "/v1/enrollment-tokens", json={"model": MODEL, "cohort": None})
    phone = world.enroll("simulated", runs=digest(file(1)))
    fleet = Fleet(world, [(phone.id, phone.credential)], digest(file(1)))
    simulated: SimulatedDevice = fleet.devices[0]
    asked_by_real, asked_by_simulated = [], []
    fleet.direct.send = noted(fleet.direct.send, asked_by_simulated)
    with served(listening(world.app, asked_by_real)) as address:
        real = config(address, tmp_path / "device", root)
        real_id = agent.enroll(real, token["token"], factory)["device_id"]
        with agent.open_device(real) as device:
            agent.run_once(device)
            fleet.direct.within(lambda: agent.run_once(simulated))
            world.start_rollout("r2", "all", stages=[{"share_bp": 10_000}])
            for _ in range(3):
                world.tick()
                outcomes = [agent.run_once(device)]
                outcomes.append(fleet.direct.within(lambda: agent.run_once(simulated)))
            assert outcomes == [None, None]
    assert asked_by_real[1:] == asked_by_simulated and asked_by_real[0] == "POST enroll"
    assert len(asked_by_simulated) > 10
    of_real, of_simulated = told(world, real_id), told(world, phone.id)
    # An agent says once which version it is; a simulated one was enrolled with it.
    assert [event[1:] for event in of_real[0] if event[2] != "agent"] == [
        event[1:] for event in of_simulated[0]
    ]
    assert of_real[1:] == of_simulated[1:]
    assert of_real[1]["state"] == "confirmed" and simulated.slots.here == digest(file(2))
    fleet.close()
