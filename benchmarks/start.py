"""What it takes to start a rollout to 10,000 devices and to a million, on SQLite and on PostgreSQL.

Rows are those that statements inserted, changed or deleted, as the database counts them. Processor
time is this process's, with the client that asks, and on PostgreSQL that of its servers besides.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import psycopg
from sqlalchemy import event, text

from benchmarks import caps, load
from benchmarks.rows import Row, publish
from service.db.session import Database
from tests.service.crowd import crowd
from tests.service.world import MODEL, World, opened, patient

FLEETS, BATCH, TIMES = (10_000, 1_000_000), 10_000, 21
START_MS_MAX, GROWTH_MAX = 100, 3
LINES = {"create": "POST /v1/rollouts", "start": "POST …/start", "show": "GET /v1/rollouts/{id}"}


def main() -> int:
    """Measure and publish."""
    rows = []
    for name, located in caps.DATABASES.items():
        with tempfile.TemporaryDirectory() as folder, located(Path(folder)) as url:
            settings = patient(database=url, artifacts=str(Path(folder) / "artifacts"))
            with opened(settings, Path(folder)) as world:
                rows += _measure(world.found(), name)
    return publish("start", rows)


def _measure(world: World, name: str) -> list[Row]:
    world.publish_all()
    database: Database = world.app.state.database
    rows, found, there = [], [], 0
    for devices in FLEETS:
        print(f"{name}, {devices:,} devices ...", file=sys.stderr, flush=True)
        while there < devices:
            with database.writer() as session:
                crowd(session, BATCH, f"{there}-", world.now, runs="r1")
            there += BATCH
        if not database.is_sqlite:  # as its own housekeeping does
            with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as held:
                held.execute(text("VACUUM ANALYZE"))
        written, cpu_ms = _asked(world, database)
        found.append((written, cpu_ms["create"] + cpu_ms["start"]))
        work = f"a rollout to {devices:,} devices, {name}"
        rows += [Row(work, f"processor time of {LINES[key]}", cpu_ms[key], "ms") for key in LINES]
        rows += [
            Row(work, "processor time, created and started", found[-1][1], "ms", START_MS_MAX),
            Row(work, "rows written", written, "rows"),
        ]
    (few, small), (many, large) = found
    work = f"a rollout to 1,000,000 devices against one to 10,000, {name}"
    more = Row(work, "rows written more", abs(many - few), "rows", 0)
    return [*rows, more, Row(work, "processor time", large / small, "times", GROWTH_MAX)]


def _asked(world: World, database: Database) -> tuple[int, dict[str, float]]:
    """Return the rows that creating and starting write, and the milliseconds of each request."""
    used: dict[str, list[float]] = {key: [] for key in LINES}
    counts = []
    body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": [{"share_bp": 10_000}]}
    for _ in range(TIMES):
        written: list[int] = []

        def count(_connection: Any, cursor: Any, *_more: Any, to: list[int] = written) -> None:
            if cursor.description is None:
                to.append(max(cursor.rowcount, 0))

        event.listen(database.writing, "after_cursor_execute", count)
        made, ms = _timed(database, lambda: world.ok("POST", "/v1/rollouts", json=body))
        used["create"].append(ms)
        path = f"/v1/rollouts/{made['id']}"
        _, ms = _timed(database, lambda path=path: world.ok("POST", f"{path}/start"))
        used["start"].append(ms)
        event.remove(database.writing, "after_cursor_execute", count)
        counts.append(sum(written))
        _, ms = _timed(database, lambda path=path: world.ok("GET", path))
        used["show"].append(ms)
        world.ok("POST", f"{path}/halt", json={"reason": "the next one"})
    # Once before: what is imported and compiled in a process is so only once.
    return max(counts), {key: fmean(of[1:]) for key, of in used.items()}


def _timed(database: Database, ask: Callable[[], Any]) -> tuple[Any, float]:
    theirs_s = _servers_cpu_s(database)
    before_s = time.process_time()
    answer = ask()
    ours_s = time.process_time() - before_s
    return answer, (ours_s + _servers_cpu_s(database) - theirs_s) * 1e3


def _servers_cpu_s(database: Database) -> float:
    """Return the processor seconds of every PostgreSQL process that serves a connection."""
    if database.is_sqlite:
        return 0
    url = database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname > ''"
        return sum(load.cpu_s(pid) for (pid,) in connection.execute(query))


if __name__ == "__main__":
    sys.exit(main())
