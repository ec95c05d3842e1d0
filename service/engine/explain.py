"""Why does this device get nothing, and why does this rollout not move?

By no second opinion: a device's poll is rehearsed, in a transaction that only supposes what it
writes, and a rollout is judged as the next tick will judge it.
"""

from collections import Counter
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from service.core import policy
from service.db import queries
from service.db.rollout_tables import COUNTED, LIVE, UNSTARTED, Deployment, Rollout
from service.db.tables import DeviceModel, Model
from service.engine.tick import observe
from service.fleet import floors, offers, plans, sample
from service.fleet.bundle import hold_of
from service.fleet.holds import Finding, Hold
from service.fleet.offers import Answer
from service.fleet.reports import AGENT

SAMPLE_MAX = 50  # devices of a rollout whose polls are rehearsed
SHOWN = " ".join(COUNTED["forward"])
EVENTS_MAX = 20  # of a device, among which its last trouble is looked for


def device(
    session: Session,
    row: DeviceModel,
    rollout: Rollout | None,
    timeout: timedelta,
    now: datetime,
) -> dict[str, Any]:
    """Return what a device would be told if it asked now, and every rule behind that.

    Args:
        session: that supposes, see `Database.supposing`.
        row: the device, as it was when it asked last.
        rollout: only the rules of this one, and those before any.
        timeout: of a deployment.
        now: the time.
    """
    stop, findings = _told(session, row, rollout, timeout, now)
    return {
        "device": row.device_id,
        "model": row.model,
        "running_release": row.release.name if row.release else None,
        "running_sha256": row.running_sha256,
        "last_seen_at": row.device.last_seen_at,
        "rollout": rollout.id if rollout else None,
        "answer": stop.hold if stop else "offer",
        "stopped_by": stop and asdict(stop),
        "under_way": None if stop else _under_way(session, row, now),
        "rules": [asdict(finding) | {"passes": finding.hold is None} for finding in findings],
    }


def _under_way(session: Session, row: DeviceModel, now: datetime) -> dict[str, Any] | None:
    """Return how far a device is with what it was offered, and what it said of trouble since."""
    deployment = session.get(Deployment, row.deployment_id or "")
    if deployment is None or deployment.created_at == now:  # the rehearsal made it
        return None
    last = queries.last_events(session, row.device_id, EVENTS_MAX)
    notes = (e for e in last if e.kind == "note" and (e.kind, e.reason) != AGENT)
    said = next((e for e in notes if e.received_at >= deployment.created_at), None)
    told = deployment.shown("id state created_at updated_at deadline_at")
    return told | {"trouble": said and said.shown("reason detail received_at")}


def rollout(
    session: Session, rollout: Rollout, timeout: timedelta, now: datetime
) -> dict[str, Any]:
    """Return why a rollout does not move, what is missing, and what holds its devices.

    What has an outcome is counted, a large cohort is not: a sample stands for it. Of the devices
    without an outcome, the polls of `SAMPLE_MAX` are rehearsed, always the same ones.
    """
    seen = sample.of_cohort(session, rollout)
    devices = seen.about(seen.devices)
    there = seen.about(seen.by_release.get(rollout.release_id, 0))
    outcomes: Counter[str] = Counter()
    for stage in rollout.stages:
        outcomes.update({"on_their_way": stage.in_flight} | stage.shown(SHOWN))
    following = None
    if rollout.state in LIVE:
        following = policy.decide(observe(session, rollout, now, timeout))
    waiting = rollout.state in UNSTARTED
    count, ids = sample.without_outcome(session, rollout, seen, SAMPLE_MAX)
    told: dict[tuple[str, str], dict[str, Any]] = {}
    for device_id in ids:
        row = session.get_one(DeviceModel, device_id)
        stop, findings = _told(session, row, rollout, timeout, now)
        last = stop or findings[-1]
        session.expire_all()  # what this one was given is there for the next one
        told.setdefault(
            (last.hold or "offer", last.rule),
            {"devices": 0, "for_example": device_id, "compared": last.compared},
        )["devices"] += 1
    held = [{"answer": hold, "rule": rule} | more for (hold, rule), more in told.items()]
    return rollout.shown("id model state reasons stage start_at waiting_for") | {
        "release": rollout.release.name,
        "cohort": rollout.cohort.name,
        "next": following and {"kind": following.kind, "because": following.because},
        "patches_missing": plans.missing(session, rollout)["missing"] if waiting else [],
        "below_floor": floors.held(session, rollout, seen),
        "devices": {"cohort": devices, "on_the_release": there, "without_outcome": count}
        | {state: n for state, n in outcomes.items() if n},
        "counted": seen.times == 1,
        "sampled": len(ids),
        "held": sorted(held, key=lambda one: -one["devices"]),
    }


def _told(
    session: Session, row: DeviceModel, rollout: Rollout | None, timeout: timedelta, now: datetime
) -> tuple[Finding | None, list[Finding]]:
    """Return the rule that stops a device, or one rollout for it, and all that were applied."""
    known = offers.Read(row.device, row, session.get_one(Model, row.model).generation)
    answer = offers.check_in(session, row.device, row.running_sha256, timeout, now, known)
    hold = hold_of(answer)
    findings = list(answer.findings)
    if hold is Hold.NOTHING_PUBLISHED:
        findings.append(Finding("published", "there is no timestamp yet", hold))
    if rollout is None:
        return next((f for f in findings if f.hold and f.hold == hold), None), findings
    ours = [f for f in findings if f.rollout in (None, rollout.id) and f.rule != "rollouts"]
    if not any(f.rollout == rollout.id or f.hold for f in ours):
        ours.append(_not_asked(answer, row, rollout))
    return next((f for f in ours if f.hold), None), ours


def _not_asked(answer: Answer, row: DeviceModel, rollout: Rollout) -> Finding:
    """Return why a rollout's rules were not even applied."""
    if rollout.model != row.model:
        other = f"the device runs {row.model}, the rollout is of {rollout.model}"
        return Finding("model", other, Hold.NOT_IN_COHORT, rollout.id)
    if rollout.state not in LIVE:
        return Finding("state", f"the rollout is {rollout.state}", Hold.NO_ROLLOUT, rollout.id)
    first = answer.findings[-1].rollout
    return Finding("turn", f"rollout {first} comes first", Hold.OTHER_FIRST, rollout.id)
