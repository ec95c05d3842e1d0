"""The heartbeat: observe, decide, apply, for every running rollout; then the publisher's work.

A tick may run anywhere, at any time, twice at once: what it applies is conditional on what it
saw. Handlers of requests record what devices and people say; only this moves a rollout.
"""

import logging
from dataclasses import asdict
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from service.core import deployments, policy, publisher, rollouts
from service.core.canary import Sums
from service.core.errors import WrongState
from service.core.publisher import OnlineKeys
from service.db import rollout_queries
from service.db.rollout_tables import Cohort, Rollout, Stage
from service.db.session import Database
from service.db.tables import DeviceModel

logger = logging.getLogger(__name__)
OVERDUE_PER_TICK_MAX = 1000
SILENT = timedelta(days=7)  # a device not seen for so long holds no rollout up


def tick(database: Database, keys: OnlineKeys | None, now: datetime) -> None:
    """Do everything that is due; each part in a transaction of its own."""
    if keys is not None:
        with database.writer() as session:
            publisher.publish(session, keys, now)
    with database.writer() as session:
        _reap(session, now)
    with database.reader() as session:
        running = [rollout.id for rollout in rollout_queries.running_rollouts(session)]
    for rollout_id in running:
        try:
            with database.writer() as session:
                rollout = rollouts.rollout_named(session, rollout_id, to_change=True)
                step(session, rollout, now)
        except WrongState as error:  # somebody was faster: the next tick looks afresh
            logger.info("tick lost a race", extra={"rollout": rollout_id, "why": error.detail})
    if keys is not None:
        with database.writer() as session:
            publisher.sign_orders(session, keys, now)


def step(session: Session, rollout: Rollout, now: datetime) -> policy.Decision | None:
    """Observe one rollout, decide, and apply the decision."""
    if rollout.state != "running":
        return None
    decision = policy.decide(observe(session, rollout, now))
    if decision.kind == "hold":
        if rollout.waiting_for != decision.because:
            rollout.waiting_for = decision.because
        return decision
    logger.info(decision.kind, extra={"rollout": rollout.id, "because": decision.because})
    sums = rollout_queries.sums_of(session, rollout.id)
    evidence = asdict(decision.evidence) | {"sums": asdict(_sums(sums)) if sums else {}}
    evidence = {key: _finite(value) for key, value in evidence.items()}
    _apply(session, rollout, decision, evidence, now)
    return decision


def observe(session: Session, rollout: Rollout, now: datetime) -> policy.Observation:
    """Return what the policy needs to know about a rollout."""
    stages = rollout_queries.stages_of(session, rollout.id)
    stage = stages[rollout.stage - 1]
    counts = rollout_queries.deployment_counts(session, rollout.id)
    outcomes = {"confirmed": 0, "refused": 0, "failed": 0}
    for (_, direction, state), number in counts.items():
        if direction == "forward" and state in outcomes:
            outcomes[state] += number
    sums = rollout_queries.sums_of(session, rollout.id)
    overridden = any(
        d.decision == "override" and d.stage == rollout.stage
        for d in rollout_queries.decisions_of(session, rollout.id)
    )
    return policy.Observation(
        gate=policy.gate_of(rollout.gate),
        sums=_sums(sums) if sums else Sums(),
        stage=rollout.stage,
        stages=len(stages),
        stage_s=(now - (stage.started_at or now)).total_seconds(),
        soak_s=stage.soak_s,
        finished=sum(outcomes.values()),
        failures=outcomes["refused"] + outcomes["failed"],
        remaining=len(_remaining(session, rollout, stage, now)),
        overridden=overridden,
    )


def stage_devices(session: Session, rollout: Rollout, stage: Stage) -> set[str]:
    """Return the cohort's devices whose bucket lies in a stage."""
    cohort = session.get_one(Cohort, rollout.cohort_id)
    ids = session.scalars(rollout_queries.cohort_devices(cohort))
    return {i for i in ids if policy.bucket(rollout.salt, i) < stage.share_bp}


def _remaining(session: Session, rollout: Rollout, stage: Stage, now: datetime) -> set[str]:
    done = rollout_queries.devices_with_outcome(session, rollout, now - SILENT)
    return stage_devices(session, rollout, stage) - done


def _apply(
    session: Session,
    rollout: Rollout,
    decision: policy.Decision,
    evidence: dict[str, object],
    now: datetime,
) -> None:
    reason = f"{decision.reason}: {decision.because}"
    if decision.kind == "halt":
        rollouts.stop(session, rollout, reason, "tick", evidence, now)
        return
    changes: dict[str, object]
    if decision.kind == "advance":
        changes = {"stage": rollout.stage + 1, "waiting_for": ""}
    elif decision.kind == "pause":
        reasons = sorted({*rollout.reasons, decision.reason})
        changes = {"state": "paused", "reasons": reasons, "waiting_for": decision.because}
    else:
        changes = {"state": "completed", "finished_at": now, "waiting_for": ""}
        session.get_one(Stage, (rollout.id, rollout.stage)).state = "passed"
    rollouts.change(session, rollout, changes, decision.kind, reason, "tick", now, evidence)
    if decision.kind == "advance":
        rollouts.start_stage(session, rollout, rollout.stage, now)


def _reap(session: Session, now: datetime) -> None:
    """Silence has a deadline: an update that is never heard of again counts as failed."""
    for deployment in rollout_queries.overdue_deployments(session, now, OVERDUE_PER_TICK_MAX):
        row = session.get_one(DeviceModel, deployment.device_id)
        told = row.order_deployment == deployment.id
        outcome = "failed" if told else "canceled"  # whom nobody ordered, nobody may blame
        deployments.finish(session, deployment, outcome, "silent", now)


def _sums(row: object) -> Sums:
    return Sums(**{name: getattr(row, name) for name in Sums.__dataclass_fields__})


def _finite(value: object) -> object:
    """Evidence of minus infinity is written as null: JSON knows no infinity."""
    return None if isinstance(value, float) and value in (float("inf"), -float("inf")) else value
