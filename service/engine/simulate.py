"""A rollout rehearsed before it starts: what its cohort runs now, and what it will take."""

from collections import Counter
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from service.core import forecast, policy
from service.core.chain import Limits
from service.core.forecast import Group, Pace, Step
from service.db import queries
from service.db.rollout_tables import Rollout
from service.db.tables import Device, DeviceModel, Release
from service.fleet import plans, sample

ROLLOUTS_LOOKED_AT = 5  # the last ones of the model, to see how many devices get there


def rollout(session: Session, asked: Rollout, poll_s: float, soon_s: float) -> dict[str, Any]:
    """Return what a rollout takes, in devices by release and network, bytes, time and evidence."""
    stages = [Step(**stage.shown("share_bp soak_s in_flight_max")) for stage in asked.stages]
    per_minute = asked.budget.per_minute_max if asked.budget else None
    success = _success(session, asked.model)
    pace = Pace(poll_s, soon_s, success=success, per_minute_max=per_minute)
    gate, target = policy.gate_of(asked.gate), asked.release
    groups = _groups(session, asked)
    lacking = [row["release"] for row in plans.missing(session, asked)["missing"]]
    told: dict[str, Any] = {
        "model": asked.model,
        "release": target.name,
        "cohort": asked.cohort.name,
    }
    told |= {"patches_missing": lacking}
    return told | forecast.forecast(groups, target.bytes, stages, gate, pace)


def _groups(session: Session, asked: Rollout) -> list[Group]:
    """Return the devices of the cohort that an update is for, by release and network class."""
    network = func.coalesce(Device.attributes["network"].as_string(), "")
    release = DeviceModel.running_release
    seen = sample.of_cohort(session, asked)
    rows = seen.members.with_only_columns(release, network, func.count())
    found = session.execute(rows.group_by(release, network).order_by(release, network)).all()
    target, groups = asked.release, []
    for release_id, link, devices in found:
        running = session.get_one(Release, release_id) if release_id else None
        if not asked.takes(running):
            continue
        planner = plans.planner_of(session, target, Limits(network=link, goes_back=asked.rollback))
        ways = planner.pipelines(running.sha256 if running else "")
        sent = sum(step.bytes for step in ways[0].steps)
        about = seen.about(devices)
        groups.append(Group(running.name if running else "", link, about, sent))
    return groups


def _success(session: Session, model: str) -> float:
    """Return the share of devices that confirmed, of those with an outcome in recent rollouts."""
    ended: Counter[str] = Counter()
    for recent in queries.recent_rollouts(session, limit=ROLLOUTS_LOOKED_AT, model=model):
        for tally in queries.tallies(session, recent.id):
            ended[tally.state] += tally.devices * (tally.direction == "forward")
    outcomes = sum(ended[state] for state in ("confirmed", "refused", "failed"))
    return ended["confirmed"] / outcomes if outcomes else 1.0
