"""Orders: the wish of the database, granted by the signed family or not at all."""

import logging
from datetime import datetime

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.core import audit, deployments
from service.core.keys import Blocked, Publisher, Trouble, check_key
from service.core.record import Record
from service.core.verified import Verified
from service.db import queries
from service.db.rollout_tables import Deployment
from service.db.session import Database, changed
from service.db.tables import DeviceModel
from trust.order import Order
from trust.roles import DIRECTOR, Family, Release
from trust.sign import LIFETIME, sign_order

logger = logging.getLogger(__name__)
ORDERS_PER_ROUND_MAX = 1000
SEQ_BELIEVED_MAX = 1 << 40  # a forged number above it would use up the numbers of a device


def sign_orders(database: Database, publisher: Publisher, found: Verified, now: datetime) -> None:
    """Sign the orders that devices wait for, and again those that grow old or lost their key.

    Raises:
        Blocked: WRONG_KEY, and nothing was written; LIMIT, and what it allows was.
    """
    assert found.targets is not None
    if found.timestamp is None:  # nothing is published yet that an order could stand beside
        return
    beside = {"root": found.roots[-1].version, "timestamp": found.timestamp.version}
    director = publisher.keys.director
    keyid = director.public_key.keyid
    check_key(DIRECTOR, director, found.targets.get_delegated_role(DIRECTOR).keyids)
    granted, refused = [], []
    with database.reader() as session:
        aged, models = now + LIFETIME["order"] / 2, list(found.families)
        for row in queries.orders_to_sign(session, aged, keyid, models, ORDERS_PER_ROUND_MAX):
            family = found.families[row.model]
            deployment = session.get_one(Deployment, row.deployment_id)
            release = _allowed(family, row, deployment, now)
            if isinstance(release, Release):
                order = _order(publisher.record, beside, release, row, deployment.id, now)
                granted.append((row, order))
            else:
                refused.append((row, release))
    # A limit of its own, which no row can raise: who took the server moves no more than this.
    hour = f"orders in hour {int(now.timestamp()) // 3600}"
    given = publisher.record.highest(hour)
    left = max(0, publisher.orders_max - given)
    granted, waiting = granted[:left], len(granted[left:])
    if granted:
        numbers = {f"order {order.device}": order.seq for _, order in granted}
        publisher.record.take(numbers | {hour: given + len(granted)})
        bodies = [sign_order(order, director) for _, order in granted]
        with database.writer() as session:
            for (row, order), body in zip(granted, bodies, strict=True):
                _give(session, row, order, body, keyid)
            audit.record(session, "orders.sign", DIRECTOR, now, orders=len(bodies))
    if refused:
        with database.writer() as session:
            for row, barred in refused:
                _call_off(session, row, barred, now)
    if waiting:
        detail = f"{publisher.orders_max} orders were given in this hour; {waiting} or more wait"
        raise Blocked(Trouble.LIMIT, DIRECTOR, detail)


def _allowed(
    family: Family, row: DeviceModel, deployment: Deployment, now: datetime
) -> Release | str:
    """Return where the deployment says, or why the signed family lets no such device go there."""
    release = family.release_of(deployment.to_sha256)
    running = family.release_of(row.running_sha256)
    if release is None or release.status != "active" or deployment.device_id != row.device_id:
        return "not active"
    if misfit := release.misfit(row.device.hardware, row.device.agent_version):
        return misfit
    if running and not release.takes_back(running, now):
        return "no edge back"
    return release


def _order(
    record: Record, beside: dict[str, int], to: Release, row: DeviceModel, wish: str, now: datetime
) -> Order:
    stored = row.order_seq if row.order_seq <= SEQ_BELIEVED_MAX else 0
    moment = now.replace(microsecond=0)
    return Order(
        device=row.device_id,
        seq=max(record.highest(f"order {row.device_id}"), stored) + 1,
        issued=moment,
        expires=moment + LIFETIME["order"],
        model=row.model,
        release=to.name,
        sha256=to.sha256,
        hold=False,
        **beside,
        deployment=wish,
    )


def _give(session: Session, row: DeviceModel, order: Order, body: bytes, keyid: str) -> None:
    """Write an order unless the device wants something else by now, or got another one."""
    same = (
        DeviceModel.device_id == row.device_id,
        DeviceModel.deployment_id == order.deployment,
        DeviceModel.order_body.is_not_distinct_from(row.order_body),
    )
    given = {
        "order_seq": order.seq,
        "order_deployment": order.deployment,
        "order_expires_at": order.expires,
        "order_keyid": keyid,
        "order_body": body,
    }
    changed(session, update(DeviceModel).where(*same).values(given))


def _call_off(session: Session, row: DeviceModel, barred: str, now: datetime) -> None:
    """End a wish that nobody may grant, so that it is not looked at for ever."""
    logger.warning("order refused", extra={"deployment": row.deployment_id, "why": barred})
    deployment = session.get_one(Deployment, row.deployment_id)
    deployments.finish(session, deployment, "canceled", "not allowed", now)
    wish = (DeviceModel.device_id == row.device_id, DeviceModel.deployment_id == deployment.id)
    changed(session, update(DeviceModel).where(*wish).values(deployment_id=None))
