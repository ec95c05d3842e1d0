"""A device checks in: what it runs goes in, an offer or the reason to hold comes out.

Success is never what a device says: a deployment is confirmed when a poll carries the digest of
the new bytes. Whatever the answer, it is the same until something changed, so that an unchanged
poll can be answered by its ETag.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from service.core import policy
from service.db import queries
from service.db.rollout_tables import OPEN, Deployment, Rollout
from service.db.tables import Device, DeviceModel, Model
from service.fleet import deployments, plans, rules, ways
from service.fleet.deployments import Stale
from service.fleet.ground import Canary, Ground, ground_of
from service.fleet.holds import Finding, Hold

# Places, costs and signatures come and go without a change of the device's own: whoever meets one
# of these is looked at afresh each time it asks.
PASSING = frozenset((Hold.ORDER_PENDING, Hold.STAGE_FULL, Hold.PER_MINUTE, Hold.BUDGET))


_ASKS = (  # made once, as what it is compiled to is found again by what it is made of
    select(Device, DeviceModel, Model.generation)
    .join(DeviceModel, DeviceModel.device_id == Device.id)
    .join(Model, Model.name == DeviceModel.model)
    .where(Device.id == bindparam("device"))
    # FOR NO KEY UPDATE: others may still refer to the rows meanwhile.
    .with_for_update(key_share=True, of=(Device, DeviceModel))
    .execution_options(populate_existing=True)
)


class Read(NamedTuple):
    """A device and what it runs, locked, and the generation of its model in that moment."""

    device: Device
    row: DeviceModel
    generation: int


@dataclass(frozen=True)
class Answer:
    """What a poll is told: either a deployment with its signed order, or a hold.

    Attributes:
        findings: the rules that were applied, in this order.
        waits: for how long it has been waiting for its order, if it is.
        until: when it ends by time alone; None: it may end at any time.
    """

    row: DeviceModel
    ground: Ground
    deployment: Deployment | None
    hold: Hold | None
    findings: Sequence[Finding]
    waits: timedelta = timedelta(0)
    until: datetime | None = None


def read(session: Session, device_id: str) -> Read | None:
    """Return what a poll is answered by, None if there is no such device."""
    found = session.execute(_ASKS, {"device": device_id}).first()
    return Read(*found) if found else None


def check_in(
    session: Session,
    device: Device,
    running: str,
    timeout: timedelta,
    now: datetime,
    known: Read | None = None,
) -> Answer:
    """Note what the device runs, settle its deployments, and answer its poll.

    Args:
        session: of the transaction.
        device: that polls.
        running: the digest that its poll carries.
        timeout: of a deployment.
        now: the time.
        known: what this transaction has read of it already.
    """
    known = known or read(session, device.id)
    assert known is not None
    row = known.row
    ground = ground_of(session, row.model, known.generation, now)
    _note_running(session, row, ground, running, now)
    mine = queries.deployments_of(session, device.id)
    _settle(session, row, mine, now)
    case = rules.Case(session, ground, row, mine, timeout, now)
    try:
        wanted, found = rules.wanted(case)
    except Stale:  # somebody changed it since: once more
        ground.forget(session)
        return check_in(session, device, running, timeout, now)
    passing = any(finding.hold in PASSING for finding in found)
    opens = [finding.until for finding in found if finding.hold and finding.until]
    until = None if passing else min([rules.signed_until(ground, now), *opens])
    deployments.want(session, row, wanted)
    if wanted is None:
        holds = [finding.hold for finding in found if finding.hold]
        # A device outside of one rollout's cohort may still wait in another: the nearest reason.
        nearest = (hold for hold in holds if hold is not Hold.NOT_IN_COHORT)
        return Answer(row, ground, None, next(nearest, holds[0]), found, until=until)
    ends = row.order_expires_at
    if row.order_deployment != wanted.id or row.order_body is None or ends is None or ends <= now:
        pending = Finding("order", "not signed yet", Hold.ORDER_PENDING, wanted.rollout_id)
        waits = now - wanted.updated_at
        return Answer(row, ground, None, Hold.ORDER_PENDING, [*found, pending], waits)
    signed = Finding("order", f"signed until {ends:%Y-%m-%d %H:%M}", None, wanted.rollout_id)
    return Answer(row, ground, wanted, None, [*found, signed], until=until and min(until, ends))


def plan_of(session: Session, answer: Answer) -> dict[str, Any]:
    """Return the plan of an offer: how to get there, and how to try it."""
    row, deployment, ground = answer.row, answer.deployment, answer.ground
    assert deployment is not None
    release, limits = ground.releases[deployment.release_id], plans.limits_of(row)
    back = deployment.direction == "back"
    pipelines = plans.pipelines(session, ground, release, limits, row.running_sha256, undo=back)
    rollout = ground.rollouts[deployment.rollout_id]
    return {
        "deployment": deployment.id,
        "rollout": deployment.rollout_id,
        "direction": deployment.direction,
        "release": release.name,
        **release.shown("sha256 bytes"),
        "conditions": {} if back else rollout.conditions,
        "pipelines": [[vars(step) for step in way.steps] for way in pipelines],
        "canary": None if back else _trial_of(answer.ground.canary, rollout, deployment),
    }


def _trial_of(
    canary: Canary | None, rollout: Rollout, deployment: Deployment
) -> dict[str, Any] | None:
    """Return the shard of a device, which models it compares, and what they go back to."""
    if canary is None:
        return None
    base = rollout.base_sha256 if rollout.base_sha256 != deployment.from_sha256 else None
    arm = policy.arm(rollout.salt, deployment.device_id, policy.gate_of(rollout.gate))
    return shard_of(canary, deployment.device_id) | {"arm": arm, "base": base}


def shard_of(canary: Canary, device_id: str) -> dict[str, Any]:
    """Return the canary shard of a device: chosen by a keyed hash, the same at every update."""
    shard = policy.shard_of(canary.salt, device_id, canary.set.manifest["shards"])
    return {
        "set": canary.set.sha256,
        "set_bytes": canary.bytes,
        "shard": shard["id"],
        "shard_sha256": shard["sha256"],
        "shard_bytes": shard["bytes"],
        "utterances": shard["utterances"],
        "ref_words": shard["ref_words"],
    }


def _note_running(
    session: Session, row: DeviceModel, ground: Ground, running: str, now: datetime
) -> None:
    # Bytes that were unknown when they were first seen may have been published since.
    left = row.running_sha256
    if left != running or (row.running_release is None and running):
        release = ground.release(running)
        row.running_sha256, row.running_release = running, release.id if release else None
        session.flush()
        session.expire(row, ["release"])
    if left != running:
        deployments.withdraw_success(session, row, left, now)


def _settle(session: Session, row: DeviceModel, mine: Sequence[Deployment], now: datetime) -> None:
    """Give deployments the outcome that the running bytes prove."""
    for deployment in sorted(mine, key=lambda d: d.created_at):
        if deployment.state not in OPEN:
            continue
        if deployment.to_sha256 == row.running_sha256:
            outcome = "confirmed" if deployment.direction == "forward" else "rolled_back"
            deployments.finish(session, deployment, outcome, "", now)
            ways.note_arrival(session, row, deployment)
        elif deployment.direction == "forward" and deployment.state == "activated":
            deployments.finish(session, deployment, "failed", "went_back", now)
