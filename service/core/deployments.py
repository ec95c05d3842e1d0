"""One device inside one rollout: the states a deployment goes through, each once.

`offered > downloading > applied > activated` is what the device says on its way; an outcome is
final: `confirmed` (its poll carried the new bytes), `refused`, `failed`, `canceled`, or for the
way back `rolled_back`. Replays and late messages change nothing.
"""

import secrets
from datetime import datetime, timedelta

from sqlalchemy import or_, update
from sqlalchemy.orm import Session

from service.db.rollout_queries import OPEN
from service.db.rollout_tables import Deployment, Rollout, Stage


def grant(session: Session, rollout: Rollout) -> bool:
    """Take one place in flight of the running stage; False if its cap is reached.

    One conditional UPDATE, so that any number of workers never overshoot the cap.
    """
    taken = session.execute(
        update(Stage)
        .where(
            Stage.rollout_id == rollout.id,
            Stage.number == rollout.stage,
            or_(Stage.in_flight_max.is_(None), Stage.in_flight < Stage.in_flight_max),
        )
        .values(in_flight=Stage.in_flight + 1)
    )
    return bool(taken.rowcount == 1)  # type: ignore[attr-defined]


def create(
    session: Session,
    rollout: Rollout,
    device_id: str,
    *,
    direction: str,
    from_sha256: str,
    to_sha256: str,
    release_id: int,
    timeout: timedelta,
    now: datetime,
) -> Deployment:
    """Add a deployment in state `offered`."""
    deployment = Deployment(
        id=secrets.token_hex(8),
        rollout_id=rollout.id,
        device_id=device_id,
        direction=direction,
        stage=rollout.stage,
        from_sha256=from_sha256,
        to_sha256=to_sha256,
        release_id=release_id,
        state="offered",
        reason="",
        bytes_sent=0,
        created_at=now,
        updated_at=now,
        deadline_at=now + timeout,
    )
    session.add(deployment)
    session.flush()
    return deployment


def progress(deployment: Deployment, state: str, now: datetime) -> None:
    """Move an open deployment forward on its way; never back, never out of an outcome."""
    if deployment.state in OPEN and OPEN.index(state) > OPEN.index(deployment.state):
        deployment.state = state
        deployment.updated_at = now


def finish(
    session: Session, deployment: Deployment, state: str, reason: str, now: datetime
) -> bool:
    """Give an open deployment its outcome and free its place; False if it had one already."""
    session.flush()
    closed = session.execute(
        update(Deployment)
        .where(Deployment.id == deployment.id, Deployment.state.in_(OPEN))
        .values(state=state, reason=reason, updated_at=now)
    )
    session.refresh(deployment)
    if closed.rowcount != 1:  # type: ignore[attr-defined]
        return False
    if deployment.direction == "forward":
        session.execute(
            update(Stage)
            .where(Stage.rollout_id == deployment.rollout_id, Stage.number == deployment.stage)
            .values(in_flight=Stage.in_flight - 1)
        )
    return True
