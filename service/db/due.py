"""What a tick looks for: rollouts whose time has come, devices that are late or silent."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from service.db.rollout_tables import OPEN, Deployment, Rollout
from service.db.tables import Device, DeviceModel


def starting(session: Session, now: datetime) -> Sequence[str]:
    """Return the rollouts whose time to start has come, those that wait longest first."""
    rows = select(Rollout.id).where(Rollout.state == "scheduled")
    rows = rows.where(or_(Rollout.start_at.is_(None), Rollout.start_at <= now))
    return session.scalars(rows.order_by(Rollout.start_at, Rollout.id)).all()


def overdue(session: Session, now: datetime, limit: int) -> Sequence[Deployment]:
    """Return open deployments past their deadline; a pause or a way back has none."""
    running = select(Rollout.id).where(Rollout.state == "running")
    rows = (
        select(Deployment)
        .where(Deployment.rollout_id.in_(running), Deployment.direction == "forward")
        .where(Deployment.state.in_(OPEN), Deployment.deadline_at < now)
        .order_by(Deployment.deadline_at, Deployment.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=Deployment)  # who speaks just now is not silent
    )
    return session.scalars(rows).all()


def silent(session: Session, rollout: Rollout, now: datetime, after: timedelta) -> int:
    """Return how many devices have an order of a rollout and were not heard of for so long."""
    rows = select(func.count()).select_from(Deployment)
    rows = rows.join(DeviceModel, DeviceModel.device_id == Deployment.device_id)
    rows = rows.where(DeviceModel.order_deployment == Deployment.id)
    rows = rows.join(DeviceModel.device).where(Deployment.rollout_id == rollout.id)
    rows = rows.where(Deployment.direction == "forward", Deployment.state.in_(OPEN))
    # Whoever was given its full time again only now has had no time to speak.
    rows = rows.where(Device.last_seen_at < now - after, Deployment.deadline_at < now + after)
    return session.execute(rows).scalar_one()
