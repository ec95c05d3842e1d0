"""What planning costs: 300 releases and 3,000 patches, with and without constraints.

Processor time of this process, the least of several rounds. A poll that carries a plan reads its
releases and patches from the database first; that is what planning is compared with, on the same
graph.
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from benchmarks.rows import Row, publish
from service.core.chain import HASHED_HOPS_MAX, PROCESS_BYTES, Edge, File, Limits, Planner
from service.db.columns import Table
from service.db.migrate import migrate
from service.db.session import Database
from service.db.tables import Artifact, Model, Patch, Release
from service.fleet import plans

RELEASES, EDGES, DEVICES, ROUNDS = 300, 3000, 100, 5
MODEL_BYTES = 30_000_000
REACH = 30  # a patch leads at most so many releases further
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIGHT = Limits(
    network="slow",
    memory_bytes=PROCESS_BYTES + 12_000_000,
    room_bytes=MODEL_BYTES + 6_000_000,
    hashed_hops=HASHED_HOPS_MAX - 2,
    goes_back=True,
)


def main() -> int:
    """Measure and publish."""
    files, edges = graph()
    work = f"{RELEASES} releases, {EDGES} patches"
    rows, worst = [], 0.0
    for name, limits in (("no constraint", Limits()), ("every constraint", TIGHT)):
        times = sorted(
            least_ms(partial(planned, files, edges, file.sha256, limits))
            for file in random.Random(2).sample(files[:-1], DEVICES)
        )
        worst = max(worst, times[-1])
        rows.append(Row(work, f"plan, {name}, median device", times[DEVICES // 2], "ms"))
        rows.append(Row(work, f"plan, {name}, worst of {DEVICES} devices", times[-1], "ms"))
    with tempfile.TemporaryDirectory() as folder:
        reading = reading_ms(Path(folder), files, edges)
    rows.append(Row(work, "reading them from SQLite", reading, "ms"))
    rows.append(Row(work, "worst plan / reading them", worst / reading, "", 1.0))
    return publish("plan", rows)


def planned(files: list[File], edges: list[Edge], running: str, limits: Limits) -> None:
    """Plan for one device, from the graph on."""
    Planner(edges, files, files[-1].sha256, limits).pipelines(running)


def graph() -> tuple[list[File], list[Edge]]:
    """Return releases in a row, and patches forward between them, of every kind and state."""
    draw = random.Random(1)
    files = [File(f"{n:064x}", MODEL_BYTES + n) for n in range(RELEASES)]
    edges: dict[tuple[int, int], Edge] = {}
    while len(edges) < EDGES:
        source = draw.randrange(RELEASES - 1)
        target = min(source + draw.randint(1, REACH), RELEASES - 1)
        edges[source, target] = Edge(
            files[source].sha256,
            files[target].sha256,
            f"{1_000_000 + RELEASES * source + target:064x}",
            draw.randint(200_000, 400_000) * (target - source),
            hashed=draw.random() < 0.3,
            memory_bytes=draw.randint(500_000, 4_000_000),
            failed=draw.choice([0, 0, 0, 5]),
            ok=draw.randint(0, 1000),
            withdrawn=draw.choice(["", "", "", "", "bad"]),
        )
    return files, list(edges.values())


def reading_ms(folder: Path, files: list[File], edges: list[Edge]) -> float:
    """Return what a planner costs whose graph comes from a database."""
    url = f"sqlite:///{folder / 'bench.db'}"
    migrate(url)
    database = Database(url, durable=False)
    numbers = {file.sha256: n for n, file in enumerate(files, 1)}
    numbered = enumerate(files, 1)
    blobs = [{"sha256": blob.sha256, "bytes": blob.bytes} for blob in (*files, *edges)]
    rows: dict[type[Table], list[dict[str, Any]]] = {
        Model: [{"name": "m", "canary_salt": ""}],
        Artifact: blobs,
        Release: [{"id": n, "seq": n, "name": f"r{n}", **vars(file)} for n, file in numbered],
        Patch: [
            {"sha256": edge.sha256, "bytes": edge.bytes, "kind": "sparse"}
            | {"from_release": numbers[edge.source], "to_release": numbers[edge.target]}
            for edge in edges
        ],
    }
    same = {"model": "m", "status": "active", "hardware": [], "rollback_from": []}
    same |= {"created_at": NOW, "published_at": NOW}
    with database.writer() as session:
        for table, given in rows.items():
            shared = {name: same[name] for name in same if hasattr(table, name)}
            session.execute(insert(table), [row | shared for row in given])

    def read() -> None:
        with database.reader() as session:
            target = session.get_one(Release, RELEASES)
            plans.planner_of(session, target, Limits())

    found = least_ms(read)
    database.close()
    return found


def least_ms(work: Callable[[], object]) -> float:
    """Return the processor milliseconds of some work, the least of several rounds."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        rounds.append((time.process_time() - start) * 1000)
    return min(rounds)


if __name__ == "__main__":
    sys.exit(main())
