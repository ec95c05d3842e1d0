"""How is it going? The fleet by release, and each rollout with its stages and its evidence.

One source for the REST API, the command line and the status page: what they show is the same.
"""

import math
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from service.core import canary, policy
from service.core.tick import observe
from service.db import queries, rollout_queries
from service.db.rollout_tables import Cohort, Rollout, Stage
from service.db.tables import Device, DeviceModel, Model, Release

BP = 10_000
SAMPLE_MAX = 10
OFFLINE_WARNING = timedelta(days=10)  # people need longer than a process
METADATA_ROLES = ("timestamp", "snapshot", "targets", "root")


def rollout_view(session: Session, rollout: Rollout, now: datetime) -> dict[str, Any]:
    """Return everything that people ask about one rollout."""
    release = session.get_one(Release, rollout.release_id)
    sent = rollout_queries.bytes_sent(session, rollout.id)
    stages = _stage_views(session, rollout, sent)
    updated = sum(stage["confirmed"] for stage in stages)
    return {
        "id": rollout.id,
        "model": rollout.model,
        "release": release.name,
        "cohort": session.get_one(Cohort, rollout.cohort_id).name,
        "state": rollout.state,
        "reasons": rollout.reasons,
        "stage": rollout.stage,
        "stages": stages,
        "health": health_view(session, rollout, now),
        "generation": rollout.generation,
        "on_halt": rollout.on_halt,
        "halt_reason": rollout.halt_reason,
        "created_at": rollout.created_at,
        "started_at": rollout.started_at,
        "finished_at": rollout.finished_at,
        "bytes_sent": sum(sent.values()),
        "bytes_full": updated * release.bytes,
    }


def health_view(session: Session, rollout: Rollout, now: datetime) -> dict[str, Any]:
    """Return a rollout's word error rates, its evidence, and what it waits for."""
    seen = observe(session, rollout, now)
    found = canary.evidence(seen.gate, seen.sums, seen.failures, seen.finished)
    errors = rollout_queries.errors_by_stage(session, rollout.id).values()
    old, new, words = (sum(column) for column in zip(*errors, strict=True)) if errors else (0, 0, 0)
    return {
        "pairs": seen.sums.n,
        "old_wer_bp": _bp(old, words),
        "new_wer_bp": _bp(new, words),
        "change_bp": round(found.change * BP) if seen.sums.n else None,
        "lower_bp": round(found.lower * BP) if seen.sums.n else None,
        "upper_bp": round(found.upper * BP) if seen.sums.n else None,
        "evidence_halt": _rounded(found.harm),
        "evidence_promote": _rounded(found.safe),
        "threshold_halt": _rounded(seen.gate.threshold_halt),
        "threshold_promote": _rounded(seen.gate.threshold_promote),
        "failures": seen.failures,
        "failure_devices": seen.finished,
        "evidence_failure": _rounded(found.failures),
        "threshold_failure": _rounded(seen.gate.threshold_failures),
        "waiting_for": rollout.waiting_for,
    }


def fleet_view(session: Session, now: datetime) -> dict[str, Any]:
    """Return the fleet by model and release, the live rollouts, and the state of publishing."""
    models = []
    for name in queries.model_names(session):
        running = queries.devices_by_release(session, name)
        releases = [
            {"name": r.name, "status": r.status, "bytes": r.bytes, "devices": running.pop(r.id, 0)}
            for r in queries.releases_of(session, name)
        ]
        models.append({"name": name, "releases": releases, "unknown": sum(running.values())})
    rollouts = [rollout_view(session, r, now) for r in rollout_queries.recent_rollouts(session, 20)]
    return {"models": models, "rollouts": rollouts, "publisher": publisher_view(session, now)}


