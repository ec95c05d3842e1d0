"""A server with a fleet of any size, for measuring polls: made by SQL, then served as in earnest.

`python -m benchmarks.served PORT` serves a bare ASGI application that always answers 304, and
`python -m benchmarks.served PORT FOLDER DEVICES` the real one, with the last answer of each device
in memory as after one period of polls.
"""

import hashlib
import sys
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy import insert
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.load import request
from service.__main__ import serving
from service.app import create_app, flush_seen
from service.core.credential import digest_of
from service.db.entries import Entry
from service.db.migrate import migrate
from service.db.tables import Device, DeviceModel, Release
from service.settings import Settings
from tests.service.world import BETTER, MODEL, World, digest, patient

BATCH = 10_000
FLUSH_S = 5
ETAG = b'"0123456789abcdef"'


def secret(number: int) -> str:
    """Return the secret of a device's credential."""
    return urlsafe_b64encode(hashlib.sha256(str(number).encode()).digest()).decode().rstrip("=")


def device_id(number: int) -> str:
    """Return the id of a device."""
    return f"{number:016x}"


def query(running: bytes) -> str:
    """Return the parameters of a poll, as an agent writes them."""
    return f"root=1&t=5&s={digest(running)}"


def credential(number: int) -> str:
    """Return what a device sends as `Authorization`."""
    return f"Bearer fc_{device_id(number)}_{secret(number)}"


def poll(number: int, running: bytes, etag: str = "") -> bytes:
    """Return a device's poll."""
    condition = {"If_None_Match": etag} if etag else {}
    path = f"/device/v1/poll?{query(running)}"
    return request(path, Authorization=credential(number), **condition)


def settings_of(folder: Path, port: int, devices: int = 0, database: str = "") -> Settings:
    """Return settings that limit no load generator."""
    return patient(
        database=database or f"sqlite:///{folder / 'fleetdiff.db'}",
        artifacts=str(folder / "artifacts"),
        port=port,
        poll_after_s=3600,
        poll_entries_max=devices,
    )


def make(folder: Path, devices: int, running: bytes, database: str = "") -> World:
    """Fill a new folder: a release, a better one, the cohort of all, and devices that run one.

    Returns the world, of which the caller uses the token after `close`.
    """
    settings = settings_of(folder, 1, database=database)
    migrate(settings.database)
    app = create_app(settings, ticking=False, durable=False)
    with TestClient(app) as client:
        world = World(client, app, folder / "keys")
        world.now = datetime.now(UTC)
        world.token = world.token_with(
            "releases:write", "rollouts:write", "rollouts:read", "rollouts:halt"
        )
        world.found().publish_all()
        fill(world, devices, running)
    return world


def fill(world: World, devices: int, running: bytes) -> None:
    """Add devices that run a release, by SQL."""
    database = world.app.state.database
    with database.writer() as session:
        release = session.query(Release).filter_by(sha256=digest(running)).one().id
    for first in range(0, devices, BATCH):
        numbers = range(first, min(first + BATCH, devices))
        with database.writer() as session:
            session.execute(insert(Device), [_device(n, world.now) for n in numbers])
            rows = [_runs(n, digest(running), release) for n in numbers]
            session.execute(insert(DeviceModel), rows)


def _device(number: int, now: datetime) -> dict[str, Any]:
    return {
        "id": device_id(number),
        "serial": f"serial-{number}",
        "hardware": "h1",
        "status": "active",
        "attributes": {},
        "tags": {},
        "agent_version": "1",
        "credential_sha256": digest_of(secret(number)),
        "enrolled_at": now,
        "last_seen_at": now,
    }


def _runs(number: int, running: str, release: int) -> dict[str, Any]:
    named = {"device_id": device_id(number), "model": MODEL, "order_seq": 0}
    return named | {"running_sha256": running, "running_release": release}


async def bare(scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer 304 with the headers of an unchanged poll, and do nothing else."""
    headers = [(b"etag", ETAG), (b"poll-after", b"3600"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 304, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def remember(app: FastAPI, devices: int, running: bytes, etag: str) -> None:
    """Put the last answer of each device into memory, as the route does after a slow poll."""
    entries, until = app.state.database.entries, datetime.now(UTC) + timedelta(days=1)
    for number in range(devices):
        parts = (credential(number), query(running), etag)
        asked = hashlib.sha256("\n".join(parts).encode()).digest()
        entries.keep(entries.mark(), device_id(number), Entry(asked, MODEL, None, until, 3600))


def _in_background(app: FastAPI, devices: int, running: bytes) -> None:
    """Fill the memory once the server watches its database, then flush as its heartbeat does."""
    while not app.state.database.entries._heard_until_s:
        time.sleep(0.1)
    if devices:
        client = TestClient(app)
        headers = {"Authorization": credential(0)}
        reply = client.get(f"/device/v1/poll?{query(running)}", headers=headers)
        remember(app, devices, running, reply.headers["etag"])
    print("ready", flush=True)
    while True:
        time.sleep(FLUSH_S)
        flush_seen(app.state)


def main() -> int:
    """Serve until ended."""
    port = int(sys.argv[1])
    app: ASGIApp = bare
    settings = settings_of(Path(), port)
    background: Callable[[], None] = lambda: print("ready", flush=True)  # noqa: E731
    if len(sys.argv) > 2:
        folder, devices = Path(sys.argv[2]), int(sys.argv[3])
        settings = settings_of(folder, port, devices)
        real = create_app(settings, ticking=False)
        app, background = real, lambda: _in_background(real, devices, BETTER)
    threading.Thread(target=background, daemon=True).start()
    uvicorn.Server(serving(app, settings)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
