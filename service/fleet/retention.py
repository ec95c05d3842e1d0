"""Which artifacts may go: what nothing needs, after a time of grace, and never what something does.

Each reason to keep one is a sentence that people read. Without any, an artifact becomes a
candidate; whoever collects after the grace marks it, in one transaction that looks at the reasons
again, and from then on no plan leads along it. Its bytes go at the next beat (`sweep`), so a
process that ends in between leaves nothing half done. Its row stays, for releases refer to it;
who uploads it again has it back.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, delete, func, or_, select, tuple_
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Targets

from service.blobs import Blobs
from service.core import audit
from service.core.chain import between
from service.core.errors import NotFound
from service.core.words import counted
from service.db import documents, queries
from service.db.artifacts import undeleted
from service.db.changes import touched
from service.db.entries import EVERYTHING
from service.db.pipelines import Upload
from service.db.rollout_tables import ENDED, LIVE, OPEN, CanaryReport, Deployment, Rollout
from service.db.session import Database, take_turns
from service.db.tables import Artifact, CanarySet, Device, DeviceModel, Draft, Release
from service.fleet import plans
from service.publishing.catalog import files_of
from service.publishing.manifest import read_manifest
from service.publishing.sight import SILENT
from trust.roles import Family, family_role, read_family

logger = logging.getLogger(__name__)
YOUNG = SILENT  # devices come with a release for so long after it was published
SWEPT_AT_ONCE = 100
COUNTED_MAX = 1_000  # devices that run a release: one is a reason, and all of a fleet take seconds
FORGOTTEN_AT_ONCE = 5_000  # reports in one transaction; others write in between
FORGOTTEN_WITHIN = timedelta(days=1)
SHOWN = "sha256 bytes state unneeded_since deleted_at"


def page(
    session: Session, blobs: Blobs, after: str, limit: int, grace: timedelta, now: datetime
) -> list[dict[str, Any]]:
    """Return a page of the artifacts, by digest: what needs each, or when it may go."""
    needed = reasons(session, blobs, now)
    rows = select(Artifact).where(Artifact.sha256 > after).order_by(Artifact.sha256).limit(limit)
    shown = []
    for row in session.scalars(rows):
        why = needed.get(row.sha256, [])
        since = None if why else row.unneeded_since
        due = since + grace if since and row.state == "stored" else None
        shown.append(row.shown(SHOWN) | {"needed": why, "unneeded_since": since, "due_at": due})
    return shown


def check_not_going(session: Session, sha256: str) -> None:
    """Refuse what is to be deleted, though its bytes may be there still: it takes an upload."""
    row = session.get(Artifact, sha256)
    if row is not None and row.state != "stored":
        raise NotFound(f"artifact {sha256} was deleted; upload it again")


def collect(
    session: Session, blobs: Blobs, grace: timedelta, now: datetime
) -> dict[str, dict[str, int]]:
    """Mark what nothing has needed for the time of grace to be deleted; count what is unneeded.

    And what was marked before and could not be deleted.

    The rows are locked before the reasons are looked at: who makes a rollout locks its target's.
    """
    rows = select(Artifact).filter_by(state="stored").order_by(Artifact.sha256)
    stored = session.scalars(rows.with_for_update(key_share=True)).all()
    needed = reasons(session, blobs, now)
    told = {name: {"artifacts": 0, "bytes": 0} for name in ("candidates", "deleting")}
    for row in stored:
        since = row.unneeded_since = None if row.sha256 in needed else row.unneeded_since or now
        if since is None:
            continue
        kind = "deleting" if now - since >= grace else "candidates"
        told[kind]["artifacts"] += 1
        told[kind]["bytes"] += row.bytes
        if kind == "deleting":
            row.state, row.deleted_at = "deleting", now
            touched(session).add(EVERYTHING)  # plans lead along it no more
            idle = since.isoformat()
            audit.record(session, "artifact.delete", row.sha256, now, bytes=row.bytes, since=idle)
    return told | {"undeleted": undeleted(session, now)}


def sweep(database: Database, blobs: Blobs) -> None:
    """Delete the bytes of what was marked; an upload that brings it back goes first.

    What the store refuses to delete is logged, tried again at the next beat, and holds up nothing.
    """
    with database.reader() as session:
        # By chance: many that cannot be deleted must not stand before the others each time.
        rows = select(Artifact.sha256).filter_by(state="deleting").order_by(func.random())
        marked = session.scalars(rows.limit(SWEPT_AT_ONCE)).all()
    failed: dict[str, str] = {}
    for sha256 in marked:
        with database.writer() as session:
            take_turns(session, "uploads")
            row = session.get_one(Artifact, sha256, with_for_update=True)
            on_its_way = select(Upload.id).where(
                Upload.sha256 == sha256, Upload.at >= row.deleted_at
            )
            if row.state == "deleting" and session.scalars(on_its_way).first() is None:
                try:
                    blobs.delete(sha256)
                except OSError as error:
                    failed[sha256] = str(error)
                else:
                    row.state = "deleted"
    if failed:
        first, why = next(iter(failed.items()))
        more = {"artifacts": len(failed), "for_example": first, "why": why}
        logger.error("artifacts cannot be deleted", extra=more)


def forget_reports(database: Database, kept: timedelta, now: datetime) -> None:
    """Delete what each device reported to rollouts that ended long ago; their sums stay.

    The row says so before the first report goes: sums without pairs are then no disagreement.
    """
    begun, report = Rollout.reports_deleted_at, CanaryReport
    left = select(report.report_id).where(report.rollout_id == Rollout.id).exists()
    due = or_(begun.is_(None), and_(begun > now - FORGOTTEN_WITHIN, left))
    old = select(Rollout.id).where(Rollout.state.in_(ENDED), Rollout.finished_at <= now - kept, due)
    with database.reader() as session:
        ids = session.scalars(old).all()
    for rollout_id in ids:
        with database.writer() as session:
            rollout = session.get_one(Rollout, rollout_id)
            rollout.reports_deleted_at = rollout.reports_deleted_at or now
        some = select(report.device_id, report.report_id).where(report.rollout_id == rollout_id)
        gone = delete(report).where(report.rollout_id == rollout_id)
        gone = gone.where(
            tuple_(report.device_id, report.report_id).in_(some.limit(FORGOTTEN_AT_ONCE))
        )
        count = FORGOTTEN_AT_ONCE
        while count == FORGOTTEN_AT_ONCE:
            with database.writer() as session:
                count = session.connection().execute(gone).rowcount


def reasons(session: Session, blobs: Blobs, now: datetime) -> dict[str, list[str]]:
    """Return digest -> why an artifact is kept, as sentences; what is not in it may go."""
    found: dict[str, list[str]] = defaultdict(list)
    for model in queries.model_names(session):
        for sha256, why in _of_model(session, model, now):
            found[sha256].append(why)
    for draft in documents.all_drafts(session):
        if draft.role.startswith("family-"):
            for sha256 in _drafted(blobs, draft):
                found[sha256].append(f"the draft of {draft.role} lists it")
    return found


def _of_model(session: Session, model: str, now: datetime) -> Iterator[tuple[str, str]]:
    releases = queries.releases_of(session, model)
    counts = {release.id: _running(session, release, now) for release in releases}
    running = {release_id: devices for release_id, devices in counts.items() if devices}
    young = {release.id for release in releases if now - release.published_at < YOUNG}
    installed = [release for release in releases if release.id in young | running.keys()]
    goals = _goals(session, model, {release.name for release in installed})
    edges = [edge for edge in plans.edges_of(session, model) if not edge.withdrawn]
    for release in releases:
        if devices := running.get(release.id):
            more = " or more" * (devices == COUNTED_MAX)
            yield release.sha256, f"{release.name} runs on {counted(devices, 'device')}{more}"
        if release.id in young:
            yield release.sha256, f"{release.name} was published within {YOUNG.days} days"
        for why in goals.get(release.id, ()):
            yield release.sha256, f"{release.name} {why}"
        if release.id in goals:
            for sha256 in between(edges, [r.sha256 for r in installed], release.sha256):
                yield sha256, f"it is on a way to {release.name}"
    canary = session.get(CanarySet, model)
    if canary is not None:
        for sha256 in (canary.sha256, *(shard["sha256"] for shard in canary.manifest["shards"])):
            yield sha256, f"{model} is tried by it"
    signed = documents.newest_metadata(session, family_role(model))
    for component in _family(model, signed.body).components if signed else ():
        yield component.sha256, f"it goes with a release of {model}"


def _running(session: Session, release: Release, now: datetime) -> int:
    """Return how many devices that were heard of run a release, or as many as are counted."""
    heard = func.coalesce(Device.last_seen_at, Device.enrolled_at)
    rows = select(Device.id).join(DeviceModel, DeviceModel.device_id == Device.id)
    rows = rows.where(DeviceModel.model == release.model, DeviceModel.running_release == release.id)
    rows = rows.where(Device.status != "revoked", heard >= now - SILENT).limit(COUNTED_MAX)
    return session.execute(select(func.count()).select_from(rows.subquery())).scalar_one()


def _goals(session: Session, model: str, installed: set[str]) -> dict[int, list[str]]:
    """Return release -> why devices may be led to it."""
    goals: dict[int, list[str]] = defaultdict(list)
    releases = queries.releases_of(session, model)
    active = [release for release in releases if release.status == "active"]
    for release in active[-1:]:
        goals[release.id].append("is the newest release")
    for release in releases:
        if left := sorted(installed.intersection(release.rollback_from)):
            goals[release.id].append(f"is the way back from {', '.join(left)}")
    for floor in queries.floors_of(session, model):
        goals[floor.release_id].append("is a floor")
    lively = select(Rollout).where(Rollout.model == model, Rollout.state.not_in(ENDED))
    for rollout in session.scalars(lively.order_by(Rollout.id)):
        goals[rollout.release_id].append(f"is what rollout {rollout.id} brings")
    # An edge keeps whoever is reverted to; who was taken back along it is reverted forward.
    ends = Deployment.from_sha256 == Release.sha256
    taken = select(Release.id, Rollout.id).join(Deployment, ends).join(Deployment.rollout)
    taken = taken.where(Release.model == model, Rollout.model == model, Rollout.rollback)
    taken = taken.where(Rollout.on_halt == "revert", Rollout.state.in_((*LIVE, "halted")))
    for release_id, rollout_id in session.execute(taken.distinct().order_by(Rollout.id)):
        why = f"is where rollout {rollout_id} sends its devices if it is halted"
        goals[release_id].append(why)
    bound = select(Deployment.release_id).join(Deployment.rollout).distinct()
    open_ones = bound.where(Rollout.model == model, Deployment.state.in_(OPEN))
    for release_id in session.scalars(open_ones):
        goals[release_id].append("is where devices are on their way to")
    return goals


def _drafted(blobs: Blobs, draft: Draft) -> Iterator[str]:
    family = _family(draft.role.removeprefix("family-"), draft.body)
    for file in files_of(family):
        yield file.sha256
    if family.canary is not None:
        for shard in read_manifest(blobs, family.canary)["shards"]:
            yield shard["sha256"]


def _family(model: str, body: bytes) -> Family:
    return read_family(model, Metadata[Targets].from_bytes(body).signed)