def publisher_view(session: Session, now: datetime) -> dict[str, Any]:
    """Return when signed metadata runs out; expiry is a state of health, not a surprise."""
    rows = [queries.newest_metadata(session, role) for role in METADATA_ROLES]
    families = [
        queries.newest_metadata(session, f"family-{m}") for m in queries.model_names(session)
    ]
    expiries = [row.expires_at for row in [*rows, *families] if row is not None]
    missing = [role for role, row in zip(METADATA_ROLES, rows, strict=True) if row is None]
    first = min(expiries, default=None)
    offline = [row for row in [*rows[2:], *families] if row is not None]  # people must sign these
    sign_before = min((row.expires_at for row in offline), default=None)
    state = "ok"
    if missing:
        state = "nothing_published"
    elif first is not None and first <= now:
        state = "expired"
    return {
        "state": state,
        "metadata_expires_at": first,
        "missing": missing,
        "sign_again_before": sign_before,
        "sign_again": sign_before is not None and sign_before <= now + OFFLINE_WARNING,
    }


def model_view(session: Session, model: Model) -> dict[str, Any]:
    """Return one model with its counts."""
    running = queries.devices_by_release(session, model.name)
    canary_set = queries.canary_set_of(session, model.name)
    return {
        "name": model.name,
        "created_at": model.created_at,
        "releases": len(queries.releases_of(session, model.name)),
        "devices": sum(running.values()),
        "canary_set": canary_set.sha256 if canary_set else None,
    }


def cohort_view(session: Session, cohort: Cohort) -> dict[str, Any]:
    """Return a cohort with the number of its devices, by release, and a sample."""
    ids = rollout_queries.cohort_devices(cohort)
    names = {r.id: r.name for r in queries.releases_of(session, cohort.model)}
    by_release = rollout_queries.cohort_by_release(session, cohort)
    return {
        "name": cohort.name,
        "model": cohort.model,
        "kind": "static" if cohort.filter is None else "filter",
        "filter": cohort.filter,
        "count": sum(by_release.values()),
        "by_release": {names.get(r or 0, "unknown"): n for r, n in by_release.items()},
        "sample": list(session.scalars(ids.order_by(Device.id).limit(SAMPLE_MAX))),
    }


def device_view(session: Session, device: Device, row: DeviceModel) -> dict[str, Any]:
    """Return a device and what it runs."""
    release = session.get(Release, row.running_release) if row.running_release else None
    fields = ("id", "serial", "hardware", "status", "last_seen_at", "attributes", "tags")
    return {name: getattr(device, name) for name in fields} | {
        "model": row.model,
        "running_release": release.name if release else None,
        "running_sha256": row.running_sha256,
    }


def _stage_views(session: Session, rollout: Rollout, sent: dict[int, int]) -> list[dict[str, Any]]:
    counts = rollout_queries.deployment_counts(session, rollout.id)
    errors = rollout_queries.errors_by_stage(session, rollout.id)
    ids = list(
        session.scalars(rollout_queries.cohort_devices(session.get_one(Cohort, rollout.cohort_id)))
    )
    buckets = [policy.bucket(rollout.salt, i) for i in ids]

    def count(stage: Stage, direction: str, *states: str) -> int:
        return sum(counts.get((stage.number, direction, state), 0) for state in states)

    views = []
    for stage in rollout_queries.stages_of(session, rollout.id):
        old, new, words = errors.get(stage.number, (0, 0, 0))
        views.append(
            {
                "number": stage.number,
                "share_bp": stage.share_bp,
                "state": stage.state,
                "started_at": stage.started_at,
                "devices": sum(b < stage.share_bp for b in buckets),
                "offered": count(stage, "forward", *rollout_queries.OPEN),
                "confirmed": count(stage, "forward", "confirmed"),
                "refused": count(stage, "forward", "refused"),
                "failed": count(stage, "forward", "failed"),
                "canceled": count(stage, "forward", "canceled"),
                "rolled_back": count(stage, "back", "rolled_back"),
                "bytes_sent": sent.get(stage.number, 0),
                "old_wer_bp": _bp(old, words),
                "new_wer_bp": _bp(new, words),
            }
        )
    return views


def _bp(errors: int, words: int) -> int | None:
    return round(errors * BP / words) if words else None


def _rounded(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
