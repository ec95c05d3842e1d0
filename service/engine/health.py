"""How is it going? The fleet by release, and each rollout with its stages and its evidence.

One source for the REST API, the command line and the status page: what they show is the same.
"""

import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from service.core import canary, signals
from service.core.canary import Gate, Sums
from service.core.policy import Observation
from service.db import queries
from service.db.rollout_tables import COUNTED, ENDED, LIVE, UNSTARTED, Cohort, Rollout
from service.db.tables import CanarySet, Device, DeviceModel, Model
from service.engine.tick import observe
from service.fleet import floors, sample, sums
from service.fleet.devices import authentication
from service.publishing.freshness import publisher_view

BP = 10_000
BUDGET = "per_minute_max bytes_max bytes_committed"
SAMPLE_MAX = 10
ROLLOUTS_MAX = 20  # of the whole fleet, unless more are live
STATES = {"promote": "safe", "halt": "halt", None: "wait"}
THIN_SHOWN_MAX = 20
SHOWN = "number share_bp state started_at rolled_back bytes_sent"


def rollout_view(session: Session, rollout: Rollout, now: datetime) -> dict[str, Any]:
    """Return everything that people ask about one rollout."""
    seen = sample.of_cohort(session, rollout)
    stages = _stage_views(session, rollout, seen.about(seen.devices))
    return rollout.shown(
        "id model state reasons stage generation on_halt halt_reason created_at start_at "
        "started_at finished_at reports_deleted_at created_by asked_by conditions priority "
        "include_new rollback"
    ) | {
        "release": rollout.release.name,
        "budget": rollout.budget and rollout.budget.shown(BUDGET),
        "cohort": rollout.cohort.name,
        "approved_by": [one["by"] for one in rollout.approvals or []],
        "counted": seen.times == 1,
        "below_floor": floors.held(session, rollout, seen),
        "stages": stages,
        "health": health_view(session, rollout, now),
        "bytes_sent": sum(stage["bytes_sent"] for stage in stages),
        "bytes_full": sum(stage["confirmed"] for stage in stages) * rollout.release.bytes,
    }


def health_view(session: Session, rollout: Rollout, now: datetime) -> dict[str, Any]:
    """Return a rollout's word error rates, its evidence, and what it waits for."""
    seen, found = observe(session, rollout, now), sums.by_scope(session, rollout.id)
    gate, pooled = seen.gate, seen.pairs.pooled
    failures, finished = seen.outcomes
    all_of_them = canary.evidence(gate, pooled, failures, finished)
    return {
        "pairs": pooled.n,
        **_rates(*found.get(("canary", "all"), sums.NOTHING)[1]),
        **_change(gate, pooled),
        "evidence_halt": _rounded(all_of_them.harm),
        "evidence_promote": _rounded(all_of_them.safe),
        "threshold_halt": _rounded(gate.threshold_halt),
        "threshold_promote": _rounded(gate.threshold_promote),
        "failures": failures,
        "failure_devices": finished,
        "evidence_failure": _rounded(all_of_them.failures),
        "threshold_failure": _rounded(gate.threshold_failures),
        "waiting_for": rollout.waiting_for,
        "parts": list(_part_views(rollout, seen, found)),
        "signals": [_signal(gate, *told) for told in seen.signals.items()],
    }


def _part_views(
    rollout: Rollout, seen: Observation, found: sums.Scopes
) -> Iterator[dict[str, Any]]:
    """Give each test with its state: safe, wait or halt; then the placebo, and what is thin."""
    gate, pairs = seen.gate, seen.pairs
    for name, test in canary.tests_of(gate, pairs).items():
        yield _part(name, STATES[canary.decide(*test)], *test)
    placebo = gate.of_placebo()
    moved = canary.decide(placebo, pairs.placebo) is not None
    yield _part("placebo", "moved" if moved else "still", placebo, pairs.placebo)
    if pairs.chain is None and (chain := found.get(("canary", "chain"))):
        yield _part("chain", "thin", gate, chain[0])
    known = {f"hw:{name}" for name in rollout.classes or ()}
    classes = [key for key in found if key[1].startswith("hw:") and key[1] not in known]
    for key in classes[:THIN_SHOWN_MAX]:
        yield _part(key[1].replace("hw:", "class "), "thin", gate, found[key][0])


def _part(name: str, state: str, gate: Gate, pairs: Sums) -> dict[str, Any]:
    return {"part": name, "state": state, "pairs": pairs.n} | _change(gate, pairs)


def _signal(gate: Gate, name: str, told: Sums) -> dict[str, Any]:
    worse, better = signals.devices(told)
    found = {"signal": name, "state": signals.state(gate, name, told), "devices": told.n}
    evidence = {"evidence": _rounded(signals.evidence(gate, told))}
    return found | {"worse": worse, "better": better} | evidence


