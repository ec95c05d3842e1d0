"""What a poll costs that the database must answer: one that takes a grant, and those after it.

Called as ASGI in this process, so nothing but the application is measured: the processor time of
all its threads, the least of several batches. In turn with it, in the same process and on the same
database: a bare FastAPI application whose POST inserts one row in a transaction.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy import event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Scope

from benchmarks import served
from benchmarks.rows import Row, publish
from service.app import create_app
from service.db.session import Database
from service.signing.publisher import work as sign
from tests.real.postgres import clone, run_postgres
from tests.service.world import BASE, MODEL, World

DEVICES, BATCHES, BATCH = 10_000, 40, 40
GRANT_US_MAX, STATEMENTS_MAX = 1000, 8
TIMES_MAX = {"SQLite": 2, "PostgreSQL": 3}  # of a bare POST that inserts one row
Ask = Callable[[int], Scope]


class Bare(DeclarativeBase):
    """The tables of the bare application."""


class Thing(Bare):
    """What it inserts."""

    __tablename__ = "bare_thing"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    at: Mapped[datetime]


class NewThing(BaseModel):
    """What it is sent."""

    name: str


def main() -> int:
    """Measure and publish."""
    return publish("grants", measure())


def measure() -> list[Row]:
    """Measure on both databases."""
    rows = []
    for name, opened in (("SQLite", _sqlite), ("PostgreSQL", run_postgres_url)):
        print(f"polls that are looked up, {name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as url:
            rows += asyncio.run(_measure(name, Path(folder), url))
    return rows


async def _measure(name: str, folder: Path, url: str) -> list[Row]:
    world = served.make(folder, DEVICES, BASE, url)
    app = create_app(served.settings_of(folder, 1, database=url), ticking=False)
    database: Database = app.state.database
    _start(app, world)
    bare = _bare(database)
    count, asked = BATCHES * BATCH, f"{DEVICES:,} devices, {name}"
    await _cpu_us(app, _poll, range(DEVICES - BATCH, DEVICES), 200)  # warm
    await _cpu_us(bare, _post, range(BATCH), 201)
    with _statements(database) as seen:
        await _cpu_us(app, _poll, [count], 200)
    rounds = []
    for first in range(0, count, BATCH):
        batch = range(first, first + BATCH)
        grant = await _cpu_us(app, _poll, batch, 200)
        rounds.append((grant, await _cpu_us(bare, _post, batch, 201)))
    grant_us, bare_us = (min(of) for of in zip(*rounds, strict=True))
    waits_us = await _least(app, count)
    for _ in range(2):
        sign(database, world.publisher, datetime.now(UTC))
    order_us = await _least(app, count)
    database.close()
    work, most = f"poll that takes a grant, {asked}", GRANT_US_MAX if name == "SQLite" else None
    return [
        Row(work, "processor time", grant_us, "us CPU", most),
        Row(work, "bare POST that inserts one row", bare_us, "us CPU"),
        # Of two batches in turn: what else the machine does weighs on both alike.
        Row(
            work, "/ bare POST", median(ours / other for ours, other in rounds), "", TIMES_MAX[name]
        ),
        Row(work, "statements", len(seen), "", STATEMENTS_MAX + (name != "SQLite")),
        Row(f"poll that waits for its order, {asked}", "processor time", waits_us, "us CPU"),
        Row(f"poll that is given its order, {asked}", "processor time", order_us, "us CPU"),
    ]


def _start(app: FastAPI, world: World) -> None:
    made = {"model": MODEL, "release": "r2", "cohort": "all"}
    made |= {"stages": [{"share_bp": 10_000, "in_flight_max": 2 * DEVICES}]}  # type: ignore[dict-item]
    client, said = TestClient(app), {"Authorization": f"Bearer {world.token}"}
    rollout = client.post("/v1/rollouts", json=made, headers=said).json()["id"]
    reply = client.post(f"/v1/rollouts/{rollout}/start", json={}, headers=said)
    if reply.status_code != 200:
        raise RuntimeError(reply.text)


def _bare(database: Database) -> FastAPI:
    app, sessions = FastAPI(), sessionmaker(database.writing)
    Bare.metadata.create_all(database.writing)

    def transaction() -> Iterator[Session]:
        with sessions.begin() as session:
            yield session

    @app.post("/things", status_code=201)
    def add(
        thing: NewThing, session: Annotated[Session, Depends(transaction, scope="function")]
    ) -> dict[str, int]:
        row = Thing(name=thing.name, at=datetime.now(UTC))
        session.add(row)
        session.flush()
        return {"id": row.id}

    return app


async def _least(app: ASGIApp, count: int) -> float:
    batches = [range(first, first + BATCH) for first in range(0, count, BATCH)]
    return min([await _cpu_us(app, _poll, batch, 200) for batch in batches])


async def _cpu_us(app: ASGIApp, ask: Ask, numbers: Sequence[int], status: int) -> float:
    """Return the microseconds of processor time for each request.

    Raises:
        RuntimeError: an answer has another status.
    """
    scopes, before_s = [ask(number) for number in numbers], time.process_time()
    told = [await _told(app, scope) for scope in scopes]
    took_s = time.process_time() - before_s
    if wrong := [sent for sent in told if sent[0]["status"] != status]:
        raise RuntimeError(f"not {status}: {wrong[0]}")
    return took_s / len(numbers) * 1e6


async def _told(app: ASGIApp, scope: Scope) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": scope["sends"], "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def _scope(method: str, path: str, query: str, body: bytes, **headers: str) -> Scope:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [
            (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
        "sends": body,
    }


def _poll(number: int) -> Scope:
    said = {"host": "127.0.0.1", "authorization": served.credential(number)}
    return _scope("GET", "/device/v1/poll", served.query(BASE), b"", **said)


def _post(number: int) -> Scope:
    body = f'{{"name": "thing {number}"}}'.encode()
    said = {"content_type": "application/json", "content_length": str(len(body))}
    return _scope("POST", "/things", "", body, host="127.0.0.1", **said)


@contextmanager
def _statements(database: Database) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        seen.append(statement)

    for engine in {database.engine, database.writing}:
        event.listen(engine, "before_cursor_execute", note)
    yield seen
    for engine in {database.engine, database.writing}:
        event.remove(engine, "before_cursor_execute", note)


@contextmanager
def _sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder / 'fleetdiff.db'}"


@contextmanager
def run_postgres_url(_folder: Path) -> Iterator[str]:
    """Yield the URL of an empty database on a server of its own."""
    with run_postgres() as server, clone(server) as url:
        yield url


if __name__ == "__main__":
    sys.exit(main())
