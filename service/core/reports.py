"""What devices report: events on their way, and word errors of the old and the new model.

Everything is numbered or named by the device and stored once, so a repeated message is a no-op.
A canary report is checked against the signed set and against the deployment it claims; the
first valid pair of a device enters the sums in the same transaction and is frozen.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Table
from sqlalchemy.orm import Session

from service.core import canary, deployments
from service.core.errors import CountsMismatch, ReportClosed
from service.core.offers import canary_of
from service.core.policy import gate_of
from service.db import queries, rollout_queries
from service.db.rollout_tables import CanaryReport, CanarySums, Deployment, Event, Rollout
from service.db.session import insert_into
from service.db.tables import Device, DeviceModel, Release

PROGRESS = {"downloading": "downloading", "applied": "applied", "activated": "activated"}
BYTES_SENT_MAX = 1 << 40  # what one device claims must not overflow the sum over all
OUTCOME = {"refused": "refused", "failed": "failed", "rolled_back": "failed"}


@dataclass(frozen=True)
class Pair:
    """A device's counts on its shard, with what they claim to be about."""

    report_id: str
    attempt: int
    deployment: str
    old_model: str
    new_model: str
    canary_set: str
    shard: str
    runtime: str
    utterances: int
    ref_words: int
    old: tuple[int, int, int]
    new: tuple[int, int, int]
    old_ms: int
    new_ms: int
    gate: str


def record_events(
    session: Session, device: Device, events: Iterable[dict[str, Any]], now: datetime
) -> int:
    """Store a device's events and move its deployments; returns the highest number stored."""
    highest = queries.highest_event(session, device.id)
    for event in sorted(events, key=lambda e: int(e["seq"])):
        if event["seq"] <= highest:
            continue
        highest = event["seq"]
        session.add(Event(device_id=device.id, received_at=now, **event))
        deployment = session.get(Deployment, event["deployment_id"])
        if deployment is None or deployment.device_id != device.id:
            continue
        deployment.bytes_sent = min(deployment.bytes_sent + event["bytes"], BYTES_SENT_MAX)
        if event["kind"] in PROGRESS:
            deployments.progress(deployment, PROGRESS[event["kind"]], now)
        elif event["kind"] in OUTCOME and deployment.direction == "forward":
            outcome = OUTCOME[event["kind"]]
            deployments.finish(session, deployment, outcome, event["reason"], now)
        elif event["kind"] in ("refused", "failed"):
            deployments.finish(session, deployment, "failed", event["reason"], now)
    return highest


def record_pair(session: Session, device: Device, pair: Pair, now: datetime) -> str:
    """Store a canary report; returns "counted", "repeat" (kept, not counted) or "duplicate".

    Raises:
        CountsMismatch: it does not fit the deployment, the set or the device's shard.
        ReportClosed: the rollout ended before this report came.
    """
    deployment = session.get(Deployment, pair.deployment)
    if deployment is None or deployment.device_id != device.id:
        raise CountsMismatch("the report names no deployment of this device")
    rollout = session.get_one(Rollout, deployment.rollout_id)
    _check(session, device, deployment, pair)
    if session.get(CanaryReport, (rollout.id, device.id, pair.report_id)) is not None:
        return "duplicate"
    if rollout.state not in rollout_queries.LIVE:
        raise ReportClosed(f"rollout {rollout.id} is {rollout.state}")
    known = rollout_queries.has_counted(session, rollout.id, device.id)
    first = device.status == "active" and not known  # a device in quarantine is heard, not believed
    names = ("sub", "del", "ins")
    session.add(
        CanaryReport(
            rollout_id=rollout.id,
            device_id=device.id,
            report_id=pair.report_id,
            stage=deployment.stage,
            counted=first,
            canary_set=pair.canary_set,
            shard=pair.shard,
            runtime=pair.runtime,
            gate=pair.gate,
            ref_words=pair.ref_words,
            **{f"old_{n}": count for n, count in zip(names, pair.old, strict=True)},
            **{f"new_{n}": count for n, count in zip(names, pair.new, strict=True)},
            old_ms=pair.old_ms,
            new_ms=pair.new_ms,
            received_at=now,
        )
    )
    if not first:
        return "repeat"
    session.flush()
    d, b = canary.contribution(gate_of(rollout.gate), sum(pair.old), sum(pair.new), pair.ref_words)
    _add(session, rollout.id, d, b)
    return "counted"


def _check(session: Session, device: Device, deployment: Deployment, pair: Pair) -> None:
    row = session.get_one(DeviceModel, device.id)
    shard = canary_of(session, row.model, device.id)
    release = session.get_one(Release, deployment.release_id)
    name = f"{release.name}|{device.id}|{pair.canary_set}|{pair.shard}|{pair.attempt}"
    expected = {
        "canary_set": shard["set"] if shard else None,
        "shard": shard["shard"] if shard else None,
        "utterances": shard["utterances"] if shard else None,
        "ref_words": shard["ref_words"] if shard else None,
        "old_model": deployment.from_sha256,
        "new_model": deployment.to_sha256,
        "report_id": hashlib.sha256(name.encode()).hexdigest()[:32],
    }
    for field, value in expected.items():
        if getattr(pair, field) != value:
            raise CountsMismatch(f"{field} is {getattr(pair, field)!r}, expected {value!r}")
    for substituted, deleted, inserted in (pair.old, pair.new):
        if substituted + deleted > pair.ref_words or inserted > pair.ref_words:
            raise CountsMismatch("more errors than the reference has words")


def _add(session: Session, rollout_id: str, d: int, b: int) -> None:
    """Add one contribution to the sums, in one statement, whoever else adds at the same time."""
    added = {"n": 1, "sd": d, "sdd": d * d, "sb": b, "sbb": b * b, "sdb": d * b}
    table = cast(Table, CanarySums.__table__)
    session.execute(
        insert_into(session, table)
        .values(rollout_id=rollout_id, scope="all", **added)
        .on_conflict_do_update(
            index_elements=["rollout_id", "scope"],
            set_={name: table.c[name] + value for name, value in added.items()},
        )
    )
