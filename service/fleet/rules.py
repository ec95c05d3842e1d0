"""The rules by which a device gets an order or is held, one after the other.

A poll walks them to its answer, and `explain` shows that same walk: there is no second opinion.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from service.core import conditions, policy
from service.db import documents, queries
from service.db.rollout_tables import OPEN, Deployment, Rollout
from service.db.tables import DeviceModel, Release
from service.fleet import deployments, plans
from service.fleet.holds import Finding, Hold
from trust.fields import is_at_least
from trust.roles import family_role

Applied = Iterator[tuple[Any, ...]]  # the fields of a finding, but for the rollout


def wanted(
    session: Session, row: DeviceModel, timeout: timedelta, now: datetime
) -> tuple[Deployment | None, list[Finding]]:
    """Return what a device shall do, if anything, and every rule that was applied on the way."""
    trail: list[Finding] = []
    if not _passes(_standing(row), trail):
        return None, trail
    undo = queries.reverted_deployment(session, row.device_id, row.running_sha256)
    if undo is not None:
        back = _way_back(session, undo, row, timeout, now, trail)
        if back is not None:
            return back, trail
        # The way back is barred; a fix may lead forward.
    # What is on its way goes on: a newer rollout does not make an older one look failed.
    under_way = {d.rollout_id for d in queries.open_deployments(session, row.device_id)}
    live = queries.live_rollouts(session, row.model)
    for rollout in sorted(live, key=lambda r: (r.id not in under_way, -r.priority)):
        forward = _way_forward(session, rollout, row, timeout, now, trail)
        if forward is not None:
            return forward, trail
    if undo is None and not live:
        none = f"no rollout of {row.model} is running or paused"
        trail.append(Finding("rollouts", none, Hold.NO_ROLLOUT))
    return None, trail


def signed_ends(session: Session, model: str) -> Sequence[datetime]:
    """Return when what people sign runs out: each of the documents, and the canary set."""
    ends = documents.newest_ends(session, _offline(model))
    return [*ends.values(), *documents.canary_ends(session, model).values()]


def _passes(rules: Applied, trail: list[Finding], rollout: str | None = None) -> bool:
    """Whether a device passes rules; those after the first that stops it are not applied."""
    for rule, compared, hold, *until in rules:
        trail.append(Finding(rule, compared, hold, rollout, *until))
        if hold is not None:
            return False
    return True


def _standing(row: DeviceModel) -> Applied:
    is_so = row.device.status
    yield "standing", f"the device is {is_so}", None if is_so == "active" else Hold(is_so)


def _way_back(
    session: Session,
    undo: Deployment,
    row: DeviceModel,
    timeout: timedelta,
    now: datetime,
    trail: list[Finding],
) -> Deployment | None:
    if undo.state == "canceled":
        # It was called off too late: the device's own poll proves that it had switched.
        undo.state, undo.reason = "confirmed", "after the halt"
    before = queries.first(session, Release, model=row.model, sha256=undo.from_sha256)
    existing = deployments.existing(session, undo.rollout, row, "back")

    def rules() -> Applied:
        bad = undo.release.name
        signed = before is not None and before.status == "active" and bad in before.rollback_from
        said = f"the way back from {bad} to {before.name if before else 'unknown bytes'} is "
        yield "way_back", f"{said}{'' if signed else 'not '}signed", _or(signed, Hold.NO_PIPELINE)
        yield _unexpired(session, row.model, now)
        tried = existing is not None and existing.state not in OPEN
        yield "attempt", _told(existing), _or(not tried, Hold.BACKOFF)

    if not _passes(rules(), trail, undo.rollout_id):
        return None
    if existing is not None:
        return existing
    assert before is not None
    return deployments.offer(session, undo.rollout, row, "back", before, timeout, now)


def _way_forward(
    session: Session,
    rollout: Rollout,
    row: DeviceModel,
    timeout: timedelta,
    now: datetime,
    trail: list[Finding],
) -> Deployment | None:
    tried = deployments.existing(session, rollout, row, "forward")
    existing = tried if tried is not None and tried.state in OPEN else None
    release, worst = rollout.release, 0

    def rules() -> Applied:
        nonlocal worst
        runs = row.release.name if row.release else row.running_sha256[:12] or "unknown bytes"
        there = row.running_release == rollout.release_id
        both = f"the device runs {runs}, the rollout brings {release.name}"
        yield "release", both, _or(not there, Hold.UP_TO_DATE)
        yield _may_try(tried, now)
        yield (
            "state",
            f"the rollout is {rollout.state}",
            _or(rollout.state == "running", Hold.PAUSED),
        )
        yield from _barriers(session, release, row, now)
        # Whoever leaves the cohort before the order was given gets none; after that it goes on.
        if (
            existing
            and row.order_deployment != existing.id
            and not queries.in_cohort(session, rollout.cohort, row.device_id)
        ):
            deployments.finish(session, existing, "canceled", "left the cohort", now)
            yield _within(session, rollout, row)
        if existing is None:
            yield from _turn(session, rollout, row)
            yield from _conditions(rollout, row, now)
            worst = plans.bytes_worst(session, rollout, row)
            yield from _caps(session, rollout, worst, now)

    if not _passes(rules(), trail, rollout.id):
        return None
    if existing is not None:
        return existing
    return deployments.offer(session, rollout, row, "forward", release, timeout, now, worst)


def _barriers(session: Session, release: Release, row: DeviceModel, now: datetime) -> Applied:
    """Why no order for this release could be followed by this device."""
    active, device = release.status == "active", row.device
    yield "status", f"{release.name} is {release.status}", _or(active, Hold.NO_PIPELINE)
    runs = row.release.seq if row.release else 0
    both = f"number {runs} runs, {release.seq} comes"
    yield "direction", both, _or(runs <= release.seq, Hold.NO_PIPELINE)
    asked = release.hardware or [device.hardware]
    both = f"{device.hardware}; it takes {', '.join(release.hardware) or 'any'}"
    yield "hardware", both, _or(device.hardware in asked, Hold.NO_PIPELINE)
    recent = is_at_least(device.agent_version, release.min_agent)
    both = f"{device.agent_version}; it takes {release.min_agent or 'any'}"
    yield "agent", both, _or(recent, Hold.AGENT_TOO_OLD)
    floor = plans.floor_of(session, release, row.release)
    first = f"{floor.release.name} must run first: {floor.reason}" if floor else "below no floor"
    yield "floor", first, _or(floor is None, Hold.FLOOR)
    yield _unexpired(session, release.model, now)
    # A way back is not tried: a set that is over does not bar it.
    for end in documents.canary_ends(session, release.model).values():
        until = f"the canary set is good until {end:%Y-%m-%d %H:%M}"
        yield "canary_set", until, _or(end > now, Hold.METADATA_EXPIRED)


def _turn(session: Session, rollout: Rollout, row: DeviceModel) -> Applied:
    """Whether it is this device's turn."""
    yield _within(session, rollout, row)
    began, enrolled = rollout.started_at, row.device.enrolled_at
    if not rollout.include_new and began:
        both = f"enrolled {enrolled:%Y-%m-%d %H:%M}; it takes those until {began:%Y-%m-%d %H:%M}"
        yield "enrolled", both, _or(enrolled <= began, Hold.NOT_IN_COHORT)
    stage, bucket = rollout.current_stage, policy.bucket(rollout.salt, row.device_id)
    share = f"bucket {bucket}; stage {stage.number} takes those below {stage.share_bp}"
    yield "stage", share, _or(bucket < stage.share_bp, Hold.NOT_IN_STAGE)


