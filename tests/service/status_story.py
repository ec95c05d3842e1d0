"""A believable fleet for the status page, filled through the same verbs that the server uses.

`r1` is the base, `r2` was rolled out to everyone, `r3` was halted by the canary and rolled back,
`r4` is on its way in stage 2. The verdicts are the policy's own.
"""

import hashlib
import random
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from service.core import canary, policy
from service.core.bodies import NewStage
from service.db import queries
from service.db.rollout_tables import CanaryReport, Cohort, Deployment, Rollout
from service.db.session import Database
from service.db.tables import (
    Artifact,
    AuditHead,
    Device,
    DeviceModel,
    MetadataFile,
    Model,
    PublisherState,
    Release,
    Table,
)
from service.engine import cohorts, rollouts, tick
from service.fleet import sums
from tests.service import tally
from trust.audit import FIRST

NOW = datetime(2026, 3, 14, 9, 26, tzinfo=UTC)
MODEL, COHORT = "asr-en-edge", "everyone"
DEVICES = 400
RELEASE_BYTES, PATCH_BYTES = 42_000_000, 1_350_000
WORDS = 400  # reference words of one device's shard
STAGES = [NewStage(share_bp=share) for share in (1500, 4000, 10_000)]
GATE = {"hostile_count": 0, "hostile_share": 0.0, "pairs_promote_least": 25, "sigma": 0.02}
GATE |= {"class_pairs_promote_least": 5}
ROLES = ("root", "targets", "snapshot", "timestamp")


def create_tables(database: Database) -> None:
    """Make the tables; the schema's own history is tested elsewhere."""
    Table.metadata.create_all(database.engine)
    with database.writer() as session:
        session.add(AuditHead(id=1, seq=0, sha256=FIRST))


def add_metadata(session: Session, expires_at: datetime) -> None:
    """Pretend that everything is signed, the timestamp until then, and the publisher awake."""
    for role in ROLES:
        fields = {"version": 1, "body": b"{}", "accepted_at": NOW}
        end = expires_at if role == "timestamp" else NOW + timedelta(days=300)
        session.add(MetadataFile(role=role, expires_at=end, **fields))
    session.add(PublisherState(id=1, round_at=NOW, problems=[]))


def add_model(session: Session, name: str = MODEL) -> None:
    session.add(Model(name=name, canary_salt="s", created_at=NOW - timedelta(days=40)))
    session.flush()


def add_release(session: Session, name: str, seq: int, model: str = MODEL) -> Release:
    sha256 = hashlib.sha256(f"{model}/{name}".encode()).hexdigest()
    session.add(Artifact(sha256=sha256, bytes=RELEASE_BYTES, created_at=NOW))
    session.flush()
    release = Release(
        model=model,
        name=name,
        seq=seq,
        status="active",
        sha256=sha256,
        bytes=RELEASE_BYTES,
        hardware=[],
        rollback_from=[],
        published_at=NOW,
    )
    session.add(release)
    session.flush()
    return release


def add_devices(session: Session, release: Release, number: int) -> None:
    """Add devices that run a release."""
    ids = [hashlib.sha256(f"device {i}".encode()).hexdigest()[:16] for i in range(number)]
    for i, device_id in enumerate(ids):
        session.add(
            Device(
                id=device_id,
                serial=f"sn-{i}",
                hardware=f"h{i % 3}",
                status="active",
                attributes={},
                tags={},
                agent_version="1",
                credential_sha256="",
                enrolled_at=NOW,
            )
        )
    session.flush()
    for device_id in ids:
        session.add(
            DeviceModel(
                device_id=device_id,
                model=release.model,
                running_sha256=release.sha256,
                running_release=release.id,
                order_seq=0,
            )
        )
    session.flush()


def fill(session: Session, now: datetime = NOW) -> None:
    """Tell the whole story, ending at `now`."""
    add_metadata(session, now + timedelta(days=2))
    add_model(session)
    releases = [add_release(session, f"r{number}", number) for number in (1, 2, 3, 4)]
    add_devices(session, releases[0], DEVICES)
    cohorts.create_cohort(session, COHORT, MODEL, None, {"hardware": ["h0", "h1", "h2"]}, now)
    done = _begin(session, "r2", "keep", now - timedelta(days=9))
    for stage in (1, 2, 3):
        _stage(session, done, stage, change=-0.024, now=now - timedelta(days=9 - stage))
    bad = _begin(session, "r3", "revert", now - timedelta(days=3))
    _stage(session, bad, 1, change=0.06, now=now - timedelta(days=3, hours=-2))
    _send_back(session, bad, now - timedelta(days=2))
    live = _begin(session, "r4", "revert", now - timedelta(hours=30))
    _stage(session, live, 1, change=-0.024, now=now - timedelta(hours=20))
    _stage(session, live, 2, change=0.028, now=now - timedelta(hours=1), most=30, open_ends=9)


