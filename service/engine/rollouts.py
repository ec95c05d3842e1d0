"""A rollout's life: created as a draft, started, paused, resumed, halted.

People record intent here; only `tick` advances a rollout. Every change is a conditional UPDATE
on the generation, so two changes at once cannot both win, and every change leaves a decision.
"""

import hashlib
import json
import secrets
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.core import audit, policy
from service.core.bodies import ANYTIME, Conditions, NewStage
from service.core.conditions import kept
from service.core.errors import InvalidRequest, NotAsSeen, WrongState, found
from service.core.words import counted
from service.db import queries
from service.db.entries import of_model
from service.db.rollout_tables import LIVE, UNSTARTED, Budget, Decision, Deployment, Rollout, Stage
from service.db.session import changed, take_turns
from service.db.tables import Artifact, Release
from service.fleet import deployments
from service.publishing.catalog import cohort_named


def create_rollout(
    session: Session,
    *,
    model: str,
    release: str,
    cohort: str,
    stages: Sequence[NewStage],
    gate: dict[str, Any],
    on_halt: str,
    actor: str,
    now: datetime,
    conditions: Conditions = ANYTIME,
    per_minute_max: int | None = None,
    bytes_max: int | None = None,
    **more: Any,
) -> Rollout:
    """Add a rollout in state `draft`; its gate is fixed from here on, the rest is kept as asked."""
    target = _target(session, model, release)
    chosen = cohort_named(session, cohort)
    if chosen.model != model:
        raise InvalidRequest(f"cohort {cohort} holds devices of {chosen.model}, not of {model}")
    shares = [stage.share_bp for stage in stages]
    if shares != sorted(set(shares)):
        raise InvalidRequest(f"stages must be shares that rise, not {shares}")
    if shares[-1] != policy.BUCKETS:
        raise InvalidRequest("the last stage must reach 10000 basis points (100 %)")
    try:
        fixed = vars(policy.gate_of(gate))
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"the gate is not understood: {error}") from error
    rollout = Rollout(
        id=secrets.token_hex(6),
        model=model,
        release_id=target.id,
        cohort_id=chosen.id,
        salt=secrets.token_hex(16),
        conditions=kept(conditions.model_dump(exclude_defaults=True)),
        **more,
        gate=fixed,
        base_sha256=_base_of(session, target),
        gate_sha256=hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest(),
        on_halt=on_halt,
        waiting_for="a person starts it",
        created_at=now,
        created_by=actor,
        stages=[Stage(number=number, **vars(stage)) for number, stage in enumerate(stages, 1)],
    )
    if per_minute_max is not None or bytes_max is not None:
        rollout.budget = Budget(per_minute_max=per_minute_max, bytes_max=bytes_max)
    session.add(rollout)
    session.flush()
    wanted = {"model": model, "release": release, "cohort": cohort, "gate": rollout.gate_sha256}
    audit.record(session, "rollout.create", rollout.id, now, **wanted)
    return rollout


def _target(session: Session, model: str, name: str) -> Release:
    """Return a release that a rollout may bring, or refuse."""
    release = found(queries.first(session, Release, model=model, name=name), f"release {name}")
    if release.status != "active":
        raise WrongState(f"release {name} is {release.status}")
    full = session.get_one(Artifact, release.sha256, with_for_update={"read": True})
    if full.state != "stored":  # nor is it deleted any more, before the rollout is there
        what = f"the full file of {name} was deleted; upload it again"
        raise WrongState(what, sha256=release.sha256)
    return release


def _base_of(session: Session, release: Release) -> str | None:
    """Return where patches lead from to a release, the whole way back; None if nowhere.

    A release that is published without a patch begins a chain of its own.
    """
    patches = queries.patches_of(session, release.model)
    base, reached = release, {release.id}
    for patch in sorted(patches, key=lambda patch: -patch.target.seq):
        if patch.to_release in reached and patch.source.seq < patch.target.seq:
            reached.add(patch.from_release)
            base = min(base, patch.source, key=lambda found: found.seq)
    return base.sha256 if base is not release else None


def rollout_named(session: Session, rollout_id: str, *, to_change: bool = False) -> Rollout:
    """Return a rollout, or refuse; `to_change` keeps others from changing it meanwhile."""
    # FOR NO KEY UPDATE: new deployments may refer to the rollout meanwhile.
    lock = {"key_share": True} if to_change else None
    rollout = session.get(Rollout, rollout_id, with_for_update=lock)
    return found(rollout, f"rollout {rollout_id}")


def changing(session: Session, rollout_id: str, *states: str) -> Rollout:
    """Return a rollout that nobody else changes meanwhile, in one of these states, or refuse."""
    rollout = rollout_named(session, rollout_id, to_change=True)
    if rollout.state not in states:
        raise WrongState(
            f"rollout {rollout.id} is {rollout.state}, not {' or '.join(states)}",
            state=rollout.state,
        )
    return rollout


def check_unchanged(session: Session, rollout_id: str, generation: str) -> None:
    """Refuse if a rollout changed since the caller saw it; until the commit it cannot."""
    rollout = rollout_named(session, rollout_id, to_change=True)
    if str(rollout.generation) != generation:
        times = counted(rollout.generation, "time")
        raise NotAsSeen(
            f"rollout {rollout.id} was changed {times}, you saw {generation}; look again",
            generation=rollout.generation,
        )


