"""Four eyes: what a rollout is going to do, whether that takes approvals, and if it has them.

An approval is of the whole plan, as it was shown: any change makes another plan, which nobody
approved. With keys in the file of limits an approval is a signature; the publisher checks it by
its own copy of that file, and whoever took the server can forge none.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Signature
from sqlalchemy.orm import Session

from service.core.errors import (
    BeyondLimits,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotApproved,
    NotAsSeen,
    WrongState,
)
from service.core.rollout_limits import BP, RolloutLimits
from service.core.words import counted
from service.db import queries
from service.db.rollout_tables import LIVE, UNSTARTED, Budget, Rollout
from service.engine import rollouts
from service.fleet import edges, plans, rules
from trust.approval import approval, plan_digest


def plan_of(rollout: Rollout) -> dict[str, Any]:
    """Return all that a rollout is going to do, as people approve it."""
    return {
        "v": 1,
        "rollout": rollout.id,
        "model": rollout.model,
        "release": rollout.release.name,
        "sha256": rollout.release.sha256,
        "cohort": rollout.cohort.shown("name filter"),
        "devices": rollout.devices,
        "stages": [stage.shown("share_bp soak_s in_flight_max") for stage in rollout.stages],
        **rollout.shown("conditions priority include_new"),
        "budget": rollout.budget and rollout.budget.shown("per_minute_max bytes_max"),
        "gate": rollout.gate,
        "on_halt": rollout.on_halt,
        **({"rollback": True} if rollout.rollback else {}),
        **({"start_at": rollout.start_at.isoformat()} if rollout.start_at else {}),
    }


def is_approved(limits: RolloutLimits, rollout: Rollout, given: Sequence[Any]) -> bool:
    """Whether enough people approved what a rollout is now; rows may hold anything."""
    plan = plan_of(rollout)
    try:
        if limits.approvers:
            envelope = approval(plan)
            for one in given:
                envelope.signatures[one["keyid"]] = Signature(one["keyid"], one["sig"])
            envelope.verify(list(limits.approvers), limits.approvals)
            return True
        makers = {rollout.created_by, rollout.asked_by}
        people = {one["by"] for one in given if one["plan"] == plan_digest(plan)}
    except (VerificationError, ValueError, TypeError, KeyError, AttributeError):
        return False
    return len(people - makers) >= limits.approvals


def start(
    session: Session,
    rollout_id: str,
    actor: str,
    now: datetime,
    limits: RolloutLimits | None,
    *,
    full_downloads: bool = False,
) -> Rollout:
    """Start a draft, now or when its time has come, or ask for the approvals that this takes.

    Raises:
        BeyondLimits: no approval would help.
        NoEdge: it is a rollback, and the family signs no way back.
        PatchesMissing: a good part of the cohort would fetch the full file, and nobody said yes.
    """
    rollout = rollouts.changing(session, rollout_id, *UNSTARTED, "running")
    if rollout.state != "draft":
        if limits is None and rollout.state == "awaiting_approval":
            _begin(session, rollout, actor, now)
        return rollout
    edges.check_edges(session, rollout, now)
    reason = plans.check_patches(session, rollout, accepted=full_downloads)
    if not _ask(session, rollout, actor, now, limits, reason):
        _begin(session, rollout, actor, now, reason)
    return rollout


def start_due(
    session: Session,
    rollout_id: str,
    now: datetime,
    timeout: timedelta,
    limits: RolloutLimits | None,
) -> None:
    """Start a rollout whose time has come if it still may, or note why not; a tick asks again."""
    rollout = rollouts.changing(session, rollout_id, "scheduled")
    try:
        edges.check_edges(session, rollout, now)
        reason = plans.check_patches(session, rollout, accepted=rollout.full_downloads)
        ends = rules.signed_ends(session, rollout.model)
        if not ends or min(ends) <= now + timeout:
            raise WrongState("what people signed runs out before an update would be done")
        approved = limits and is_approved(limits, rollout, rollout.approvals or [])
        if approved or not _ask(session, rollout, rollout.asked_by, now, limits, reason):
            rollouts.start(session, rollout_id, "tick", now, reason)
    except Conflict as refusal:
        since = f"{rollout.start_at:%F %R} UTC" if rollout.start_at else "now"
        rollout.waiting_for = f"was to start at {since}: {refusal.detail}"


def _begin(session: Session, rollout: Rollout, actor: str, now: datetime, reason: str = "") -> None:
    """Start a rollout that has what it takes, or let it wait for its time."""
    if rollout.start_at is None or rollout.start_at <= now:
        rollouts.start(session, rollout.id, actor, now, reason)
        return
    waits: dict[str, Any] = {"state": "scheduled", "waiting_for": _starts(rollout.start_at)}
    waits |= {"asked_by": rollout.asked_by or actor}  # if it takes approvals by then, not theirs
    rollouts.change(session, rollout, "schedule", reason, actor, now, **waits)


def _starts(at: datetime | None) -> str:
    return f"starts at {at:%F %R} UTC" if at else "starts at the next tick"


def _ask(
    session: Session,
    rollout: Rollout,
    actor: str | None,
    now: datetime,
    limits: RolloutLimits | None,
    reason: str,
) -> bool:
    """Let a rollout wait for the approvals that it takes; returns whether it takes some."""
    asked = _check(session, rollout, limits) if limits else None
    if limits is None or asked is None:
        return False
    devices, reached, fleet = asked
    waiting = (
        f"{limits.approvals} to approve it, others than who made it: it goes to "
        f"{counted(devices, 'device')}, and reaches {reached} of {fleet} of "
        f"{rollout.model}; {actor} asks"
    )
    asking: dict[str, Any] = {"state": "awaiting_approval", "asked_by": actor, "approvals": None}
    asking |= {"devices": devices, "waiting_for": waiting}
    rollouts.change(session, rollout, "ask", reason, actor or "tick", now, **asking)
    return True


def approve(
    session: Session,
    rollout_id: str,
    actor: str,
    now: datetime,
    limits: RolloutLimits | None,
    given: dict[str, Any],
) -> Rollout:
    """Approve what a rollout is going to do; the last approval that it takes starts it.

    Args:
        session: of the change.
        rollout_id: which.
        actor: who approves.
        now: the time.
        limits: who may approve, and how many must.
        given: the digest of the `plan` that was seen; the signature on it, as `keyid` and `sig`.

    Raises:
        Forbidden: the caller made it, asked for it, or approved it before.
        NotAsSeen: it is another plan.
        NotApproved: the signature is none of somebody who may approve.
    """
    rollout = rollouts.changing(session, rollout_id, "awaiting_approval")
    if limits is None:
        raise WrongState("this server has no file of limits any more: start the rollout")
    before = rollout.approvals or []
    used = {one["keyid"] for one in before} - {None}
    if actor in {rollout.created_by, rollout.asked_by, *(one["by"] for one in before)} or (
        given["keyid"] in used
    ):
        raise Forbidden(f"{actor} made rollout {rollout.id} or approved it; somebody else must")
    if given["plan"] != plan_digest(plan_of(rollout)):
        raise NotAsSeen(f"the plan of rollout {rollout.id} is another by now; look again")
    one = {"by": actor, "at": now.isoformat(), **given}
    if not is_approved(limits.model_copy(update={"approvals": 1}), rollout, [one]):
        raise NotApproved(
            "send a signature by a key that the file of limits lists as an approver's"
        )
    held = {"approvals": [*before, one], "waiting_for": rollout.waiting_for}
    rollouts.change(session, rollout, "approve", "", actor, now, one, **held)
    if is_approved(limits, rollout, [*before, one]):
        _begin(session, rollout, actor, now)
    return rollout


def amend(
    session: Session,
    rollout_id: str,
    actor: str,
    now: datetime,
    limits: RolloutLimits | None,
    given: dict[str, Any],
) -> Rollout:
    """Change what a rollout may cost, or its time; who approved it before approved another plan.

    Raises:
        BeyondLimits: it has grown since it was asked for.
        InvalidRequest: nothing is asked for, or bytes that nobody counted from the start.
        WrongState: it has ended, began already, or goes on by approvals that a change would void.
    """
    rollout = rollouts.changing(session, rollout_id, *UNSTARTED, *LIVE)
    if not given:
        raise InvalidRequest("say what to change")
    is_live, budget = rollout.state in LIVE, rollout.budget or Budget()
    if is_live and "start_at" in given:
        raise WrongState(f"rollout {rollout.id} began already", state=rollout.state)
    if is_live and rollout.approvals:
        raise WrongState(f"rollout {rollout.id} was approved as it is; halt it and make another")
    if is_live and given.get("bytes_max") and budget.bytes_max is None:
        raise InvalidRequest("its bytes were not counted from the start, so they have no maximum")
    when = {name: given[name] for name in given if name == "start_at"}
    for name in given.keys() - when:
        setattr(budget, name, given[name])
    rollout.budget = budget if given.keys() - when else rollout.budget
    waits = _starts(when["start_at"]) if when and rollout.state == "scheduled" else ""
    told = given | {name: at and at.isoformat() for name, at in when.items()}
    kept = {"waiting_for": waits or rollout.waiting_for, "approvals": None} | when
    rollouts.change(session, rollout, "change", "", actor, now, told, **kept)
    if rollout.state == "scheduled":
        _ask(session, rollout, actor, now, limits, "")
    return rollout


def _check(
    session: Session, rollout: Rollout, limits: RolloutLimits
) -> tuple[int, int, int] | None:
    """Return what takes approvals: devices of the cohort, devices reached, fleet; or None.

    Raises:
        BeyondLimits: its stages are too large or too short, approved or not.
    """
    fleet = limits.fleet(queries.count_devices(session, rollout.model))
    devices, reached = queries.count_reach(session, rollout)
    before_bp = 0
    for stage in rollout.stages:
        most_bp = limits.step_share_bp if before_bp else limits.first_share_bp
        step, most = (stage.share_bp - before_bp) * devices / BP, most_bp * fleet / BP
        if step > max(1, most):
            raise BeyondLimits(
                f"stage {stage.number} adds about {step:.0f} of {counted(fleet, 'device')} of "
                f"{rollout.model}; at most {most_bp / 100:g} % may be added there",
                share_bp_max=most_bp,
            )
        if stage is not rollout.stages[-1] and stage.soak_s < limits.soak_s:
            raise BeyondLimits(
                f"stage {stage.number} soaks for {stage.soak_s} s; at least {limits.soak_s} s "
                "lie between two stages",
                soak_s_least=limits.soak_s,
            )
        before_bp = stage.share_bp
    return (devices, reached, fleet) if limits.takes_approval(reached, fleet) else None
