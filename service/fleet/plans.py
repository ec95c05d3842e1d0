"""Plans: what the planner is fed, what it answers about devices, and how people steer it.

A patch that turns out bad is withdrawn here, at once and without a signature, since that only
takes a way away; a floor is a release that must have run before a later one is offered.
"""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from service.core import audit
from service.core.chain import Edge, File, Limits, Pipeline, Planner
from service.core.errors import InvalidRequest, NotFound, PatchesMissing, found
from service.db import artifacts, queries
from service.db.rollout_tables import Floor, Rollout
from service.db.tables import DeviceModel, Patch, Release
from service.fleet import floors, sample
from service.fleet.ground import Ground
from service.publishing import catalog

MISSING_OVER_BP = 500  # of a cohort: so many may fetch a full file
BP = 10_000
PATCH = "kind sha256 bytes memory_bytes goes_back ok_count fail_count withdrawn"


def planner_of(session: Session, target: Release, limits: Limits) -> Planner:
    """Return the planner of the ways to a release, by every patch of its model."""
    return Planner(*_graph(session, target.model), target.sha256, limits)


def pipelines(
    session: Session, ground: Ground, target: Release, limits: Limits, running: str, *, undo: bool
) -> list[Pipeline]:
    """Return the pipelines of a device to a release, searched once for all that are like it."""

    def search() -> list[Pipeline]:
        graph = ground.once("graph", lambda: _graph(session, ground.model))
        return Planner(*graph, target.sha256, limits).pipelines(running, undo=undo)

    return ground.once((target.id, limits, running, undo), search)


def _graph(session: Session, model: str) -> tuple[list[Edge], list[File]]:
    files = [File(r.sha256, r.bytes) for r in queries.releases_of(session, model)]
    return edges_of(session, model), files


def edges_of(session: Session, model: str) -> list[Edge]:
    """Return every way by one patch, forward and back."""
    edges, gone = [], artifacts.deleted(session)
    for patch in queries.patches_of(session, model):
        ends = (patch.source.sha256, patch.target.sha256)
        same = patch.shown("sha256 bytes memory_bytes withdrawn")
        same |= {"ok": patch.ok_count, "failed": patch.fail_count}
        if patch.sha256 in gone:
            same["withdrawn"] = same["withdrawn"] or "its bytes were deleted"
        edges.append(Edge(*ends, hashed=patch.kind == "hashed", **same))
        if patch.goes_back:
            edges.append(Edge(*ends[::-1], back=True, **same))
    return edges


def limits_of(row: DeviceModel) -> Limits:
    """Return what a device allows, as it says itself."""
    said = row.shown("memory_bytes room_bytes hashed_hops goes_back")
    network = (row.surroundings or {}).get("network") or row.device.attributes.get("network", "")
    return Limits(network=network, **said)


def bytes_worst(session: Session, ground: Ground, rollout: Rollout, row: DeviceModel) -> int:
    """Return what a device fetches if all pipelines but the last fail; 0 where nobody counts."""
    if rollout.budget is None or rollout.budget.bytes_max is None:
        return 0
    goal = (rollout.release, limits_of(row), row.running_sha256)
    ways = pipelines(session, ground, *goal, undo=False)
    return sum(step.bytes for way in ways for step in way.steps)


def bytes_least(session: Session, rollout: Rollout) -> int:
    """Return the least `bytes_worst` of a cohort, of what is known: most others never ask."""
    planner = planner_of(session, rollout.release, Limits(goes_back=rollout.rollback))
    running, worst = sample.of_cohort(session, rollout).by_release, []
    for release in queries.releases_of(session, rollout.model):
        if running.get(release.id) and release.id != rollout.release_id and rollout.takes(release):
            ways = planner.pipelines(release.sha256)
            worst.append(sum(step.bytes for way in ways for step in way.steps))
    return min(worst, default=rollout.release.bytes)