def start(
    session: Session, rollout_id: str, actor: str, now: datetime, reason: str = ""
) -> Rollout:
    """Start a rollout: one row changes, however many devices the cohort has.

    `approvals` sees to it that it has the patches and the approvals that it takes.
    """
    rollout = changing(session, rollout_id, *UNSTARTED)
    if rollout.release.status != "active":
        raise WrongState(f"release {rollout.release.name} is {rollout.release.status}")
    take_turns(session, f"start {rollout.model}")  # or each of two would not see the other
    for other in queries.live_rollouts(session, rollout.model):
        if other.cohort_id == rollout.cohort_id:
            raise WrongState(
                f"rollout {other.id} of this cohort is {other.state}; halt or finish it first",
                rollout=other.id,
            )
        if _opposes(rollout, other) or _opposes(other, rollout):
            raise WrongState(
                f"rollout {other.id} of {other.release.name} is {other.state}, and one of the two "
                "takes back what the other brings; halt it first",
                rollout=other.id,
            )
    change(session, rollout, "start", reason, actor, now, state="running", started_at=now)
    start_stage(rollout, 1, now)
    return rollout


def _opposes(back: Rollout, other: Rollout) -> bool:
    """Whether a rollback leads away from where another rollout leads."""
    return back.rollback and other.release.name in back.release.rollback_from


def pause(session: Session, rollout_id: str, reason: str, actor: str, now: datetime) -> Rollout:
    """Stop offering; devices on their way are told to stop before they switch."""
    rollout = changing(session, rollout_id, "running", "paused")
    pause_for(session, rollout, {*rollout.reasons, "operator"}, reason, actor, now)
    return rollout


def pause_for(
    session: Session,
    rollout: Rollout,
    reasons: Collection[str],
    reason: str,
    actor: str,
    now: datetime,
    evidence: dict[str, Any] | None = None,
) -> None:
    """Let a live rollout be paused for these reasons, and for no others."""
    paused = {"state": "paused", "reasons": sorted(reasons), "paused_at": rollout.paused_at or now}
    paused["waiting_for"] = policy.waits_for(sorted(reasons))
    change(session, rollout, "pause", reason, actor, now, evidence, **paused)


def go_on(
    session: Session,
    rollout: Rollout,
    decision: str,
    reason: str,
    actor: str,
    now: datetime,
    timeout: timedelta,
    evidence: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    """Let a rollout run again that nothing holds any more."""
    # A pause is nobody's fault: it is no time in the stage, and no device was silent in it.
    lasted = now - (rollout.paused_at or now)
    running = {"state": "running", "reasons": [], "paused_at": None} | changes
    change(session, rollout, decision, reason, actor, now, evidence, **running)
    stage = rollout.current_stage
    stage.started_at = (stage.started_at or now) + lasted
    deployments.prolong(session, rollout.id, now + timeout)


def retry(session: Session, rollout_id: str, reason: str, now: datetime) -> int:
    """Let the devices of a rollout whose attempts failed try again now; halted: the way back."""
    rollout = changing(session, rollout_id, *LIVE, "halted")
    ours = Deployment.rollout_id == rollout.id
    retried = deployments.retry(session, now, of_model(rollout.model), ours)
    audit.record(session, "rollout.retry", rollout.id, now, reason=reason, devices=retried)
    return retried


def halt(session: Session, rollout_id: str, reason: str, actor: str, now: datetime) -> Rollout:
    """End a rollout for good; with `on_halt = revert` its devices are sent back."""
    rollout = changing(session, rollout_id, *UNSTARTED, *LIVE)
    if rollout.state not in LIVE:
        change(session, rollout, "cancel", reason, actor, now, state="canceled", finished_at=now)
        return rollout
    stop(session, rollout, reason, actor, now)
    return rollout


def stop(
    session: Session, rollout: Rollout, reason: str, actor: str, now: datetime, **evidence: Any
) -> None:
    """Halt a live rollout: no more offers, and what is open is called off."""
    ended = {"state": "halted", "finished_at": now, "halt_reason": reason}
    ended |= {"paused_at": None, "reasons": []}
    change(session, rollout, "halt", reason, actor, now, evidence, **ended)
    deployments.cancel_all(session, rollout, "halted", now)


def start_stage(rollout: Rollout, number: int, now: datetime) -> None:
    """Open a stage, and note that the ones before it have passed."""
    for stage in rollout.stages[: number - 1]:
        stage.state = "passed"
    stage = rollout.stages[number - 1]
    stage.state, stage.started_at = "running", now


def change(
    session: Session,
    rollout: Rollout,
    decision: str,
    reason: str,
    actor: str,
    now: datetime,
    evidence: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    """Change a rollout if nobody changed it since it was read, and write down why.

    It waits for nothing any more, unless the changes say for what.

    Raises:
        WrongState: somebody did; read it again.
    """
    session.flush()
    as_read = (Rollout.id == rollout.id, Rollout.generation == rollout.generation)
    values = {"generation": rollout.generation + 1, "waiting_for": ""} | changes
    statement = update(Rollout).where(*as_read).values(values)
    statement = statement.execution_options(synchronize_session=False)
    if not changed(session, statement, touches=[of_model(rollout.model)]):
        raise WrongState(f"rollout {rollout.id} was changed at the same time; look again")
    session.refresh(rollout)
    because: dict[str, Any] = {"reason": reason, "stage": rollout.stage, "state": rollout.state}
    audit.record(session, f"rollout.{decision}", rollout.id, now, actor=actor, **because)
    session.add(
        Decision(
            rollout_id=rollout.id,
            seq=rollout.generation,
            at=now,
            stage=rollout.stage,
            decision=decision,
            reason=reason,
            actor=actor,
            evidence=evidence or {},
        )
    )
    session.flush()
