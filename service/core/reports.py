"""What devices report: events on their way, and word errors of the old and the new model.

Everything is numbered or named by the device and stored once, so a repeated message is a no-op.
A canary report is checked against the signed set and against the deployment it claims; the
first valid pair of a device enters the sums in the same transaction and is frozen.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import bindparam, or_, update
from sqlalchemy.orm import Session

from service.core import canary, deployments, ways
from service.core.bodies import Capacity, DeviceEvent, NewCanaryReport
from service.core.errors import CountsMismatch, ReportClosed
from service.core.offers import canary_of
from service.core.policy import gate_of
from service.db import queries
from service.db.entries import of_device
from service.db.rollout_tables import LIVE, OPEN, CanaryReport, CanarySums, Deployment, Event
from service.db.session import insert_into
from service.db.tables import Device, DeviceModel
from trust.fields import VERSION

BYTES_SENT_MAX = 1 << 40  # what one device claims must not overflow the sum over all
AGENT = "note", "agent"  # the event that tells which agent runs there now
OUTCOMES = {  # direction -> kind of event -> how it ends the deployment
    "forward": {"refused": "refused", "failed": "failed", "rolled_back": "failed"},
    "back": {"refused": "failed", "failed": "failed"},
}
KEPT = "report_id canary_set shard runtime gate ref_words old_ms new_ms".split()


def note_seen(session: Session, seen: Mapping[str, datetime]) -> None:
    """Note when devices polled last, many at once; nobody's answer depends on it."""
    # Always in one order: two processes that do the same at once do not wait in a circle.
    rows = [{"device": device_id, "at": seen[device_id]} for device_id in sorted(seen)]
    earlier = or_(Device.last_seen_at.is_(None), Device.last_seen_at < bindparam("at"))
    noting = update(Device).where(Device.id == bindparam("device"), earlier)
    session.connection().execute(noting.values(last_seen_at=bindparam("at")), rows)


def record_events(
    session: Session, device: Device, events: Sequence[DeviceEvent], now: datetime
) -> int:
    """Store a device's events and move its deployments; returns the highest number stored."""
    highest = max((e.seq for e in queries.last_events(session, device.id, 1)), default=0)
    for event in sorted(events, key=lambda e: e.seq):
        if event.seq <= highest:
            continue
        highest = event.seq
        session.add(Event(device_id=device.id, received_at=now, **event.model_dump()))
        if (event.kind, event.reason) == AGENT and VERSION.match(event.detail):
            device.agent_version = event.detail
        deployment = session.get(Deployment, event.deployment_id)
        if deployment is None or deployment.device_id != device.id:
            continue
        deployment.bytes_sent = min(deployment.bytes_sent + event.bytes, BYTES_SENT_MAX)
        ways.note_said(session, device, deployment, event)
        if event.kind in OPEN:
            deployments.progress(deployment, event.kind, now)
        elif outcome := OUTCOMES[deployment.direction].get(event.kind):
            deployments.finish(session, deployment, outcome, event.reason, now)
    return highest


def record_capacity(session: Session, device: Device, has: Capacity) -> None:
    """Store what a device has for an update."""
    having = update(DeviceModel).filter_by(device_id=device.id).values(has.model_dump())
    session.execute(having, execution_options={"touches": [of_device(device.id)]})


def record_pair(session: Session, device: Device, pair: NewCanaryReport, now: datetime) -> str:
    """Store a canary report; returns "counted", "repeat" (kept, not counted) or "duplicate".

    Raises:
        CountsMismatch: it does not fit the deployment, the set or the device's shard.
        ReportClosed: the rollout ended before this report came.
    """
    deployment = session.get(Deployment, pair.deployment)
    if deployment is None or deployment.device_id != device.id:
        raise CountsMismatch("the report names no deployment of this device")
    rollout = deployment.rollout
    _check(session, device, deployment, pair)
    if session.get(CanaryReport, (rollout.id, device.id, pair.report_id)) is not None:
        return "duplicate"
    if rollout.state not in LIVE:
        raise ReportClosed(f"rollout {rollout.id} is {rollout.state}")
    ours = {"rollout_id": rollout.id, "device_id": device.id}
    known = queries.first(session, CanaryReport, **ours, counted=True)
    # A device in quarantine is heard, not believed.
    first = device.status == "active" and known is None
    said = pair.model_dump(by_alias=True)
    session.add(
        CanaryReport(
            **ours,
            stage=deployment.stage,
            counted=first,
            received_at=now,
            **{name: said[name] for name in KEPT},
            **{f"old_{kind}": errors for kind, errors in said["old"].items()},
            **{f"new_{kind}": errors for kind, errors in said["new"].items()},
        )
    )
    if not first:
        return "repeat"
    session.flush()
    old, new = pair.old.total, pair.new.total
    _add(session, rollout.id, *canary.contribution(gate_of(rollout.gate), old, new, pair.ref_words))
    return "counted"


def _check(session: Session, device: Device, deployment: Deployment, pair: NewCanaryReport) -> None:
    shard = canary_of(session, deployment.rollout.model, device.id) or {}
    named = f"{deployment.release.name}|{device.id}|{pair.canary_set}|{pair.shard}|{pair.attempt}"
    expected = {
        "canary_set": shard.get("set"),
        **{name: shard.get(name) for name in ("shard", "utterances", "ref_words")},
        "old_model": deployment.from_sha256,
        "new_model": deployment.to_sha256,
        "report_id": hashlib.sha256(named.encode()).hexdigest()[:32],
    }
    for field, value in expected.items():
        if getattr(pair, field) != value:
            raise CountsMismatch(f"{field} is {getattr(pair, field)!r}, expected {value!r}")
    for counts in (pair.old, pair.new):
        if counts.sub + counts.delete > pair.ref_words or counts.ins > pair.ref_words:
            raise CountsMismatch("more errors than the reference has words")


def _add(session: Session, rollout_id: str, d: int, b: int) -> None:
    """Add one contribution to the sums, in one statement, whoever else adds at the same time."""
    added = {"n": 1, "sd": d, "sdd": d * d, "sb": b, "sbb": b * b, "sdb": d * b}
    session.execute(
        insert_into(session, CanarySums)
        .values(rollout_id=rollout_id, scope="all", **added)
        .on_conflict_do_update(
            index_elements=["rollout_id", "scope"],
            set_={name: getattr(CanarySums, name) + value for name, value in added.items()},
        )
    )
