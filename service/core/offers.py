"""A device checks in: what it runs goes in, an offer or the reason to hold comes out.

Success is never what a device says: a deployment is confirmed when a poll carries the digest of
the new bytes. Whatever the answer, it is the same until something changed, so that an unchanged
poll can be answered by its ETag.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy.orm import Session

from service.core import deployments, plans, policy, ways
from service.db import documents, queries
from service.db.rollout_tables import OPEN, Deployment, Rollout
from service.db.tables import Artifact, CanarySet, Device, DeviceModel, Model, Release
from trust.fields import is_at_least
from trust.roles import family_role


class Hold(StrEnum):
    """Why a device gets no offer; not an error."""

    UP_TO_DATE = "up_to_date"
    NO_ROLLOUT = "no_rollout"
    ORDER_PENDING = "order_pending"
    NOT_IN_COHORT = "not_in_cohort"
    NOT_IN_STAGE = "not_in_stage"
    STAGE_FULL = "stage_full"
    PAUSED = "paused"
    BACKOFF = "backoff"
    NO_PIPELINE = "no_pipeline"
    AGENT_TOO_OLD = "agent_too_old"
    FLOOR = "floor"
    NOTHING_PUBLISHED = "nothing_published"
    METADATA_EXPIRED = "metadata_expired"
    QUARANTINED = "quarantined"


# Places in a stage and signatures come and go without a change of the device's own, and a backoff
# may end: whoever meets one of these is looked at afresh each time it asks.
PASSING = frozenset((Hold.ORDER_PENDING, Hold.STAGE_FULL, Hold.BACKOFF))


@dataclass(frozen=True)
class Answer:
    """What a poll is told: either a deployment with its signed order, or a hold.

    Attributes:
        waits: for how long it has been waiting for its order, if it is.
        until: when it ends by time alone; None: it may end at any time.
    """

    row: DeviceModel
    deployment: Deployment | None
    hold: Hold | None
    waits: timedelta = timedelta(0)
    until: datetime | None = None


def check_in(
    session: Session, device: Device, running: str, timeout: timedelta, now: datetime
) -> Answer:
    """Note what the device runs, settle its deployments, and answer its poll."""
    row = session.get_one(DeviceModel, device.id, with_for_update=True)
    _note_running(session, row, running)
    _settle(session, row, now)
    wanted, holds = _wanted(session, row, timeout, now)
    until = None if PASSING & set(holds) else _signed_until(session, row.model, now)
    if wanted is None:
        row.deployment_id = None
        # A device outside of one rollout's cohort may still wait in another: the nearest reason.
        nearest = (hold for hold in holds if hold is not Hold.NOT_IN_COHORT)
        return Answer(row, None, next(nearest, holds[0]), until=until)
    row.deployment_id = wanted.id
    ends = row.order_expires_at
    if row.order_deployment != wanted.id or row.order_body is None or ends is None or ends <= now:
        return Answer(row, None, Hold.ORDER_PENDING, now - wanted.updated_at)
    return Answer(row, wanted, None, until=until and min(until, ends))


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
    digest = hmac.digest(salt.encode(), device_id.encode(), hashlib.sha256)
    shards = found.manifest["shards"]
    shard = shards[int.from_bytes(digest[:8]) % len(shards)]
    return {
        "set": found.sha256,
        "set_bytes": session.get_one(Artifact, found.sha256).bytes,
        "shard": shard["id"],
        "shard_sha256": shard["sha256"],
        "shard_bytes": shard["bytes"],
        "utterances": shard["utterances"],
        "ref_words": shard["ref_words"],
    }


def _note_running(session: Session, row: DeviceModel, running: str) -> None:
    # Bytes that were unknown when they were first seen may have been published since.
    if row.running_sha256 != running or (row.running_release is None and running):
        row.running_sha256 = running
        row.release = queries.first(session, Release, model=row.model, sha256=running)
        session.flush()


def _settle(session: Session, row: DeviceModel, now: datetime) -> None:
    """Give deployments the outcome that the running bytes prove."""
    for deployment in queries.open_deployments(session, row.device_id):
        if deployment.to_sha256 == row.running_sha256:
            outcome = "confirmed" if deployment.direction == "forward" else "rolled_back"
            deployments.finish(session, deployment, outcome, "", now)
            ways.note_arrival(session, row, deployment)
        elif deployment.direction == "forward" and deployment.state == "activated":
            deployments.finish(session, deployment, "failed", "went_back", now)


def _wanted(
    session: Session, row: DeviceModel, timeout: timedelta, now: datetime
) -> tuple[Deployment | None, Sequence[Hold]]:
    """Return what the device shall do, if anything, and every reason that was met on the way."""
    if row.device.status == "quarantined":
        return None, [Hold.QUARANTINED]
    holds: list[Hold] = []
    undo = queries.reverted_deployment(session, row.device_id, row.running_sha256)
    if undo is not None:
        back = _way_back(session, undo, row, timeout, now)
        if isinstance(back, Deployment):
            return back, holds
        holds.append(back)  # the way back is barred; a fix may lead forward
    # What is on its way goes on: a newer rollout does not make an older one look failed.
    under_way = {d.rollout_id for d in queries.open_deployments(session, row.device_id)}
    live = queries.live_rollouts(session, row.model)
    for rollout in sorted(live, key=lambda r: r.id not in under_way):
        wanted = _way_forward(session, rollout, row, timeout, now)
        if isinstance(wanted, Deployment):
            return wanted, holds
        holds.append(wanted)
    return None, holds or [Hold.NO_ROLLOUT]


def _way_back(
    session: Session, undo: Deployment, row: DeviceModel, timeout: timedelta, now: datetime
) -> Deployment | Hold:
    if undo.state == "canceled":
        # It was called off too late: the device's own poll proves that it had switched.
        undo.state, undo.reason = "confirmed", "after the halt"
    before = queries.first(session, Release, model=row.model, sha256=undo.from_sha256)
    bad = undo.release.name
    if before is None or before.status != "active" or bad not in before.rollback_from:
        return Hold.NO_PIPELINE
    if _expired(session, row.model, now):
        return Hold.METADATA_EXPIRED
    existing = deployments.existing(session, undo.rollout, row, "back")
    if existing is not None:
        return existing if existing.state in OPEN else Hold.BACKOFF
    return deployments.offer(session, undo.rollout, row, "back", before, timeout, now)


def _way_forward(
    session: Session, rollout: Rollout, row: DeviceModel, timeout: timedelta, now: datetime
) -> Deployment | Hold:
    if row.running_release == rollout.release_id:
        return Hold.UP_TO_DATE
    existing = deployments.existing(session, rollout, row, "forward")
    if existing is not None and existing.state not in (*OPEN, "canceled"):
        return Hold.BACKOFF
    if rollout.state == "paused":
        return Hold.PAUSED
    barred = _barred(session, rollout.release, row, now)
    if barred is not None:
        return barred
    if existing is not None and existing.state != "canceled":
        return existing
    if not queries.in_cohort(session, rollout.cohort, row.device_id):
        return Hold.NOT_IN_COHORT
    if policy.bucket(rollout.salt, row.device_id) >= rollout.current_stage.share_bp:
        return Hold.NOT_IN_STAGE
    if not deployments.grant(session, rollout):
        return Hold.STAGE_FULL
    return deployments.offer(session, rollout, row, "forward", rollout.release, timeout, now)


def _barred(session: Session, release: Release, row: DeviceModel, now: datetime) -> Hold | None:
    """Why no order for this release could be followed by this device."""
    if release.status != "active" or (row.release is not None and row.release.seq > release.seq):
        return Hold.NO_PIPELINE
    if release.hardware and row.device.hardware not in release.hardware:
        return Hold.NO_PIPELINE
    if not is_at_least(row.device.agent_version, release.min_agent):
        return Hold.AGENT_TOO_OLD
    if plans.floor_of(session, release, row.release) is not None:
        return Hold.FLOOR
    return Hold.METADATA_EXPIRED if _expired(session, release.model, now) else None


def _expired(session: Session, model: str, now: datetime) -> bool:
    """Whether a document that people sign ran out: every device would refuse, and not its fault."""
    ends = _signed_ends(session, model)
    return len(ends) < 3 or min(ends) <= now


def _signed_until(session: Session, model: str, now: datetime) -> datetime:
    """Return when the next document that people sign runs out; a later one comes by a change."""
    ends = [end for end in _signed_ends(session, model) if end > now]
    return min(ends, default=datetime.max.replace(tzinfo=UTC))


def _signed_ends(session: Session, model: str) -> Sequence[datetime]:
    roles = ("root", "targets", family_role(model))
    return list(documents.newest_ends(session, roles).values())
