"""The heartbeat: observe, decide, apply, for every running rollout; it needs no key.

A tick may run anywhere, at any time, twice at once: what it applies is conditional on what it
saw. Handlers of requests record what devices and people say; only this moves a rollout. What it
wants is a wish in the database, which the publisher grants or not.
"""

import logging
import math
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from service.core import policy, signals
from service.core.canary import Pairs, Sums
from service.core.chain import PIPELINES_MAX
from service.core.errors import WrongState
from service.core.rollout_limits import RolloutLimits
from service.core.words import counted
from service.db import due, queries
from service.db.pipelines import Answer
from service.db.rollout_tables import LIVE, Rollout
from service.db.session import Database
from service.db.tables import DeviceModel
from service.engine import approvals, rollouts
from service.fleet import deployments, edges, plans, rules, sample, sums

logger = logging.getLogger(__name__)
OVERDUE_PER_TICK_MAX = 1000
ANSWERS_KEPT = timedelta(days=1)  # for who sends a request again
SILENT = timedelta(days=7)  # a device not seen for so long holds no rollout up
REMAINING_MAX = 1000
CLASS_SHARE_LEAST = 0.02  # smaller classes are shown, and ride on the test of all
VERIFIED_EVERY = timedelta(days=1)


def tick(
    database: Database, now: datetime, timeout: timedelta, limits: RolloutLimits | None = None
) -> None:
    """Do everything that is due; each part in a transaction of its own.

    Args:
        database: the database.
        now: the time.
        timeout: that a device has for an update.
        limits: of how far a rollout may go.

    Raises:
        ExceptionGroup: some of it could not be done; all else was.
    """
    with database.reader() as session:
        live = queries.recent_rollouts(session, states=LIVE)
        starting = due.starting(session, now)
    parts = [partial(_reap, database, now)]
    parts += [partial(_start, database, rollout, now, timeout, limits) for rollout in starting]
    parts += [partial(_look, database, rollout, now, timeout) for rollout in live]
    bugs = []
    for part in parts:
        try:
            part()
        except WrongState as error:  # somebody was faster: the next tick looks afresh
            logger.info("tick lost a race", extra={"why": error.detail})
        except Exception as error:  # what is wrong with one hides no harm that another does
            bugs.append(error)
    if bugs:
        raise ExceptionGroup("not everything was done", bugs)


def _start(
    database: Database,
    rollout_id: str,
    now: datetime,
    timeout: timedelta,
    limits: RolloutLimits | None,
) -> None:
    with database.writer() as session:
        approvals.start_due(session, rollout_id, now, timeout, limits)


def _look(database: Database, rollout: Rollout, now: datetime, timeout: timedelta) -> None:
    if now - (rollout.verified_at or rollout.started_at or now) >= VERIFIED_EVERY:
        verify(database, rollout.id, now)
    with database.writer() as session:
        step(session, rollouts.rollout_named(session, rollout.id, to_change=True), now, timeout)


def verify(database: Database, rollout_id: str, now: datetime) -> list[str]:
    """Add up the pairs of a rollout again; if its sums are something else, it waits for a person.

    Returns:
        The scopes that disagree, in words.
    """
    with database.writer() as session:
        rollout = rollouts.rollout_named(session, rollout_id, to_change=True)
        if rollout.reports_deleted_at is not None:
            return []
        wrong = sums.disagreements(session, rollout.id)
        rollout.verified_at = now
        if wrong:
            logger.error("sums disagree", extra={"rollout": rollout.id, "scopes": wrong})
        if wrong and rollout.state in LIVE and policy.SUMS_DISAGREE not in rollout.reasons:
            some = counted(len(wrong), "sum is", "sums are")
            reason = f"{policy.SUMS_DISAGREE}: {some} not what the reports add up to"
            reasons, evidence = {*rollout.reasons, policy.SUMS_DISAGREE}, {"disagreements": wrong}
            rollouts.pause_for(session, rollout, reasons, reason, "tick", now, evidence)
    return wrong


def step(session: Session, rollout: Rollout, now: datetime, timeout: timedelta) -> None:
    """Observe one rollout, decide, and apply the decision."""
    if rollout.state not in LIVE:
        return
    if rollout.classes is None:  # before the first report, and from then on the same
        rollout.classes = _classes(session, rollout)
    seen = observe(session, rollout, now, timeout)
    decision = policy.decide(seen)
    if decision.kind == "advance":  # what a stage needs is looked for when it is to open
        seen = replace(seen, lacking=plans.lacking(session, rollout))
        decision = policy.decide(seen)
    if decision.kind == "hold":
        rollout.waiting_for = decision.because
        return
    logger.info(decision.kind, extra={"rollout": rollout.id, "because": decision.because})
    # Evidence of minus infinity is written as null: JSON knows no infinity.
    found = asdict(decision.evidence).items()
    evidence: dict[str, Any] = {n: value if math.isfinite(value) else None for n, value in found}
    evidence["seen"] = asdict(seen)  # all that the verdict follows from
    reason = f"{decision.reason}: {decision.because}"
    if decision.kind == "halt":
        rollouts.stop(session, rollout, reason, "tick", now, **evidence)
        return
    if decision.kind == "pause":
        holding = decision.reasons
        rollouts.pause_for(session, rollout, holding, reason, "tick", now, evidence)
        return
    if decision.kind == "resume":
        rollouts.go_on(session, rollout, "resume", reason, "tick", now, timeout, evidence)
        return
    changes: dict[str, Any] = {"stage": rollout.stage + 1}
    if decision.kind == "finish":
        changes = {"state": "completed", "finished_at": now}
    rollouts.change(session, rollout, decision.kind, reason, "tick", now, evidence, **changes)
    if decision.kind == "finish":
        deployments.cancel_all(session, rollout, "passed", now)
    else:
        rollouts.start_stage(rollout, rollout.stage, now)


