"""What devices report: events on their way, and word errors of the old and the new model.

Everything is numbered or named by the device and stored once, so a repeated message is a no-op.
A canary report is checked against the signed set and against the deployment it claims; the
first valid pair of a device enters the sums in the same transaction and is frozen.
"""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import bindparam, delete, func, or_, select, update
from sqlalchemy.orm import Session

from service.core import canary, evaluation, policy, signals
from service.core.canary import Gate
from service.core.device_bodies import Capacity, DeviceEvent, NewCanaryReport
from service.core.errors import CountsMismatch, ImpossibleCounts, ReportClosed
from service.core.policy import gate_of
from service.db import pairs, queries
from service.db.entries import of_device
from service.db.rollout_tables import LIVE, OPEN, CanaryReport, Deployment, Event, Rollout
from service.db.tables import CanarySet, Device, DeviceModel, Model
from service.fleet import deployments, sums, ways
from service.fleet.ground import canary_of
from service.fleet.offers import shard_of
from service.fleet.sums import Errors, Pair
from trust.fields import VERSION

logger = logging.getLogger(__name__)

BYTES_SENT_MAX = 1 << 40  # what one device claims must not overflow the sum over all
AGENT = "note", "agent"  # the event that tells which agent runs there now
OUTCOMES = {  # direction -> kind of event -> how it ends the deployment
    "forward": {"refused": "refused", "failed": "failed", "rolled_back": "failed"},
    "back": {"refused": "failed", "failed": "failed"},
}
MODELS = ("old", "new", "base")
KEPT = (
    "report_id canary_set shard runtime gate ref_words old_ms new_ms "
    "worse_utts better_utts window_start differ_utts old_empty new_empty together"
).split()
EVENTS_KEPT_MAX, REPORTS_KEPT_MAX = 1_000, 20  # of a device; of one in a rollout
CLOCK_WRONG_MAX = timedelta(days=1)  # of a device
BATCH_PAIRS_LEAST = 3  # of one enrollment token count in any case
_HIGHEST = select(func.max(Event.seq)).where(Event.device_id == bindparam("device"))


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
    highest: int = session.scalar(_HIGHEST, {"device": device.id}) or 0
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
        if more := min(event.bytes, BYTES_SENT_MAX - deployment.bytes_sent):
            deployment.bytes_sent += more
            deployments.count(session, deployment.rollout_id, deployment.stage, bytes_sent=more)
        ways.note_said(session, device, deployment, event)
        if event.kind in OPEN:
            deployments.progress(session, deployment, event.kind, now)
        elif outcome := OUTCOMES[deployment.direction].get(event.kind):
            deployments.finish(session, deployment, outcome, event.reason, now)
    ours = Event.device_id == device.id
    old = select(Event.seq).where(ours).order_by(Event.seq.desc()).offset(EVENTS_KEPT_MAX).limit(1)
    forgetting = delete(Event).where(ours, Event.seq <= old.scalar_subquery())
    session.execute(forgetting, execution_options={"synchronize_session": False})
    return highest


def record_capacity(session: Session, device: Device, has: Capacity) -> None:
    """Store what a device has for an update."""
    having = update(DeviceModel).filter_by(device_id=device.id).values(has.model_dump())
    session.execute(having, execution_options={"touches": [of_device(device.id)]})


