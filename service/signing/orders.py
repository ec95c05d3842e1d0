"""Orders: the wish of the database, granted by the signed family or not at all."""

import logging
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.core import audit
from service.db import queries, wishes
from service.db.entries import of_device
from service.db.rollout_tables import Deployment
from service.db.session import Database, changed
from service.db.tables import DeviceModel
from service.fleet import deployments
from service.signing.keys import Blocked, Publisher, Trouble, check_key
from service.signing.reach import Counts, Reach
from service.signing.record import Record
from service.signing.verified import Verified
from trust.order import Order
from trust.roles import DIRECTOR, Family, Release
from trust.sign import LIFETIME, sign_order

logger = logging.getLogger(__name__)
GOALS_PER_ROUND_MAX = 100
ORDERS_PER_GOAL_MAX = 1000
SEQ_BELIEVED_MAX = 1 << 40  # a forged number above it would use up the numbers of a device


def sign_orders(database: Database, publisher: Publisher, found: Verified, now: datetime) -> None:
    """Sign the orders that devices wait for, and again those that grow old or lost their key.

    Raises:
        Blocked: WRONG_KEY, and nothing was written.
        ExceptionGroup: LIMIT, UNAPPROVED or TOO_FAST, and what they allow was.
    """
    assert found.targets is not None
    if found.timestamp is None:  # nothing is published yet that an order could stand beside
        return
    director = publisher.keys.director
    keyid = director.public_key.keyid
    check_key(DIRECTOR, director, found.targets.get_delegated_role(DIRECTOR).keyids)
    # A limit of its own, which no row can raise: who took the server moves no more than this.
    hour = f"orders in hour {int(now.timestamp()) // 3600}"
    round_ = _Round(Counts(publisher.record))
    left = max(0, publisher.orders_max - round_.counts[hour])
    with database.reader() as session:
        _judge(session, publisher, found, round_, left, now)
    granted = round_.granted
    if granted:
        numbers = {f"order {order.device}": order.seq for _, order in granted}
        numbers |= {hour: round_.counts[hour] + len(granted)}
        publisher.record.take(round_.counts.new | numbers)
        bodies = [sign_order(order, director) for _, order in granted]
        with database.writer() as session:
            for (row, order), body in zip(granted, bodies, strict=True):
                _give(session, row, order, body, keyid)
            audit.record(session, "orders.sign", DIRECTOR, now, orders=len(bodies))
    if round_.refused:
        with database.writer() as session:
            for row, barred in round_.refused:
                _call_off(session, row, barred, now)
    if round_.blocked:
        raise ExceptionGroup("not every order was given", list(round_.blocked.values()))


@dataclass
class _Round:
    """What becomes of the wishes of one round; what is blocked goes on waiting."""

    counts: Counts
    granted: list[tuple[DeviceModel, Order]] = field(default_factory=list)
    refused: list[tuple[DeviceModel, str]] = field(default_factory=list)
    blocked: dict[str, Blocked] = field(default_factory=dict)


def _judge(
    session: Session, publisher: Publisher, found: Verified, to: _Round, left: int, now: datetime
) -> None:
    """Look at some devices of each goal, so that one that may not be reached bars no other."""
    assert found.timestamp is not None
    beside = {"root": found.roots[-1].version, "timestamp": found.timestamp.version}
    keyid, aged = publisher.keys.director.public_key.keyid, now + LIFETIME["order"] / 2
    waits = wishes.waits_for_order(aged, keyid, list(found.families))
    for goal in wishes.goals(session, waits, GOALS_PER_ROUND_MAX):
        family = found.families[goal.model]
        release = family.release_of(goal.sha256)
        fleet = queries.count_devices(session, goal.model) if publisher.limits else 0
        reach = Reach(release, family, publisher.limits, fleet, goal.rollout) if release else None
        for row, deployment in wishes.waiting(session, waits, goal, ORDERS_PER_GOAL_MAX):
            barred = _barred(family, release, row, deployment, now)
            if barred or reach is None:
                to.refused.append((row, barred))
                continue
            try:
                if len(to.granted) == left:
                    full = f"{publisher.orders_max} orders were given in this hour; more wait"
                    raise Blocked(Trouble.LIMIT, DIRECTOR, full)
                reach.admit(to.counts, row.device_id, now)
            except Blocked as error:
                to.blocked[str(error)] = error
                continue
            order = _order(publisher.record, beside, reach.release, row, deployment.id, now)
            to.granted.append((row, order))


def _barred(
    family: Family, to: Release | None, row: DeviceModel, deployment: Deployment, now: datetime
) -> str:
    """Return why the signed family lets no such device go there, nothing if it may."""
    running = family.release_of(row.running_sha256)
    if to is None or to.status != "active" or deployment.device_id != row.device_id:
        return "not active"
    if misfit := to.misfit(row.device.hardware, row.device.agent_version):
        return misfit
    return "" if running is None or to.takes_back(running, now) else "no edge back"


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
    giving = update(DeviceModel).where(*same).values(given)
    changed(session, giving, touches=[of_device(row.device_id)])


def _call_off(session: Session, row: DeviceModel, barred: str, now: datetime) -> None:
    """End a wish that nobody may grant, so that it is not looked at for ever."""
    logger.warning("order refused", extra={"deployment": row.deployment_id, "why": barred})
    deployment = session.get_one(Deployment, row.deployment_id)
    deployments.finish(session, deployment, "canceled", "not allowed", now)
    wish = (DeviceModel.device_id == row.device_id, DeviceModel.deployment_id == deployment.id)
    forgetting = update(DeviceModel).where(*wish).values(deployment_id=None)
    changed(session, forgetting, touches=[of_device(row.device_id)])
