"""The rules by which a device gets an order or is held, one after the other.

A poll walks them to its answer, and `explain` shows that same walk: there is no second opinion.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from service.core import conditions, policy
from service.db import documents, queries
from service.db.rollout_tables import LIVE, OPEN, Cohort, Deployment, Rollout
from service.db.tables import DeviceModel, Release
from service.fleet import deployments, edges, floors, plans
from service.fleet.ground import Ground, offline
from service.fleet.holds import Finding, Hold
from trust.fields import is_at_least

Applied = Iterator[tuple[Any, ...]]  # the fields of a finding, but for the rollout


@dataclass(frozen=True)
class Case:
    """One device that asks, and what its answer follows from.

    Attributes:
        ground: what is the same for every device of its model.
        deployments: its own, the newest first.
        timeout: of a deployment.
    """

    session: Session
    ground: Ground
    row: DeviceModel
    deployments: Sequence[Deployment]
    timeout: timedelta
    now: datetime

    @property
    def release(self) -> Release | None:
        """What the device runs, if that is known."""
        return self.ground.releases.get(self.row.running_release or 0)

    def tried(self, rollout: Rollout, direction: str) -> Deployment | None:
        """Return the device's deployment in a rollout; there is one at most in each direction."""
        same = (rollout.id, direction)
        return next((d for d in self.deployments if (d.rollout_id, d.direction) == same), None)


def wanted(case: Case) -> tuple[Deployment | None, list[Finding]]:
    """Return what a device shall do, if anything, and every rule that was applied on the way."""
    trail: list[Finding] = []
    if not _passes(_standing(case.row), trail):
        return None, trail
    undo = _reverted(case)
    if undo is not None:
        back = _way_back(case, undo, trail)
        if back is not None:
            return back, trail
        # The way back is barred; a fix may lead forward.
    # What is on its way goes on: a newer rollout does not make an older one look failed.
    under_way = {d.rollout_id for d in case.deployments if d.state in OPEN}
    live = [rollout for rollout in case.ground.rollouts.values() if rollout.state in LIVE]
    for rollout in sorted(live, key=lambda r: (r.id not in under_way, -r.priority)):
        forward = _way_forward(case, rollout, trail)
        if forward is not None:
            return forward, trail
    if undo is None and not live:
        none = f"no rollout of {case.row.model} is running or paused"
        trail.append(Finding("rollouts", none, Hold.NO_ROLLOUT))
    return None, trail


def signed_ends(session: Session, model: str) -> Sequence[datetime]:
    """Return when what people sign runs out: each of the documents, and the canary set."""
    ends = documents.newest_ends(session, offline(model))
    return [*ends.values(), *documents.canary_ends(session, model).values()]


def signed_until(ground: Ground, now: datetime) -> datetime:
    """Return when the next of what people sign runs out; what is later comes by a change."""
    ends = [*ground.ends.values(), *_canary_ends(ground)]
    left_s = (release.rollback_until - now.timestamp() for release in ground.releases.values())
    # A way back ends, too; nothing is told from memory for longer than this.
    ends += [now + timedelta(seconds=left) for left in left_s if 0 < left <= 7 * 86_400]
    return min((end for end in ends if end > now), default=datetime.max.replace(tzinfo=UTC))


def _canary_ends(ground: Ground) -> list[datetime]:
    end = ground.canary and ground.canary.set.expires_at
    return [end] if end else []


def _reverted(case: Case) -> Deployment | None:
    """Return the forward deployment that put these bytes on the device, if it is to be undone.

    Only the newest one that leads to these bytes can have put them there.
    """
    led = (d for d in case.deployments if d.direction == "forward")
    newest = next((d for d in led if d.to_sha256 == case.row.running_sha256), None)
    rollout = case.ground.rollouts.get(newest.rollout_id) if newest else None
    return newest if rollout is not None and rollout.state == "halted" else None


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


def _way_back(case: Case, undo: Deployment, trail: list[Finding]) -> Deployment | None:
    if undo.state == "canceled":
        # It was called off too late: the device's own poll proves that it had switched.
        deployments.confirm_late(case.session, undo)
    rollout, before = case.ground.rollouts[undo.rollout_id], case.ground.release(undo.from_sha256)
    existing = case.tried(rollout, "back")

    def rules() -> Applied:
        bad = rollout.release
        signed = before is not None and before.status == "active"
        if before is not None and before.seq < bad.seq:
            signed = signed and before.takes_back(bad, case.now)
        said = f"the way back from {bad.name} to {before.name if before else 'unknown bytes'} is "
        yield "way_back", f"{said}{'' if signed else 'not '}signed", _or(signed, Hold.NO_PIPELINE)
        yield _unexpired(case)
        yield _may_try(existing, case.now)

    if not _passes(rules(), trail, undo.rollout_id):
        return None
    if existing is not None and existing.state in OPEN:
        return existing
    assert before is not None
    times = (case.timeout, case.now)
    return deployments.offer(case.session, rollout, case.row, "back", before, existing, *times)


