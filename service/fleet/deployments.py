"""One device inside one rollout: the states a deployment goes through, each once.

`offered > downloading > applied > activated` is what the device says on its way; an outcome is
final: `confirmed` (its poll carried the new bytes), `refused`, `failed`, `canceled`, or for the
way back `rolled_back`. Replays and late messages change nothing.
"""

import secrets
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, case, insert, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_dict, manager_of_class, set_committed_value

from service.db import queries
from service.db.entries import of_device
from service.db.rollout_tables import COUNTED, LIVE, OPEN, Budget, Deployment, Rollout, Stage
from service.db.session import changed, written
from service.db.tables import DeviceModel, Model, Release
from service.fleet.ground import Ground

_TABLES: Any = [table.__table__ for table in (Stage, Rollout, Model, Deployment, DeviceModel)]
_STAGE, _ROLLOUT, _MODEL, _DEPLOYMENT, _DEVICE_MODEL = _TABLES
ATTEMPTS_MAX = 4
RETRY_FIRST, RETRY_TIMES = timedelta(hours=1), 6  # then after 6 hours and 36


_ROOM = or_(_STAGE.c.in_flight_max.is_(None), _STAGE.c.in_flight < _STAGE.c.in_flight_max)
_AS_READ = (
    select(_ROLLOUT.c.id)
    .join(_MODEL, _MODEL.c.name == _ROLLOUT.c.model)
    .where(_ROLLOUT.c.id == bindparam("of"), _ROLLOUT.c.stage == bindparam("running"))
    .where(_ROLLOUT.c.state == "running", _ROLLOUT.c.generation == bindparam("seen"))
    .where(_MODEL.c.generation == bindparam("known"))
)
_TAKE = (
    update(_STAGE)
    .where(_STAGE.c.rollout_id == bindparam("of"), _STAGE.c.number == bindparam("running"))
    .where(_STAGE.c.state == "running", _ROOM, _AS_READ.exists())
    .values(in_flight=_STAGE.c.in_flight + 1)
)
_ADD = insert(_DEPLOYMENT)
_WANT = (
    update(_DEVICE_MODEL)
    .where(_DEVICE_MODEL.c.device_id == bindparam("of"))
    .values(deployment_id=bindparam("wish"))
)


class Stale(Exception):
    """What an answer was about to follow from is not what the database holds any more."""


def grant(
    session: Session, ground: Ground, rollout: Rollout, bytes_worst: int, now: datetime
) -> tuple[str, int]:
    """Take one place in flight of the running stage, and its cost out of the rollout's budget.

    Each is one conditional UPDATE, so that any number of workers never overshoot a cap.

    Returns:
        The cap that is reached: "in_flight", "per_minute" or "bytes"; nothing if it is granted.
        The bytes that the rollout's other devices spend, if somebody counts them.

    Raises:
        Stale: the rollout, or anything else of the model, changed since it was read.
    """
    as_read = {"of": rollout.id, "running": rollout.stage, "seen": rollout.generation}
    as_read |= {"known": ground.generation}
    if not written(session, _TAKE, as_read):
        if session.connection().execute(_AS_READ, as_read).first() is None:
            raise Stale
        return "in_flight", 0
    if rollout.budget is None:
        return "", 0
    reached, committed = _spend(session, rollout.budget, bytes_worst, now)
    if reached:
        count(session, rollout.id, rollout.stage, in_flight=-1)
    return reached, committed


def _spend(session: Session, budget: Budget, bytes_worst: int, now: datetime) -> tuple[str, int]:
    ours, minute = Budget.rollout_id == budget.rollout_id, int(now.timestamp()) // 60
    after = Budget.bytes_committed + bytes_worst
    room = or_(Budget.bytes_max.is_(None), after <= Budget.bytes_max)
    # A worker whose clock is behind counts into the newest minute.
    later = Budget.minute < minute
    turn = or_(Budget.per_minute_max.is_(None), later, Budget.granted < Budget.per_minute_max)
    newest = {
        "minute": case((later, minute), else_=Budget.minute),
        "granted": case((later, 1), else_=Budget.granted + 1),
    }
    spending = update(Budget).where(ours, turn, room).values(bytes_committed=after, **newest)
    spending = spending.execution_options(synchronize_session=False)
    spent = select(Budget.bytes_committed).where(ours)
    before = session.scalars(spent).one()
    if changed(session, spending, touches=()):
        return "", before
    committed = session.scalars(spent).one()
    full = budget.bytes_max is not None and committed + bytes_worst > budget.bytes_max
    return "bytes" if full else "per_minute", committed


