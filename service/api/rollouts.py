"""Release managers and operators: rollouts. Routes record intent; `tick` moves."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import Depends, Header, Query, Response
from starlette.concurrency import run_in_threadpool

from service.api.deps import Config, Data, Now, Reader, Rehearsal, Supposed, Tx, of_app, operator
from service.api.paging import LIMIT, Limit, page
from service.api.problems import document
from service.api.strict import for_people
from service.core.bodies import Label, Name, NewApproval, NewRollout, RolloutChange, Why
from service.core.rollout_limits import RolloutLimits
from service.db import queries
from service.db.rollout_tables import ENDED
from service.db.tables import ApiToken
from service.engine import approvals, explain, pauses, rollouts, simulate
from service.engine.health import rollout_view
from service.fleet import plans
from trust.approval import plan_digest

router = for_people("rollouts")
CanRead = Annotated[ApiToken, Depends(operator("rollouts:read"))]
CanWrite = Annotated[ApiToken, Depends(operator("rollouts:write"))]
CanApprove = Annotated[ApiToken, Depends(operator("rollouts:approve"))]
CanHalt = Annotated[ApiToken, Depends(operator("rollouts:halt"))]


def seen(
    session: Tx, rollout_id: Label, if_match: Annotated[str, Header(max_length=64)] = "*"
) -> None:
    """Refuse unless the rollout is as the caller saw it (`If-Match`)."""
    if if_match != "*":
        rollouts.check_unchanged(session, rollout_id, if_match.strip('"'))


AsSeen = Annotated[None, Depends(seen)]


def reason(_seen: AsSeen, body: Why | None = None) -> str:
    """Return why the caller does this."""
    return body.reason if body else ""


Reason = Annotated[str, Depends(reason)]
Limits = Annotated[RolloutLimits | None, Depends(of_app("rollout_limits"))]
Ended = Literal["completed", "halted", "canceled"]
State = Literal["draft", "awaiting_approval", "scheduled", "running", "paused", Ended]
WAIT_STEP_S = 0.25


@router.post("/rollouts", status_code=201, responses=document(404, 409))
def create_rollout(caller: CanWrite, body: NewRollout, session: Tx, now: Now) -> dict[str, Any]:
    """Add a rollout as a draft; its gate is fixed from here on."""
    rollout = rollouts.create_rollout(session, actor=caller.name, now=now, **vars(body))
    return rollout_view(session, rollout, now)


@router.post("/rollouts/simulate", responses=document(404, 409))
def simulate_rollout(
    caller: CanWrite, body: NewRollout, session: Rehearsal, config: Config, now: Now
) -> dict[str, Any]:
    """Rehearse a rollout that is not there yet: devices, bytes, time, and what it would detect.

    Nothing is kept of it.
    """
    asked = rollouts.create_rollout(session, actor=caller.name, now=now, **vars(body))
    return simulate.rollout(session, asked, config.poll_after_s, config.poll_soon_s, now)


@router.get("/rollouts", responses=document(404))
def list_rollouts(
    _caller: CanRead,
    session: Reader,
    now: Now,
    model: Name | None = None,
    state: State | None = None,
    cursor: Label | None = None,
    limit: Limit = LIMIT,
) -> dict[str, Any]:
    """List rollouts, the newest first; pass `next` as `cursor` for the next page."""
    states = [state] if state else None
    after = rollouts.rollout_named(session, cursor) if cursor else None
    rows = queries.recent_rollouts(session, limit=limit, model=model, states=states, after=after)
    return page([rollout_view(session, row, now) for row in rows], "id", limit)


@router.get("/rollouts/{rollout_id}", responses=document(404))
def get_rollout(
    _caller: CanRead, rollout_id: Label, session: Reader, now: Now, response: Response
) -> dict[str, Any]:
    """Show a rollout: its stages, its word error rates, its evidence, what it waits for.

    With its `ETag` as `If-Match`, a verb is refused if somebody changed the rollout meanwhile.
    """
    rollout = rollouts.rollout_named(session, rollout_id)
    response.headers["ETag"] = f'"{rollout.generation}"'
    return rollout_view(session, rollout, now)


@router.patch("/rollouts/{rollout_id}", responses=document(404, 409, 412))
def change_rollout(
    caller: CanWrite,
    rollout_id: Label,
    body: RolloutChange,
    session: Tx,
    now: Now,
    limits: Limits,
    _as_seen: AsSeen,
) -> dict[str, Any]:
    """Change what a rollout may cost, or its time until it starts; both take approvals again."""
    given = body.model_dump(exclude_unset=True)
    rollout = approvals.amend(session, rollout_id, caller.name, now, limits, given)
    return rollout_view(session, rollout, now)


@router.get("/rollouts/{rollout_id}/explain", responses=document(404))
def explain_rollout(
    _caller: CanRead, rollout_id: Label, session: Supposed, config: Config, now: Now
) -> dict[str, Any]:
    """Show why a rollout does not move, what is missing, and what holds its devices.

    Outcomes are counted; the reasons are those of a sample of the devices without any.
    """
    rollout = rollouts.rollout_named(session, rollout_id)
    timeout = timedelta(seconds=config.deployment_timeout_s)
    return explain.rollout(session, rollout, timeout, now)


@router.get("/rollouts/{rollout_id}/decisions", responses=document(404))
def list_decisions(_caller: CanRead, rollout_id: Label, session: Reader) -> dict[str, Any]:
    """List why a rollout moved or stopped, with the sums each decision rests on."""
    rollouts.rollout_named(session, rollout_id)
    rows = queries.decisions_of(session, rollout_id)
    return {"items": [row.shown("seq at stage decision reason actor evidence") for row in rows]}


@router.get("/patches/missing", responses=document(404))
def missing_patches(
    _caller: CanRead,
    session: Reader,
    rollout: Label,
    over_bp: Annotated[int, Query(ge=0, le=10_000)] = plans.MISSING_OVER_BP,
) -> dict[str, Any]:
    """List the running releases from which a rollout's devices would fetch the full file.

    Only those that more of the cohort runs than `over_bp` basis points.
    """
    return plans.missing(session, rollouts.rollout_named(session, rollout), over_bp)


@router.get("/rollouts/{rollout_id}/wait", responses=document(404))
async def wait_for_rollout(
    _caller: CanRead,
    rollout_id: Label,
    database: Data,
    clock: Annotated[Callable[[], datetime], Depends(of_app("clock"))],
    until: Literal["running", "paused", "completed", "halted"] = "completed",
    timeout_s: Annotated[float, Query(ge=0, le=60)] = 30,
) -> dict[str, Any]:
    """Return the rollout once it reached a state or ended, or when the time is over.

    The other asynchronous route: it waits for most of its life and must not hold a thread.
    """

    def look() -> dict[str, Any]:
        with database.reader() as session:
            return rollout_view(session, rollouts.rollout_named(session, rollout_id), clock())

    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        view = await run_in_threadpool(look)
        if view["state"] in (until, *ENDED) or loop.time() >= deadline:
            return view
        await asyncio.sleep(WAIT_STEP_S)


@router.post("/rollouts/{rollout_id}/start", responses=document(404, 409, 412))
def start_rollout(
    caller: CanWrite,
    rollout_id: Label,
    session: Tx,
    now: Now,
    limits: Limits,
    _reason: Reason,
    accept_full_downloads: bool = False,
) -> dict[str, Any]:
    """Start a draft, now or at its `start_at`, or ask for the approvals that this takes.

    If patches are missing, only with full downloads accepted.
    """
    rollout = approvals.start(
        session, rollout_id, caller.name, now, limits, full_downloads=accept_full_downloads
    )
    return rollout_view(session, rollout, now)


@router.get("/rollouts/{rollout_id}/plan", responses=document(404))
def get_plan(_caller: CanRead, rollout_id: Label, session: Reader) -> dict[str, Any]:
    """Show all that a rollout is going to do, as it is approved, and the digest of that."""
    plan = approvals.plan_of(rollouts.rollout_named(session, rollout_id))
    return {"plan": plan, "sha256": plan_digest(plan)}


@router.post("/rollouts/{rollout_id}/approve", responses=document(404, 409, 412))
def approve_rollout(
    caller: CanApprove, rollout_id: Label, body: NewApproval, session: Tx, now: Now, limits: Limits
) -> dict[str, Any]:
    """Approve a plan that somebody else made; the last approval that it takes starts it."""
    given = body.model_dump()
    rollout = approvals.approve(session, rollout_id, caller.name, now, limits, given)
    return rollout_view(session, rollout, now)


@router.post("/rollouts/{rollout_id}/pause", responses=document(404, 409, 412))
def pause_rollout(
    caller: CanHalt, rollout_id: Label, session: Tx, now: Now, reason: Reason
) -> dict[str, Any]:
    """Stop offering until somebody resumes."""
    return rollout_view(session, rollouts.pause(session, rollout_id, reason, caller.name, now), now)


@router.post("/rollouts/{rollout_id}/resume", responses=document(404, 409, 412))
def resume_rollout(
    caller: CanWrite,
    rollout_id: Label,
    session: Tx,
    config: Config,
    now: Now,
    reason: Reason,
    accept_full_downloads: bool = False,
) -> dict[str, Any]:
    """Go on; where the gate was undecided, this passes the stage on the caller's word.

    Failures count from here on. What ends with its cause alone (`budget`, `edge_ended`,
    `metadata_expiring`, `patches_missing`) is named in the refusal, and nothing changes.
    """
    timeout = timedelta(seconds=config.deployment_timeout_s)
    who = (reason, caller.name, now, timeout, accept_full_downloads)
    return rollout_view(session, pauses.resume(session, rollout_id, *who), now)


@router.post("/rollouts/{rollout_id}/retry", responses=document(404, 409, 412))
def retry_rollout(
    _caller: CanWrite, rollout_id: Label, session: Tx, now: Now, reason: Reason
) -> dict[str, int]:
    """Let every device try again now whose attempt failed or that refused; halted: its way back."""
    return {"retried": rollouts.retry(session, rollout_id, reason, now)}


@router.post("/rollouts/{rollout_id}/halt", responses=document(404, 409, 412))
def halt_rollout(
    caller: CanHalt, rollout_id: Label, session: Tx, now: Now, reason: Reason
) -> dict[str, Any]:
    """End a rollout for good; with `on_halt = revert` its devices are sent back."""
    return rollout_view(session, rollouts.halt(session, rollout_id, reason, caller.name, now), now)