def explain(
    session: Session, source: Release | None, target: Release, running: str, limits: Limits
) -> dict[str, Any]:
    """Return the plan from some bytes to a release, and why not by other ways."""
    planner = planner_of(session, target, limits)
    names = {r.sha256: r.name for r in queries.releases_of(session, target.model)}
    barred = _barred(session, source, target)

    def shown(way: Pipeline) -> dict[str, Any]:
        steps = [vars(step) | {"to": names[step.to]} for step in way.steps]
        told = {"cost_ms": way.cost_ms, "bytes": sum(s.bytes for s in way.steps), "steps": steps}
        excluded = way.excluded | barred
        return told | ({"excluded": excluded} if excluded else {})

    back = source is not None and source.seq > target.seq
    ways = [shown(way) for way in planner.pipelines(running, undo=back)]
    others = [shown(way) for way in planner.excluded(running)]
    return {
        "model": target.model,
        "from": source.name if source else None,
        "to": target.name,
        "limits": asdict(limits),
        "pipelines": [] if barred else ways,
        "excluded": [*ways, *others] if barred else others,
    }


def missing(session: Session, rollout: Rollout, over_bp: int = MISSING_OVER_BP) -> dict[str, Any]:
    """Return the running releases from which a rollout's devices would fetch the full file.

    Only those are missing that more of the cohort runs than `over_bp`, and none is where the full
    file is so small that no patch could be cheaper. Of a large cohort a sample is looked at.
    """
    target, seen = rollout.release, sample.of_cohort(session, rollout)
    running, total = seen.by_release, seen.devices
    planner = planner_of(session, target, Limits(goes_back=rollout.rollback))
    lacking: list[dict[str, Any]] = []
    for release in queries.releases_of(session, target.model):
        devices = running.get(release.id, 0)
        row = {
            "release": release.name,
            "devices": devices,
            "share_bp": devices * BP // (total or 1),
        }
        if not devices or not rollout.takes(release):
            continue
        waits = floors.floor_of(session, target, release) is not None
        if not waits and devices * BP > over_bp * total and planner.lacks_chain(release.sha256):
            lacking.append(row)
    return {
        "rollout": rollout.id,
        "release": target.name,
        "looked_at": total,
        "examined": seen.examined,
        "everyone": seen.times == 1,
        "unknown": running.get(None, 0),
        "missing": lacking,
        "below_floor": floors.held(session, rollout, seen),
    }


def check_patches(session: Session, rollout: Rollout, *, accepted: bool) -> str:
    """Return which full downloads were accepted; nothing if there are none to speak of.

    Raises:
        PatchesMissing: a good part of the cohort would fetch the full file, and nobody said yes.
    """
    rollout.full_downloads = accepted
    lacking = _lacking(session, rollout)
    if lacking and not accepted:
        raise PatchesMissing(
            f"{lacking}; make patches (fleetdiff diff bases says from where), or "
            "start with --accept-full-downloads",
            release=rollout.release.name,
        )
    return f"full downloads accepted: {lacking}" if lacking else ""


def lacking(session: Session, rollout: Rollout) -> str:
    """Say from where devices of the cohort have no way but the full file, empty if that may be."""
    return "" if rollout.full_downloads else _lacking(session, rollout)


def _lacking(session: Session, rollout: Rollout) -> str:
    found = missing(session, rollout)
    whole = f"have no way to {rollout.release.name} that is cheaper than its full file"
    seen = f"of {found['looked_at']} looked at"
    named = [
        f"{row['release']} ({row['devices']} {seen}, {row['share_bp'] / 100:g} %)"
        for row in found["missing"]
    ]
    return f"devices on {', '.join(named)} {whole}" if named else ""