def _change(gate: Gate, pairs: Sums) -> dict[str, int | None]:
    """Return the mean change of a part with its band, in basis points of the rate."""
    if not pairs.n:
        return dict.fromkeys(("change_bp", "lower_bp", "upper_bp"))
    lower, upper = canary.band(gate, pairs)
    change = pairs.sd / pairs.n / canary.UNIT
    return {
        "change_bp": round(change * BP),
        "lower_bp": round(lower * BP),
        "upper_bp": round(upper * BP),
    }


def fleet_view(session: Session, now: datetime) -> dict[str, Any]:
    """Return the fleet by model and release, the live rollouts, and the state of publishing."""
    models = []
    for name in queries.model_names(session):
        releases, unknown = _on_releases(session, name, "name status bytes")
        models.append({"name": name, "releases": releases, "unknown": unknown})
    live = queries.recent_rollouts(session, states=LIVE)
    others = queries.recent_rollouts(session, states=(*UNSTARTED, *ENDED), limit=ROLLOUTS_MAX)
    shown = [*live, *others[: max(0, ROLLOUTS_MAX - len(live))]]
    rollouts = [rollout_view(session, rollout, now) for rollout in shown]
    return {"models": models, "rollouts": rollouts, "publisher": publisher_view(session, now)}


def release_views(session: Session, model: str, names: str) -> list[dict[str, Any]]:
    """Return a model's releases, the oldest first, with the number of devices that run each."""
    return _on_releases(session, model, names)[0]


def _on_releases(session: Session, model: str, names: str) -> tuple[list[dict[str, Any]], int]:
    """Return the releases with their devices, and how many devices run none of them."""
    running = queries.devices_by_release(session, model)
    releases = queries.releases_of(session, model)
    shown = [r.shown(names) | {"devices": running.get(r.id, 0)} for r in releases]
    return shown, running.get(None, 0)


def model_view(session: Session, model: Model) -> dict[str, Any]:
    """Return one model with its counts."""
    running = queries.devices_by_release(session, model.name)
    canary_set = session.get(CanarySet, model.name)
    return model.shown("name created_at") | {
        "releases": len(queries.releases_of(session, model.name)),
        "devices": sum(running.values()),
        "canary_set": canary_set.sha256 if canary_set else None,
    }


def cohort_view(session: Session, cohort: Cohort, *, exact: bool = False) -> dict[str, Any]:
    """Return a cohort with the number of its devices, by release, and some of them.

    Of a large one a sample is looked at, and the numbers are told by that, unless they shall be
    `exact`: then each device is counted, which takes seconds where there are millions.
    """
    seen = sample.of_members(session, cohort)
    by_release = {release: seen.about(devices) for release, devices in seen.by_release.items()}
    count, counted = seen.about(seen.devices), seen.times == 1
    if exact and not counted:
        by_release = sample.members_by_release(session, queries.cohort_devices(cohort))
        count, counted = sum(by_release.values()), True
    names = {r.id: r.name for r in queries.releases_of(session, cohort.model)}
    return cohort.shown("name model filter") | {
        "kind": "static" if cohort.filter is None else "filter",
        "count": count,
        "counted": counted,
        "by_release": {names.get(r or 0, "unknown"): n for r, n in by_release.items()},
        "sample": list(session.scalars(seen.members.order_by(Device.id).limit(SAMPLE_MAX))),
    }


def device_view(row: DeviceModel) -> dict[str, Any]:
    """Return a device and what it runs."""
    told = row.device.shown("id serial hardware agent_version status last_seen_at attributes tags")
    release = row.release.name if row.release else None
    found = {"running_release": release, "authentication": authentication(row.device)}
    return told | row.shown("model running_sha256") | found


def _stage_views(session: Session, rollout: Rollout, devices: int) -> list[dict[str, Any]]:
    found = sums.by_scope(session, rollout.id)
    asked = 0
    views = []
    for stage in rollout.stages:
        counts = {"offered": stage.in_flight} | stage.shown(" ".join(COUNTED["forward"]))
        asked += sum(counts.values())
        views.append(
            stage.shown(SHOWN)
            | counts
            | _rates(*found.get(("canary", f"stage:{stage.number}"), sums.NOTHING)[1])
            | {
                # Each is drawn by itself: of a share, only about so many are in it.
                "devices": max(round(devices * stage.share_bp / BP), asked),
            }
        )
    return views


def _rates(old: int, new: int, words: int) -> dict[str, int | None]:
    return {"old_wer_bp": _bp(old, words), "new_wer_bp": _bp(new, words)}


def _bp(errors: int, words: int) -> int | None:
    return round(errors * BP / words) if words else None


def _rounded(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