def _within(session: Session, rollout: Rollout, row: DeviceModel) -> tuple[str, str, Hold | None]:
    within = queries.in_cohort(session, rollout.cohort, row.device_id)
    where = f"the device is {'in' if within else 'not in'} cohort {rollout.cohort.name}"
    return "cohort", where, _or(within, Hold.NOT_IN_COHORT)


def _conditions(rollout: Rollout, row: DeviceModel, now: datetime) -> Applied:
    """Whether the device may begin now, by what it said of itself last."""
    asked, here = rollout.conditions, row.surroundings
    if not asked:
        return
    if here is None:
        yield "conditions", "its agent does not say that it keeps any", Hold.AGENT_TOO_OLD
        return
    unmet = conditions.unmet(asked, here)
    yield "conditions", unmet or "met, as the device says", _or(not unmet, Hold.CONDITIONS)
    if "window" in asked:
        window = asked["window"]
        start, end = (conditions.clock_time(window[name]) for name in ("start_min", "end_min"))
        opens = conditions.opens_at(window, here["utc_offset_s"], now)
        local = now + timedelta(seconds=here["utc_offset_s"])
        compared = f"{local:%H:%M} by the device's clock; it takes {start} to {end}"
        yield "window", compared, _or(opens <= now, Hold.OUTSIDE_WINDOW), opens


def _caps(session: Session, rollout: Rollout, worst: int, now: datetime) -> Applied:
    """Take a place and its cost, or say which cap is reached."""
    most, budget = rollout.current_stage.in_flight_max, rollout.budget
    reached = deployments.grant(session, rollout, worst, now)
    taken = "no cap" if most is None else f"{most} may be on their way at once"
    yield "in_flight", taken, _or(reached != "in_flight", Hold.STAGE_FULL)
    if budget is not None and budget.per_minute_max is not None:
        each = f"{budget.per_minute_max} may begin in a minute"
        yield "per_minute", each, _or(reached != "per_minute", Hold.PER_MINUTE)
    if budget is not None and budget.bytes_max is not None:
        spent = f"at the worst {worst} bytes more; {budget.bytes_max} in all, of which "
        spent += f"{budget.bytes_committed} are spent or may still be"
        yield "bytes", spent, _or(reached != "bytes", Hold.BUDGET)


def _unexpired(session: Session, model: str, now: datetime) -> tuple[str, str, Hold | None]:
    """Whether no document that people sign ran out: every device would refuse, not its fault."""
    ends = list(documents.newest_ends(session, _offline(model)).values())
    good = len(ends) == 3 and min(ends) > now
    until = f"signed until {min(ends):%Y-%m-%d %H:%M}" if ends else "not signed"
    return "metadata", until, _or(good, Hold.METADATA_EXPIRED)


def _offline(model: str) -> tuple[str, ...]:
    return ("root", "targets", family_role(model))


def _may_try(tried: Deployment | None, now: datetime) -> tuple[Any, ...]:
    """Whether a device may make another attempt; what was called off is not its fault."""
    again = tried.retry_at if tried is not None else None
    over = tried is not None and tried.state not in (*OPEN, "canceled")
    waits = over and (again is None or again > now)
    when = f"; again from {again:%Y-%m-%d %H:%M}" if again else "; until an operator says retry"
    told = _told(tried) + when * waits
    return "attempt", told, _or(not waits, Hold.BACKOFF), *([again] if again and waits else [])


def _told(deployment: Deployment | None) -> str:
    """Return what became of a device's attempt, in words."""
    if deployment is None:
        return "no attempt yet"
    return f"its attempt is {deployment.state}" + (
        f": {deployment.reason}" * bool(deployment.reason)
    )


def _or(passes: bool, hold: Hold) -> Hold | None:
    return None if passes else hold
