"""A device checks in: what it runs goes in, an offer or the reason to hold comes out.

Success is never what a device says: a deployment is confirmed when a poll carries the digest of
the new bytes. Whatever the answer, it is the same until something changed, so that an unchanged
poll can be answered by its ETag.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from service.core import policy
from service.db import queries
from service.db.rollout_tables import Deployment
from service.db.tables import Artifact, CanarySet, Device, DeviceModel, Model, Release
from service.fleet import deployments, plans, rules, ways
from service.fleet.holds import Finding, Hold

# Places, costs and signatures come and go without a change of the device's own: whoever meets one
# of these is looked at afresh each time it asks.
PASSING = frozenset((Hold.ORDER_PENDING, Hold.STAGE_FULL, Hold.PER_MINUTE, Hold.BUDGET))


@dataclass(frozen=True)
class Answer:
    """What a poll is told: either a deployment with its signed order, or a hold.

    Attributes:
        findings: the rules that were applied, in this order.
        waits: for how long it has been waiting for its order, if it is.
        until: when it ends by time alone; None: it may end at any time.
    """

    row: DeviceModel
    deployment: Deployment | None
    hold: Hold | None
    findings: Sequence[Finding]
    waits: timedelta = timedelta(0)
    until: datetime | None = None


def check_in(
    session: Session, device: Device, running: str, timeout: timedelta, now: datetime
) -> Answer:
    """Note what the device runs, settle its deployments, and answer its poll."""
    row = session.get_one(DeviceModel, device.id, with_for_update=True)
    _note_running(session, row, running, now)
    _settle(session, row, now)
    wanted, found = rules.wanted(session, row, timeout, now)
    passing = any(finding.hold in PASSING for finding in found)
    opens = [finding.until for finding in found if finding.hold and finding.until]
    until = None if passing else min([_signed_until(session, row.model, now), *opens])
    if wanted is None:
        row.deployment_id = None
        holds = [finding.hold for finding in found if finding.hold]
        # A device outside of one rollout's cohort may still wait in another: the nearest reason.
        nearest = (hold for hold in holds if hold is not Hold.NOT_IN_COHORT)
        return Answer(row, None, next(nearest, holds[0]), found, until=until)
    row.deployment_id = wanted.id
    ends = row.order_expires_at
    if row.order_deployment != wanted.id or row.order_body is None or ends is None or ends <= now:
        pending = Finding("order", "not signed yet", Hold.ORDER_PENDING, wanted.rollout_id)
        waits = now - wanted.updated_at
        return Answer(row, None, Hold.ORDER_PENDING, [*found, pending], waits)
    signed = Finding("order", f"signed until {ends:%Y-%m-%d %H:%M}", None, wanted.rollout_id)
    return Answer(row, wanted, None, [*found, signed], until=until and min(until, ends))


def plan_of(session: Session, answer: Answer) -> dict[str, Any]:
    """Return the plan of an offer: how to get there, and how to try it."""
    row, deployment = answer.row, answer.deployment
    assert deployment is not None
    release = deployment.release
    back = deployment.direction == "back"
    planner = plans.planner_of(session, release, plans.limits_of(row))
    pipelines = planner.pipelines(row.running_sha256, undo=back)
    return {
        "deployment": deployment.id,
        "rollout": deployment.rollout_id,
        "direction": deployment.direction,
        "release": release.name,
        **release.shown("sha256 bytes"),
        "conditions": {} if back else deployment.rollout.conditions,
        "pipelines": [[vars(step) for step in way.steps] for way in pipelines],
        "canary": None if back else _trial_of(session, deployment),
    }


def _trial_of(session: Session, deployment: Deployment) -> dict[str, Any] | None:
    """Return the shard of a device, which models it compares, and what they go back to."""
    rollout = deployment.rollout
    shard = canary_of(session, rollout.model, deployment.device_id)
    base = rollout.base_sha256 if rollout.base_sha256 != deployment.from_sha256 else None
    arm = policy.arm(rollout.salt, deployment.device_id, policy.gate_of(rollout.gate))
    return shard and shard | {"arm": arm, "base": base}


def canary_of(session: Session, model: str, device_id: str) -> dict[str, Any] | None:
    """Return the canary shard of a device: chosen by a keyed hash, the same at every update."""
    found = session.get(CanarySet, model)
    if found is None:
        return None
    salt = session.get_one(Model, model).canary_salt
    shard = policy.shard_of(salt, device_id, found.manifest["shards"])
    return {
        "set": found.sha256,
        "set_bytes": session.get_one(Artifact, found.sha256).bytes,
        "shard": shard["id"],
        "shard_sha256": shard["sha256"],
        "shard_bytes": shard["bytes"],
        "utterances": shard["utterances"],
        "ref_words": shard["ref_words"],
    }


def _note_running(session: Session, row: DeviceModel, running: str, now: datetime) -> None:
    # Bytes that were unknown when they were first seen may have been published since.
    left = row.running_sha256
    if left != running or (row.running_release is None and running):
        row.running_sha256 = running
        row.release = queries.first(session, Release, model=row.model, sha256=running)
        session.flush()
    if left != running:
        deployments.withdraw_success(session, row, left, now)


def _settle(session: Session, row: DeviceModel, now: datetime) -> None:
    """Give deployments the outcome that the running bytes prove."""
    for deployment in queries.open_deployments(session, row.device_id):
        if deployment.to_sha256 == row.running_sha256:
            outcome = "confirmed" if deployment.direction == "forward" else "rolled_back"
            deployments.finish(session, deployment, outcome, "", now)
            ways.note_arrival(session, row, deployment)
        elif deployment.direction == "forward" and deployment.state == "activated":
            deployments.finish(session, deployment, "failed", "went_back", now)


def _signed_until(session: Session, model: str, now: datetime) -> datetime:
    """Return when the next document that people sign runs out; a later one comes by a change."""
    ends = [end for end in rules.signed_ends(session, model) if end > now]
    return min(ends, default=datetime.max.replace(tzinfo=UTC))