def _begin(session: Session, release: str, on_halt: str, now: datetime) -> Rollout:
    made = rollouts.create_rollout(
        session,
        model=MODEL,
        release=release,
        cohort=COHORT,
        stages=STAGES,
        gate=GATE,
        on_halt=on_halt,
        actor="mina",
        now=now,
    )
    made.salt = release  # the same devices in the same stages, every time
    made.full_downloads = True  # the story has no patches
    return rollouts.start(session, made.id, "mina", now)


def _stage(
    session: Session,
    rollout: Rollout,
    number: int,
    *,
    change: float,
    now: datetime,
    most: int = DEVICES,
    open_ends: int = 0,
) -> None:
    """Let the devices of a stage take the release, report, and the tick decide."""
    assert rollout.stage == number, (rollout.release_id, rollout.stage, rollout.waiting_for)
    dice = random.Random(f"{rollout.release_id}/{number}")
    plan = STAGES[number - 1]
    release = session.get_one(Release, rollout.release_id)
    took = {d for (d,) in session.query(Deployment.device_id).filter_by(rollout_id=rollout.id)}
    cohort = queries.first(session, Cohort, name=COHORT)
    assert cohort is not None
    ids = sorted(session.scalars(queries.cohort_devices(cohort)))
    ours = [i for i in ids if policy.bucket(rollout.salt, i) < plan.share_bp and i not in took]
    for place, device_id in enumerate(ours[: most + open_ends]):
        state = "confirmed"
        if place >= most:
            state = "downloading"
        elif place % 97 == 61:
            state = "failed"
        elif place % 83 == 31:
            state = "refused"
        _deploy(session, rollout, release, device_id, state, now)
        if state == "confirmed":
            _report(session, rollout, device_id, dice, change, now)
    tally.recount(session)
    tick.step(session, rollout, now, timedelta(days=1))


def _deploy(
    session: Session, rollout: Rollout, release: Release, device_id: str, state: str, now: datetime
) -> None:
    row = session.get_one(DeviceModel, device_id)
    session.add(
        Deployment(
            id=f"{rollout.id}/{device_id}",
            rollout_id=rollout.id,
            device_id=device_id,
            direction="forward",
            stage=rollout.stage,
            from_sha256=row.running_sha256,
            to_sha256=release.sha256,
            release_id=release.id,
            state=state,
            reason="",
            bytes_sent=PATCH_BYTES,
            created_at=now,
            updated_at=now,
            deadline_at=now + timedelta(days=1),
        )
    )
    stage = rollout.current_stage
    stage.finished += state != "downloading"
    stage.failures += state in ("failed", "refused")
    if state == "confirmed":
        row.running_sha256, row.running_release = release.sha256, release.id


def _report(
    session: Session,
    rollout: Rollout,
    device_id: str,
    dice: random.Random,
    change: float,
    now: datetime,
) -> None:
    old = round(WORDS * dice.gauss(0.11, 0.012))
    new = max(0, old + round(WORDS * dice.gauss(change, 0.006)))
    text = ("canary_set", "shard", "runtime", "gate")
    zero = ("old_del", "old_ins", "new_del", "new_ins", "old_ms", "new_ms")
    d, b = canary.contribution(policy.gate_of(rollout.gate), old, new, WORDS)
    hardware = session.get_one(Device, device_id).hardware
    session.add(
        CanaryReport(
            rollout_id=rollout.id,
            device_id=device_id,
            report_id=device_id,
            stage=rollout.stage,
            counted=True,
            hardware=hardware,
            ref_words=WORDS,
            old_sub=old,
            new_sub=new,
            d=d,
            b=b,
            received_at=now,
            **dict.fromkeys(text, ""),
            **dict.fromkeys(zero, 0),
        )
    )
    pair = sums.Pair(d, b, sums.Errors(old, new, WORDS))
    scopes = ("all", f"stage:{rollout.stage}", f"hw:{hardware}")
    sums.add(session, rollout.id, device_id, "canary", dict.fromkeys(scopes, pair))


def _send_back(session: Session, rollout: Rollout, now: datetime) -> None:
    """All but two devices of a halted rollout are back on what they came from."""
    assert rollout.state == "halted", rollout.waiting_for
    forward = session.query(Deployment).filter_by(rollout_id=rollout.id, state="confirmed").all()
    for place, way in enumerate(forward):
        back = session.query(Release).filter_by(sha256=way.from_sha256).one()
        home = place >= 2
        session.add(
            Deployment(
                id=f"{way.id}/back",
                rollout_id=rollout.id,
                device_id=way.device_id,
                direction="back",
                stage=way.stage,
                from_sha256=way.to_sha256,
                to_sha256=way.from_sha256,
                release_id=back.id,
                state="rolled_back" if home else "downloading",
                reason="",
                bytes_sent=0,
                created_at=now,
                updated_at=now,
                deadline_at=now + timedelta(days=1),
            )
        )
        if home:
            row = session.get_one(DeviceModel, way.device_id)
            row.running_sha256, row.running_release = back.sha256, back.id
    tally.recount(session)