def _way_forward(case: Case, rollout: Rollout, trail: list[Finding]) -> Deployment | None:
    row, release, worst = case.row, rollout.release, 0
    tried = case.tried(rollout, "forward")
    existing = tried if tried is not None and tried.state in OPEN else None

    def rules() -> Applied:
        nonlocal worst
        runs = case.release.name if case.release else row.running_sha256[:12] or "unknown bytes"
        there = row.running_release == rollout.release_id
        both = f"the device runs {runs}, the rollout brings {release.name}"
        yield "release", both, _or(not there, Hold.UP_TO_DATE)
        yield _may_try(tried, case.now)
        yield (
            "state",
            f"the rollout is {rollout.state}",
            _or(rollout.state == "running", Hold.PAUSED),
        )
        yield from _barriers(case, rollout)
        # Whoever leaves the cohort before the order was given gets none; after that it goes on.
        if existing and row.order_deployment != existing.id and not _is_in(case, rollout.cohort):
            left = ("canceled", "left the cohort", case.now)
            deployments.finish(case.session, existing, *left)
            yield _within(case, rollout)
        if existing is None:
            yield from _turn(case, rollout)
            yield from _conditions(rollout, row, case.now)
            worst = plans.bytes_worst(case.session, case.ground, rollout, row)
            yield from _caps(case, rollout, worst)

    if not _passes(rules(), trail, rollout.id):
        return None
    if existing is not None:
        return existing
    times = (case.timeout, case.now)
    return deployments.offer(case.session, rollout, row, "forward", release, tried, *times, worst)


def _barriers(case: Case, rollout: Rollout) -> Applied:
    """Why no order for this release could be followed by this device."""
    release, device = rollout.release, case.row.device
    active = release.status == "active"
    yield "status", f"{release.name} is {release.status}", _or(active, Hold.NO_PIPELINE)
    back = case.release if case.release and case.release.seq > release.seq else None
    both = f"number {case.release.seq if case.release else 0} runs, {release.seq} comes"
    signed = back is not None and rollout.rollback and release.takes_back(back, case.now)
    if back and rollout.rollback:
        both += f", and the way back is {'' if signed else 'not '}signed"
    yield "direction", both, _or(back is None or signed, Hold.NO_PIPELINE)
    asked = release.hardware or [device.hardware]
    both = f"{device.hardware}; it takes {', '.join(release.hardware) or 'any'}"
    yield "hardware", both, _or(device.hardware in asked, Hold.NO_PIPELINE)
    recent = is_at_least(device.agent_version, release.min_agent)
    both = f"{device.agent_version}; it takes {release.min_agent or 'any'}"
    yield "agent", both, _or(recent, Hold.AGENT_TOO_OLD)
    floor = floors.floor_below(case.ground.floors, release, case.release)
    first = f"{floor.release.name} must run first: {floor.reason}" if floor else "below no floor"
    if back and (floor := edges.undone_floor(case.ground.floors, release, back)):
        first = f"the way back would undo the floor {floor.release.name}: {floor.reason}"
    yield "floor", first, _or(floor is None, Hold.FLOOR)
    yield _unexpired(case)
    # A way back is not tried: a set that is over does not bar it.
    for end in _canary_ends(case.ground):
        until = f"the canary set is good until {end:%Y-%m-%d %H:%M}"
        yield "canary_set", until, _or(end > case.now, Hold.METADATA_EXPIRED)


def _turn(case: Case, rollout: Rollout) -> Applied:
    """Whether it is this device's turn."""
    yield _within(case, rollout)
    began, enrolled = rollout.started_at, case.row.device.enrolled_at
    if not rollout.include_new and began:
        both = f"enrolled {enrolled:%Y-%m-%d %H:%M}; it takes those until {began:%Y-%m-%d %H:%M}"
        yield "enrolled", both, _or(enrolled <= began, Hold.NOT_IN_COHORT)
    stage, bucket = rollout.current_stage, policy.bucket(rollout.salt, case.row.device_id)
    share = f"bucket {bucket}; stage {stage.number} takes those below {stage.share_bp}"
    yield "stage", share, _or(bucket < stage.share_bp, Hold.NOT_IN_STAGE)


def _within(case: Case, rollout: Rollout) -> tuple[str, str, Hold | None]:
    within = _is_in(case, rollout.cohort)
    where = f"the device is {'in' if within else 'not in'} cohort {rollout.cohort.name}"
    return "cohort", where, _or(within, Hold.NOT_IN_COHORT)


def _is_in(case: Case, cohort: Cohort) -> bool:
    # All devices in good standing, as this one is: there is nothing to look for.
    everyone = cohort.filter is not None and not any(cohort.filter.values())
    return everyone or queries.in_cohort(case.session, cohort, case.row.device_id)


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


def _caps(case: Case, rollout: Rollout, worst: int) -> Applied:
    """Take a place and its cost, or say which cap is reached."""
    most, budget = rollout.current_stage.in_flight_max, rollout.budget
    reached, committed = deployments.grant(case.session, case.ground, rollout, worst, case.now)
    taken = "no cap" if most is None else f"{most} may be on their way at once"
    yield "in_flight", taken, _or(reached != "in_flight", Hold.STAGE_FULL)
    if budget is not None and budget.per_minute_max is not None:
        each = f"{budget.per_minute_max} may begin in a minute"
        yield "per_minute", each, _or(reached != "per_minute", Hold.PER_MINUTE)
    if budget is not None and budget.bytes_max is not None:
        spent = f"at the worst {worst} bytes more; {budget.bytes_max} in all, of which "
        spent += f"{committed} are spent or may still be"
        yield "bytes", spent, _or(reached != "bytes", Hold.BUDGET)


def _unexpired(case: Case) -> tuple[str, str, Hold | None]:
    """Whether no document that people sign ran out: every device would refuse, not its fault."""
    ends = list(case.ground.ends.values())
    good = len(ends) == 3 and min(ends) > case.now
    until = f"signed until {min(ends):%Y-%m-%d %H:%M}" if ends else "not signed"
    return "metadata", until, _or(good, Hold.METADATA_EXPIRED)


def _may_try(tried: Deployment | None, now: datetime) -> tuple[Any, ...]:
    """Whether a device may try again: also who was called off, or is where it went back from."""
    again = tried.retry_at if tried is not None else None
    over = tried is not None and tried.state not in (*OPEN, "canceled", "rolled_back")
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
