"""A rollout rehearsed before it starts: what its cohort runs now, and what it will take."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from service.core import conditions, forecast, policy
from service.core.chain import Limits
from service.core.forecast import Group, Hours, Pace, Step
from service.core.words import counted
from service.db import queries
from service.db.rollout_tables import Rollout
from service.db.tables import Device, DeviceModel, Release
from service.fleet import floors, plans, sample

ROLLOUTS_LOOKED_AT = 5  # the last ones of the model, to see how many devices get there


def rollout(
    session: Session, asked: Rollout, poll_s: float, soon_s: float, now: datetime
) -> dict[str, Any]:
    """Return what a rollout takes, in devices by release and network, bytes, time and evidence."""
    stages = [Step(**stage.shown("share_bp soak_s in_flight_max")) for stage in asked.stages]
    budget = asked.budget.shown("per_minute_max bytes_max") if asked.budget else {}
    seen = sample.of_cohort(session, asked)
    groups, zones, untold = _groups(session, asked, seen)
    hours = None
    if "window" in asked.conditions:
        at = asked.start_at or now
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
        hours = Hours(asked.conditions["window"], zones, int((at - midnight).total_seconds()))
    pace = Pace(poll_s, soon_s, success=_success(session, asked.model), hours=hours, **budget)
    gate, target = policy.gate_of(asked.gate), asked.release
    lacking = [row["release"] for row in plans.missing(session, asked)["missing"]]
    told: dict[str, Any] = {
        "model": asked.model,
        "release": target.name,
        "cohort": asked.cohort.name,
    }
    found = forecast.forecast(groups, target.bytes, stages, gate, pace)
    notes = {**_window_note(found, hours), **_budget_note(found), **_untold_note(untold)}
    shown = [{"about": about, "says": says} for about, says in notes.items()]
    told |= {"patches_missing": lacking, "below_floor": floors.held(session, asked, seen)}
    return told | {"untold": untold, "notes": shown} | found


def _window_note(found: Mapping[str, Any], hours: Hours | None) -> dict[str, str]:
    if hours is None:
        return {}
    opens, closes = (conditions.clock_time(hours.window[n]) for n in ("start_min", "end_min"))
    took, anytime = (timedelta(seconds=found[n]) for n in ("seconds", "seconds_anytime"))
    whose = f"by their own clocks, in {counted(len(hours.zones), 'zone')}"
    says = f"devices begin from {opens} to {closes} {whose}: it takes {took}, at any hour {anytime}"
    return {"window": says}


def _budget_note(found: Mapping[str, Any]) -> dict[str, str]:
    budget, devices = found["budget"], counted(found["devices"], "device")
    if budget is None:
        return {}
    if budget["stage"] is None:
        return {"budget": f"the bytes last for all of {devices}"}
    says = (
        f"the bytes last for about {budget['devices']} of {devices} and are used up in stage "
        f"{budget['stage']}: there the rollout pauses (budget) until somebody raises them, as "
        f"with fleetdiff rollout change ID --bytes {budget['bytes_needed']}"
    )
    return {"budget": says}


def _untold_note(untold: int) -> dict[str, str]:
    some = counted(untold, "more device gets", "more devices get")
    says = f"{some} nothing: no agent says there that it keeps conditions"
    return {"conditions": says} if untold else {}


def _groups(
    session: Session, asked: Rollout, seen: sample.Sample
) -> tuple[list[Group], list[int], int]:
    """Return the devices that an update may reach, by release and network class, and their zones.

    With conditions only those that tell their surroundings; the third is how many do not.
    """
    said, release = DeviceModel.surroundings, DeviceModel.running_release
    here = func.nullif(said["network"].as_string(), "")
    network = func.coalesce(here, Device.attributes["network"].as_string(), "")
    zone = said["utc_offset_s"].as_integer()
    barriers = queries.floors_of(session, asked.model)
    kinds = (release, network, zone)
    rows = seen.members.with_only_columns(*kinds, func.count()).group_by(*kinds)
    known = {r.id: r for r in queries.releases_of(session, asked.model)}
    devices: Counter[tuple[Release | None, str]] = Counter()
    zones, untold = set[int](), 0
    for release_id, link, offset_s, number in session.execute(rows.order_by(*kinds)):
        running = known.get(release_id)
        if not asked.takes(running) or floors.floor_below(barriers, asked.release, running):
            continue
        if asked.conditions and offset_s is None:
            untold += number
            continue
        devices[running, link] += number
        zones |= set() if offset_s is None else {offset_s}
    groups = []
    for (running, link), number in devices.items():
        limits = Limits(network=link, goes_back=asked.rollback)
        ways = plans.planner_of(session, asked.release, limits).pipelines(
            running.sha256 if running else ""
        )
        sent = [sum(step.bytes for step in way.steps) for way in ways]
        name, about = running.name if running else "", seen.about(number)
        groups.append(Group(name, link, about, sent[0], sum(sent)))
    return groups, sorted(zones), seen.about(untold)


def _success(session: Session, model: str) -> float:
    """Return the share of devices that confirmed, of those with an outcome in recent rollouts."""
    recent = queries.recent_rollouts(session, limit=ROLLOUTS_LOOKED_AT, model=model)
    stages = [stage for rollout in recent for stage in rollout.stages]
    confirmed = sum(stage.confirmed for stage in stages)
    outcomes = confirmed + sum(stage.refused + stage.failed for stage in stages)
    return confirmed / outcomes if outcomes else 1.0