def record_pair(session: Session, device: Device, pair: NewCanaryReport, now: datetime) -> str:
    """Store a canary report.

    Returns:
        "counted"; "duplicate": it is here already; or why it is kept and not counted: "repeat",
        "capped" (its batch has its share) or "contradicts" (its own last trial).

    Raises:
        CountsMismatch: it does not fit the deployment, the set or the device's shard.
        ImpossibleCounts: there are more errors than words.
        ReportClosed: the rollout ended before this report came.
    """
    deployment = session.get(Deployment, pair.deployment)
    if deployment is None or deployment.device_id != device.id:
        raise CountsMismatch("the report names no deployment of this device")
    rollout = deployment.rollout
    gate = gate_of(rollout.gate)
    # Never from the body: a device does not choose on which side its word counts.
    arm = policy.arm(rollout.salt, device.id, gate)
    _check(session, device, deployment, arm, pair, now)
    if session.get(CanaryReport, (rollout.id, device.id, pair.report_id)) is not None:
        return "duplicate"
    if rollout.state not in LIVE:
        raise ReportClosed(f"rollout {rollout.id} is {rollout.state}")
    result = _standing(session, device, rollout, arm, pair)
    counted = result == "counted"
    ours = (CanaryReport.rollout_id == rollout.id, CanaryReport.device_id == device.id)
    kept = select(func.count()).select_from(CanaryReport).where(*ours)
    if not counted and session.scalars(kept).one() >= REPORTS_KEPT_MAX:
        return result
    known = _known_change(session, gate, rollout, pair)
    scopes = _scopes(gate, device, deployment.stage, arm, pair, known) if counted else {}
    added = {"d": scopes["all"].d, "b": scopes["all"].b} if counted else {}
    if chain := scopes.get("chain"):
        added |= {"chain_d": chain.d, "chain_b": chain.b}
    added |= {f"{n}_d": scopes[s].d for n in signals.MAY_HALT if (s := f"signal:{n}") in scopes}
    said = pair.model_dump(by_alias=True)
    counts = {f"{of}_{kind}": n for of in MODELS for kind, n in (said[of] or {}).items()}
    session.add(
        CanaryReport(
            rollout_id=rollout.id,
            device_id=device.id,
            stage=deployment.stage,
            counted=counted,
            arm=arm,
            hardware=device.hardware,
            batch=device.enrolled_by,
            received_at=now,
            **{name: said[name] for name in KEPT},
            **counts,
            **added,
        )
    )
    session.flush()
    sums.add(session, rollout.id, device.id, arm, scopes)
    return result


def _scopes(
    gate: Gate, device: Device, stage: int, arm: str, pair: NewCanaryReport, known: int
) -> dict[str, Pair]:
    """Return what a pair adds to each scope it belongs to."""

    def against(old: int, known: int = 0) -> Pair:
        d, b = canary.contribution(gate, old, pair.new.total, pair.ref_words, known)
        return Pair(d, b, Errors(old, pair.new.total, pair.ref_words))

    ours = against(pair.old.total, known)
    scopes = {"all": ours, f"stage:{stage}": ours}
    if device.enrolled_by is not None:
        scopes[f"batch:{device.enrolled_by}"] = ours
    if arm == "canary":
        scopes[f"hw:{device.hardware}"] = ours
        if pair.base is not None:
            scopes["chain"] = against(pair.base.total)
        # Times of two days are of two loads: only those of one trial say which model is slower.
        times = (pair.old_ms, pair.new_ms) if pair.together else (None, None)
        empty = pair.old_empty, pair.new_empty
        signs = signals.Signs(pair.utterances, pair.differ_utts, *empty, *times)
        for name, d in signals.said(gate, signs).items():
            scopes[f"signal:{name}"] = Pair(d, 0, ours.errors)
    return scopes


def _known_change(session: Session, gate: Gate, rollout: Rollout, pair: NewCanaryReport) -> int:
    """Return what the release's own evaluation says of this shard; 0 if it is of other models."""
    said, found = rollout.release.evaluation, session.get_one(CanarySet, rollout.model)
    models = pair.canary_set, pair.old_model, pair.new_model
    if not said or (said["canary_set"], said["base"], rollout.release.sha256) != models:
        return 0
    shards = found.manifest["shards"]
    if len(shards) != len(said["old"]):
        return 0
    return evaluation.known_changes(gate, said, shards)[pair.shard]


