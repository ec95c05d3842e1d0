"""The SELECTs of orders: who waits for one, goal by goal."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, joinedload

from service.db.rollout_tables import OPEN, Deployment, Rollout
from service.db.tables import DeviceModel

# By an expression, so that no index of it serves: that would lead through the whole fleet, and
# there is one of those few who are under way.
_their_model = DeviceModel.model.concat("")
_UNSIGNED = DeviceModel.order_deployment.is_distinct_from(DeviceModel.deployment_id)


class Goal(NamedTuple):
    """Where some devices wait to be ordered to."""

    rollout: Rollout
    model: str
    sha256: str


def waits_for_order(aged: datetime, keyid: str, models: Sequence[str]) -> list[Any]:
    """Return what is true of who has no order, or one that ends before `aged` or of another key."""
    old = DeviceModel.order_expires_at < aged
    foreign = DeviceModel.order_keyid.is_distinct_from(keyid)
    due = or_(_UNSIGNED, foreign, old)
    under_way = DeviceModel.deployment_id.is_not(None)
    return [under_way, Deployment.state.in_(OPEN), _their_model.in_(models), due]


def goals(session: Session, waits: Sequence[Any], limit: int) -> list[Goal]:
    """Return where the devices that wait for an order wish to go."""
    goal = (Deployment.rollout_id, DeviceModel.model, Deployment.to_sha256)
    rows = select(*goal).join(Deployment, Deployment.id == DeviceModel.deployment_id)
    rows = rows.where(*waits).distinct().order_by(*goal).limit(limit)
    found = session.execute(rows).all()
    return [Goal(session.get_one(Rollout, rollout), *to) for rollout, *to in found]


def waiting(
    session: Session, waits: Sequence[Any], goal: Goal, limit: int
) -> Sequence[tuple[DeviceModel, Deployment]]:
    """Return the devices that wait for an order to go there, those that had one first."""
    rows = (
        select(DeviceModel, Deployment)
        .join(Deployment, Deployment.id == DeviceModel.deployment_id)
        .options(joinedload(DeviceModel.device))
        .where(*waits, Deployment.rollout_id == goal.rollout.id)
        .where(_their_model == goal.model, Deployment.to_sha256 == goal.sha256)
        .order_by(_UNSIGNED, DeviceModel.device_id)
        .limit(limit)
    )
    return [(row, deployment) for row, deployment in session.execute(rows)]