def offer(
    session: Session,
    rollout: Rollout,
    row: DeviceModel,
    direction: str,
    release: Release,
    before: Deployment | None,
    timeout: timedelta,
    now: datetime,
    bytes_worst: int = 0,
) -> Deployment:
    """Add a deployment, or open the one `before` again: called off, or failed and may try again."""
    # It takes its place in the stage that runs now, and will free it there.
    values: dict[str, Any] = {"state": "offered", "reason": "", "stage": rollout.stage}
    values |= {"from_sha256": row.running_sha256, "way": "", "retry_at": None}
    values |= {"updated_at": now, "deadline_at": now + timeout, "bytes_reserved": bytes_worst}
    if before is None:
        values |= {"id": secrets.token_hex(8), "direction": direction, "created_at": now}
        values |= {"rollout_id": rollout.id, "device_id": row.device_id}
        values |= {"release_id": release.id, "to_sha256": release.sha256}
        values |= {"bytes_sent": 0, "failures": 0, "failed_way": ""}
        written(session, _ADD, values, touches=[of_device(row.device_id)])
        made: Deployment = manager_of_class(Deployment).new_instance()
        instance_dict(made).update(values)  # as if it had been read: the unit of work knows nothing
        return made
    if before.state in COUNTED[direction]:
        count(session, rollout.id, before.stage, **{before.state: -1})
    if before.state not in (*OPEN, "canceled"):
        # Another attempt: the device gave up on the one before by its id.
        row.deployment_id = None
        session.flush()
        before.id = secrets.token_hex(8)
    values["bytes_reserved"] += before.bytes_sent
    for name, value in values.items():
        setattr(before, name, value)
    session.flush()
    return before


def want(session: Session, row: DeviceModel, wanted: Deployment | None) -> None:
    """Note what a device shall do: for that it is given an order."""
    wish = wanted.id if wanted else None
    if row.deployment_id != wish:
        session.flush()
        values = {"of": row.device_id, "wish": wish}
        written(session, _WANT, values, touches=[of_device(row.device_id)])
        set_committed_value(row, "deployment_id", wish)


def progress(session: Session, deployment: Deployment, state: str, now: datetime) -> None:
    """Move an open deployment forward on its way; never back, never out of an outcome."""
    session.flush()
    earlier = Deployment.state.in_(OPEN[: OPEN.index(state)])
    moving = update(Deployment).where(Deployment.id == deployment.id, earlier)
    touches = [of_device(deployment.device_id)]
    changed(session, moving.values(state=state, updated_at=now), touches)
    session.refresh(deployment)


def prolong(session: Session, rollout_id: str, deadline: datetime) -> None:
    """Give what is open in a rollout its full time again."""
    is_open = (Deployment.rollout_id == rollout_id, Deployment.state.in_(OPEN))
    prolonging = update(Deployment).where(*is_open).values(deadline_at=deadline)
    session.execute(prolonging, execution_options={"touches": ()})


def cancel_all(session: Session, rollout: Rollout, closed: str, now: datetime) -> None:
    """Close the stage of a rollout that ended, and call off what is on its way forward.

    Whoever is given a place just then has locked the stage: it is waited for, and called off by
    the second pass; whoever comes later finds the stage closed.
    """
    ours = (Deployment.rollout_id == rollout.id, Deployment.direction == "forward")
    calling_off = (
        update(Deployment)
        .where(*ours, Deployment.state.in_(OPEN))
        .values(state="canceled", reason=rollout.state, updated_at=now)
        .returning(Deployment.stage)
        .execution_options(synchronize_session=False)
    )
    for _ in range(2):
        for number, places in Counter(session.scalars(calling_off)).items():
            count(session, rollout.id, number, in_flight=-places, canceled=places)
        rollout.current_stage.state = closed
        session.flush()
    session.expire_all()