def bases(session: Session, model: str) -> list[dict[str, Any]]:
    """Return from which releases the next one should have patches, by what devices run.

    A release that many run is a base, unless a chain leads from it to one that more run.
    """
    catalog.model_named(session, model)
    releases = {r.id: r for r in queries.releases_of(session, model)}
    running = queries.devices_by_release(session, model)
    total, rows = sum(running.values()), []
    chosen: list[tuple[Release, Planner]] = []
    for release_id, devices in sorted(running.items(), key=lambda item: -item[1]):
        release = releases.get(release_id or 0)
        row = {"release": release.name if release else None, "devices": devices}
        row |= {"share_bp": devices * BP // total, "base": False, "by_way_of": None}
        rows.append(row)
        if release is None:
            continue
        there = (b.name for b, to in chosen if release.seq < b.seq and to.chain(release.sha256))
        row["by_way_of"] = next(there, None)
        if not row["by_way_of"] and devices * BP > MISSING_OVER_BP * total:
            row["base"] = True
            chosen.append((release, planner_of(session, release, Limits())))
    return rows


def set_floor(session: Session, model: str, release: str, reason: str, now: datetime) -> Floor:
    """Let no device below a release get a later one; the reason is what people read then."""
    if not reason.strip():
        raise InvalidRequest("a floor needs a reason: devices below it are told to wait for it")
    row = release_named(session, model, release)
    floor = session.merge(Floor(release_id=row.id, reason=reason, created_at=now))
    session.flush()
    audit.record(session, "floor.set", f"{model}/{release}", now, reason=reason)
    return floor


def lift_floor(session: Session, model: str, release: str, now: datetime) -> None:
    """Take a floor away."""
    row = release_named(session, model, release)
    session.delete(found(session.get(Floor, row.id), f"floor {release} of {model}"))
    audit.record(session, "floor.lift", f"{model}/{release}", now)


def withdraw_patch(session: Session, patch: Patch, reason: str, now: datetime) -> None:
    """Send no device along a patch any more, and say why."""
    if not reason.strip():
        raise InvalidRequest("say why the patch is withdrawn: that is what a plan shows")
    patch.withdrawn = reason
    _record(session, "withdraw", patch, now, reason=reason)


def restore_patch(session: Session, patch: Patch, now: datetime) -> None:
    """Use a patch again, and count its failures from nothing: they were looked into."""
    if not patch.withdrawn:
        return
    patch.withdrawn, patch.fail_count = "", 0
    _record(session, "restore", patch, now)


def patch_named(session: Session, model: str, source: str, target: str) -> Patch:
    """Return the patch between two releases, or refuse."""
    catalog.model_named(session, model)
    for patch in queries.patches_of(session, model):
        if (patch.source.name, patch.target.name) == (source, target):
            return patch
    raise NotFound(f"there is no patch from {source} to {target} of {model}")


def patch_view(patch: Patch) -> dict[str, Any]:
    """Return a patch and how it does."""
    return {"from": patch.source.name, "to": patch.target.name} | patch.shown(PATCH)


def floor_view(floor: Floor) -> dict[str, Any]:
    """Return a floor."""
    return {"release": floor.release.name} | floor.shown("reason created_at")


def release_named(session: Session, model: str, name: str) -> Release:
    """Return a release of a model, or refuse."""
    catalog.model_named(session, model)
    return found(queries.first(session, Release, model=model, name=name), f"release {name}")


def _barred(session: Session, source: Release | None, target: Release) -> dict[str, str]:
    """Return constraint -> why no way at all may be gone."""
    found = {}
    if target.status != "active":
        found["status"] = f"{target.name} is {target.status}"
    if source and source.seq > target.seq and source.name not in target.rollback_from:
        found["downgrade"] = f"the family signs no way back from {source.name} to {target.name}"
    if (floor := floors.floor_of(session, target, source)) is not None:
        found["floor"] = f"{floor.release.name} must run first: {floor.reason}"
    return found


def _record(session: Session, verb: str, patch: Patch, now: datetime, **more: str) -> None:
    edge = {"from": patch.source.name, "to": patch.target.name}
    audit.record(session, f"patch.{verb}", f"{patch.model}/{patch.sha256}", now, **edge, **more)