def _standing(
    session: Session, device: Device, rollout: Rollout, arm: str, pair: NewCanaryReport
) -> str:
    """Return "counted", or why the pair is kept only."""
    ours = {"rollout_id": rollout.id, "device_id": device.id}
    known = queries.first(session, CanaryReport, **ours, counted=True)
    # A device in quarantine is heard, not believed. One that runs no placebo says nothing of it.
    placebo = pair.new_model == pair.old_model
    if device.status != "active" or known is not None or placebo != (arm == "control"):
        return "repeat"
    if _contradicts(session, device, pair):
        logger.warning("canary contradicts", extra={"rollout": rollout.id})  # nobody by name
        return "contradicts"
    if device.enrolled_by is not None and _is_capped(session, rollout, device.enrolled_by):
        logger.warning("canary capped", extra={"batch": device.enrolled_by, "rollout": rollout.id})
        return "capped"
    return "counted"


def _contradicts(session: Session, device: Device, pair: NewCanaryReport) -> bool:
    """Whether the old model was quite another one when this device heard it as the new one.

    The same bytes, words and runtime: what looks better now must not have been made worse before.
    """
    same = {name: getattr(pair, name) for name in ("canary_set", "shard", "runtime")}
    before = pairs.earlier_trial(session, device.id, pair.old_model, **same)
    if before is None:
        return False
    then, now = before.new_sub + before.new_del + before.new_ins, pair.old.total
    return abs(now - then) > max(0.05 * pair.ref_words, 4 * math.sqrt(now + then))


def _is_capped(session: Session, rollout: Rollout, token: str) -> bool:
    """Whether the devices of one enrollment token have as much of the word as they may.

    A stolen token admits as many devices as it has uses left, and all of them answer at once.
    """
    gate = gate_of(rollout.gate)
    every, batch = pairs.pairs_in(session, rollout.id, "all", f"batch:{token}")
    if batch < max(gate.hostile_count, BATCH_PAIRS_LEAST):
        return False
    if batch + 1 <= gate.batch_share_most * (every + 1):
        return False
    ours, fleet = pairs.admitted_by(session, token)
    return batch + 1 > 2 * ours / max(fleet, 1) * (every + 1)


def _check(
    session: Session,
    device: Device,
    deployment: Deployment,
    arm: str,
    pair: NewCanaryReport,
    now: datetime,
) -> None:
    rollout = deployment.rollout
    canary_set = canary_of(session, session.get_one(Model, rollout.model))
    shard = shard_of(canary_set, device.id) if canary_set else {}
    named = f"{deployment.release.name}|{device.id}|{pair.canary_set}|{pair.shard}|{pair.attempt}"
    placebo = arm == "control" and pair.new_model == pair.old_model
    expected = {
        "canary_set": shard.get("set"),
        **{name: shard.get(name) for name in ("shard", "utterances", "ref_words")},
        "old_model": deployment.from_sha256,
        "new_model": deployment.from_sha256 if placebo else deployment.to_sha256,
        "report_id": hashlib.sha256(named.encode()).hexdigest()[:32],
    }
    for field, value in expected.items():
        if getattr(pair, field) != value:
            raise CountsMismatch(f"{field} is {getattr(pair, field)!r}, expected {value!r}")
    if pair.base and rollout.base_sha256 in (None, deployment.from_sha256):
        raise CountsMismatch("base has counts, and this plan names no base")
    at = pair.window_start
    if at and not deployment.created_at - CLOCK_WRONG_MAX <= at <= now + CLOCK_WRONG_MAX:
        raise CountsMismatch(f"window_start is {at:%FT%RZ}, not since the offer and until now")
    for counts in filter(None, (pair.old, pair.new, pair.base)):
        if counts.sub + counts.delete > pair.ref_words or counts.ins > pair.ref_words:
            raise ImpossibleCounts("more errors than the reference has words")
    most = max((pair.worse_utts or 0) + (pair.better_utts or 0), pair.differ_utts or 0)
    if max(most, pair.old_empty or 0, pair.new_empty or 0) > pair.utterances:
        raise ImpossibleCounts("more utterances are counted than were heard")