def observe(
    session: Session, rollout: Rollout, now: datetime, timeout: timedelta | None = None
) -> policy.Observation:
    """Return what the policy needs to know about a rollout.

    A few rows, however many devices and reports there are: sums by scope, and what each stage
    counts. Only in the last stage devices are looked for, and no more than `REMAINING_MAX`.

    Args:
        session: to read with.
        rollout: which.
        now: the time.
        timeout: that a device has for an update; None: nothing is decided, this is for show.
    """
    more = {} if timeout is None else _obstacles(session, rollout, now, timeout)
    stage = rollout.current_stage
    last = rollout.state == "running" and rollout.stage == len(rollout.stages)
    overridden = any(
        d.decision == "override" and d.stage == rollout.stage
        for d in queries.decisions_of(session, rollout.id)
    )
    found = sums.by_scope(session, rollout.id)
    return policy.Observation(
        gate=policy.gate_of(rollout.gate),
        pairs=pairs_of(rollout, found),
        signals=signals_of(rollout, found),
        stage=rollout.stage,
        stages=len(rollout.stages),
        stage_s=(now - (stage.started_at or now)).total_seconds(),
        soak_s=stage.soak_s,
        finished=sum(stage.finished for stage in rollout.stages),
        failures=sum(stage.failures for stage in rollout.stages),
        remaining=queries.remaining(session, rollout, now - SILENT, REMAINING_MAX) if last else 0,
        overridden=overridden,
        reasons=tuple(rollout.reasons),
        finished_before=rollout.finished_before,
        failures_before=rollout.failures_before,
        **more,
    )


def _obstacles(
    session: Session, rollout: Rollout, now: datetime, timeout: timedelta
) -> dict[str, Any]:
    """Return what may stand in the way of a rollout, beside what its devices say."""
    found: dict[str, Any] = {"under_way": sum(stage.in_flight for stage in rollout.stages)}
    found["edge_ended"] = edges.ended(session, rollout, now)
    if rollout.state == "running" and now - (rollout.started_at or now) > timeout / 2:
        found["silent"] = due.silent(session, rollout, now, timeout / 2)
    budget = rollout.budget
    if budget is not None and budget.bytes_max is not None:
        found["bytes_left"] = left = budget.bytes_max - budget.bytes_committed
        full = rollout.release.bytes  # the last way; before it come patches, if there are any
        is_close = not found["under_way"] and full <= left < PIPELINES_MAX * full
        found["bytes_each"] = plans.bytes_least(session, rollout) if is_close else full
    if ends := rules.signed_ends(session, rollout.model):
        found["signed_s"] = (min(ends) - now - timeout).total_seconds()
    if "patches_missing" in rollout.reasons:
        found["lacking"] = plans.lacking(session, rollout)
    return found


def pairs_of(rollout: Rollout, found: sums.Scopes) -> Pairs:
    """Return the pairs by test: of classes, those that were large enough at the start.

    One class alone is everybody. A chain of which fewer know the base is thin, as such a class.
    """
    pooled, chain, placebo = (
        found.get(key, sums.NOTHING)[0]
        for key in (("canary", "all"), ("canary", "chain"), ("control", "all"))
    )
    names = rollout.classes if rollout.classes and len(rollout.classes) > 1 else []
    classes = {name: found.get(("canary", f"hw:{name}"), sums.NOTHING)[0] for name in names}
    is_thin = chain.n < max(1, CLASS_SHARE_LEAST * pooled.n)
    return Pairs(pooled, classes, None if is_thin else chain, placebo)


def signals_of(rollout: Rollout, found: sums.Scopes) -> dict[str, Sums]:
    """Return the sums of each signal; none where the gate was fixed before there were any."""
    if "alpha_signals" not in rollout.gate:
        return {}
    return {n: found.get(("canary", f"signal:{n}"), sums.NOTHING)[0] for n in signals.MAY_HALT}


def _classes(session: Session, rollout: Rollout) -> list[str]:
    """Return the hardware classes of a cohort that have a share worth a test of their own."""
    devices = sample.by_hardware(session, sample.of_cohort(session, rollout))
    least = CLASS_SHARE_LEAST * sum(devices.values())
    return sorted(name for name, number in devices.items() if number >= least)


def _reap(database: Database, now: datetime) -> None:
    """Silence has a deadline: an update that is never heard of again counts as failed."""
    with database.writer() as session:
        for deployment in due.overdue(session, now, OVERDUE_PER_TICK_MAX):
            row = session.get_one(DeviceModel, deployment.device_id)
            told = row.order_deployment == deployment.id
            outcome = "failed" if told else "canceled"  # whom nobody ordered, nobody may blame
            deployments.finish(session, deployment, outcome, "silent", now)
        session.execute(delete(Answer).where(Answer.at < now - ANSWERS_KEPT))
