"""What the verdict on a canary costs after a hundred reports, and after a million.

The real tick on a real SQLite file, whose tables were filled in bulk. A decision reads sums, never
reports; the goal is on the ratio of the two, which is of that very run.
"""

import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from benchmarks.rows import Row, publish
from service.core.bodies import NewStage
from service.db import pairs
from service.db.migrate import migrate
from service.db.rollout_tables import CanaryReport, CanarySums, Deployment, Rollout
from service.db.session import Database
from service.db.tables import Artifact, Device, DeviceModel, Model, Release
from service.engine import tick
from service.engine.cohorts import create_cohort
from service.engine.rollouts import create_rollout, start
from service.fleet import sums

FEW, MANY = 100, 1_000_000
RATIO_MAX = 2.0  # the work is the same; a busy machine also slows what it does
ROUNDS = 30
PART = 20_000
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIMEOUT = timedelta(days=1)  # that a device has for an update
CLASSES = [f"h{number}" for number in range(8)]


def main() -> int:
    """Measure both and publish the ratio."""
    with tempfile.TemporaryDirectory() as folder:
        spent = {n: measure(Path(folder, f"{n}.db"), n) for n in (FEW, MANY)}
    rows = [
        Row(f"{n:,} reports", "one decision", 1000 * s, "ms of processor (median)")
        for n, s in spent.items()
    ]
    ratio = spent[MANY] / spent[FEW]
    rows.append(
        Row(f"{MANY:,} reports against {FEW}", "one decision", ratio, "times as long", RATIO_MAX)
    )
    return publish("decision", rows)


def measure(file: Path, reports: int) -> float:
    """Return the median processor seconds of an observation and its decision."""
    migrate(f"sqlite:///{file}")
    database = Database(f"sqlite:///{file}", durable=False)
    with database.writer() as session:
        rollout_id = _rollout(session)
    for first in range(0, reports, PART):
        with database.writer() as session:
            _fill(session, rollout_id, range(first, min(first + PART, reports)))
    with database.writer() as session:
        _add_up(session, rollout_id, reports)
        session.get_one(Rollout, rollout_id).classes = CLASSES
    spent = sorted(_decision_s(database, rollout_id) for _ in range(ROUNDS))
    database.close()
    return spent[ROUNDS // 2]


def _decision_s(database: Database, rollout_id: str) -> float:
    with database.writer() as session:
        rollout = session.get_one(Rollout, rollout_id)
        began = time.process_time()
        tick.step(session, rollout, NOW, TIMEOUT)
        session.flush()
        spent = time.process_time() - began
        assert rollout.waiting_for.startswith("safe; soaking"), rollout.waiting_for
    return spent


def _rollout(session: Session) -> str:
    session.add(Model(name="asr", canary_salt="", created_at=NOW))
    session.add(Artifact(sha256="0" * 64, bytes=1, created_at=NOW))
    session.flush()
    release: dict[str, Any] = {"sha256": "0" * 64, "bytes": 1, "hardware": [], "rollback_from": []}
    session.add(
        Release(model="asr", name="r1", seq=1, status="active", published_at=NOW, **release)
    )
    session.flush()
    create_cohort(session, "all", "asr", None, {}, NOW)
    rollout = create_rollout(
        session,
        model="asr",
        release="r1",
        cohort="all",
        stages=[NewStage(share_bp=9999, soak_s=86400), NewStage(share_bp=10_000)],
        gate={"hostile_count": 0, "pairs_promote_least": 50, "class_pairs_promote_least": 10}
        | {"alpha_promote": 0.4},
        on_halt="keep",
        actor="bench",
        now=NOW,
    )
    start(session, rollout.id, "bench", NOW)
    return rollout.id


def _fill(session: Session, rollout_id: str, numbers: range) -> None:
    """Add devices, each with an outcome and a report."""
    ids = [f"{number:08x}" for number in numbers]
    texts = ("serial", "agent_version", "credential_sha256")
    session.execute(
        insert(Device),
        [
            dict.fromkeys(texts, i)
            | {"id": i, "hardware": CLASSES[int(i, 16) % 8], "status": "active"}
            | {"attributes": {}, "tags": {}, "enrolled_at": NOW}
            for i in ids
        ],
    )
    session.execute(
        insert(DeviceModel),
        [
            {"device_id": i, "model": "asr", "running_sha256": "", "order_seq": 0}
            | {"running_release": 1}
            for i in ids
        ],
    )
    whole: dict[str, Any] = {"rollout_id": rollout_id, "stage": 1}
    times = dict.fromkeys(("created_at", "updated_at", "deadline_at"), NOW)
    deployment = whole | times | {"direction": "forward", "from_sha256": "", "release_id": 1}
    deployment |= {"to_sha256": "0" * 64, "state": "confirmed"}
    session.execute(insert(Deployment), [deployment | {"id": i, "device_id": i} for i in ids])
    report = whole | {"counted": True, "received_at": NOW, "ref_words": 400}
    report |= {"d": -3000, "b": 11_000, "old_sub": 44, "new_sub": 32, "old_ms": 1, "new_ms": 1}
    report |= dict.fromkeys(("canary_set", "shard", "runtime", "gate"), "")
    report |= dict.fromkeys(("old_del", "old_ins", "new_del", "new_ins"), 0)
    session.execute(
        insert(CanaryReport),
        [
            report | {"device_id": i, "report_id": i, "hardware": CLASSES[int(i, 16) % 8]}
            for i in ids
        ],
    )


def _add_up(session: Session, rollout_id: str, reports: int) -> None:
    """Write the sums of these reports and the outcomes, as ingest would have by now."""
    session.get_one(Rollout, rollout_id).current_stage.finished = reports
    found = session.execute(pairs.recounted(rollout_id, sums.COLUMNS)).all()
    names = ("arm", "scope", *sums.COLUMNS)
    rows = [dict(zip(names, row[1:], strict=True)) for row in found]
    session.execute(insert(CanarySums), [r | {"rollout_id": rollout_id, "slot": 0} for r in rows])
    assert not sums.disagreements(session, rollout_id)


if __name__ == "__main__":
    sys.exit(main())