def finish(
    session: Session, deployment: Deployment, state: str, reason: str, now: datetime
) -> None:
    """Give an open deployment its outcome and free its place; what has an outcome keeps it."""
    session.flush()
    still_open = update(Deployment).where(
        Deployment.id == deployment.id, Deployment.state.in_(OPEN)
    )
    outcome: dict[str, Any] = {"state": state, "reason": reason, "updated_at": now}
    before = deployment.failures
    if state in ("failed", "refused"):
        # A refusal is the device's own judgement: it would be the same again.
        again = state == "failed" and before + 1 < ATTEMPTS_MAX
        pause = RETRY_FIRST * RETRY_TIMES**before
        outcome |= {"failures": before + 1, "retry_at": now + pause if again else None}
    touches = [of_device(deployment.device_id)]
    ended = changed(session, still_open.values(outcome), touches)
    if not ended:
        session.refresh(deployment)
    for name in outcome if ended else ():
        set_committed_value(deployment, name, outcome[name])
    if ended and state in COUNTED[deployment.direction]:
        more = {state: 1}
        if deployment.direction == "forward":
            # In the test of failures a device counts by its first outcome, however often it tries.
            failures = int(not before and state in ("refused", "failed"))
            finished = int(not before and state != "canceled")
            more |= {"in_flight": -1, "finished": finished, "failures": failures}
        count(session, deployment.rollout_id, deployment.stage, **more)
        unspent = max(0, deployment.bytes_reserved - deployment.bytes_sent)
        budget = update(Budget).where(Budget.rollout_id == deployment.rollout_id)
        if unspent:
            back = budget.values(bytes_committed=Budget.bytes_committed - unspent)
            changed(session, back, touches=())


def confirm_late(session: Session, deployment: Deployment) -> None:
    """Count as a success what was called off after the device had switched."""
    deployment.state, deployment.reason = "confirmed", "after the halt"
    count(session, deployment.rollout_id, deployment.stage, canceled=-1, confirmed=1)


def withdraw_success(session: Session, row: DeviceModel, left: str, now: datetime) -> None:
    """Count an update as failed whose bytes a device left again, silently, in a live rollout.

    The one way out of an outcome, to a worse one: a success lasts as long as polls show it.
    """
    seq = row.release.seq if row.release else 0
    for gone in queries.deployments_of(session, row.device_id):
        proven = gone.state == "confirmed" and gone.to_sha256 == left
        behind = seq < gone.release.seq or row.running_sha256 == gone.from_sha256
        if proven and gone.rollout.state in LIVE and behind:
            gone.state, gone.reason, gone.updated_at = "failed", "went_back", now
            worse = int(not gone.failures)  # it counts once
            gone.failures += 1
            more = {"confirmed": -1, "failed": 1, "failures": worse}
            count(session, gone.rollout_id, gone.stage, **more)


def retry(session: Session, now: datetime, touches: str, *which: Any) -> int:
    """Let devices whose attempts failed try again now; returns how many."""
    live = Deployment.rollout_id.in_(select(Rollout.id).where(Rollout.state.in_(LIVE)))
    useful = or_(live, Deployment.direction == "back")  # there is one after a halt only
    out = (Deployment.state.in_(("failed", "refused")), useful)
    retrying = update(Deployment).where(*out, *which).values(retry_at=now)
    retrying = retrying.execution_options(synchronize_session=False)
    done: Any = session.execute(retrying, execution_options={"touches": [touches]})
    return int(done.rowcount)


def count(session: Session, rollout_id: str, number: int, **more: int) -> None:
    """Add to what a stage counts: devices, never events, and their bytes."""
    values = {name: getattr(Stage, name) + n for name, n in more.items() if n}
    stage = update(Stage).where(Stage.rollout_id == rollout_id, Stage.number == number)
    changed(session, stage.values(values), touches=())
