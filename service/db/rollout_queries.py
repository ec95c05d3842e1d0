"""Every SELECT about cohorts, rollouts and deployments. Nothing here decides or writes."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from service.db.rollout_tables import (
    CanaryReport,
    CanarySums,
    Cohort,
    CohortMember,
    Decision,
    Deployment,
    Rollout,
    Stage,
)
from service.db.tables import Device, DeviceModel, Release

OPEN = ("offered", "downloading", "applied", "activated")  # a deployment without an outcome
LIVE = ("running", "paused")


def cohort_named(session: Session, name: str) -> Cohort | None:
    """Return a cohort by its name."""
    return session.scalars(select(Cohort).where(Cohort.name == name)).first()


def all_cohorts(session: Session) -> Sequence[Cohort]:
    """Return every cohort by name."""
    return session.scalars(select(Cohort).order_by(Cohort.name)).all()


def devices_page(
    session: Session, model: str | None, cohort: Cohort | None, after: str | None, limit: int
) -> Sequence[tuple[Device, DeviceModel]]:
    """Return a page of devices with what they run, by id."""
    rows = select(Device, DeviceModel).join(DeviceModel, DeviceModel.device_id == Device.id)
    if model is not None:
        rows = rows.where(DeviceModel.model == model)
    if cohort is not None:
        rows = rows.where(Device.id.in_(cohort_devices(cohort)))
    if after is not None:
        rows = rows.where(Device.id > after)
    return session.execute(rows.order_by(Device.id).limit(limit)).all()


def device_with_model(session: Session, device_id: str) -> tuple[Device, DeviceModel] | None:
    """Return a device with what it runs."""
    device, row = session.get(Device, device_id), session.get(DeviceModel, device_id)
    return (device, row) if device is not None and row is not None else None


def deployments_of(session: Session, device_id: str) -> Sequence[Deployment]:
    """Return a device's deployments, the newest first."""
    rows = select(Deployment).where(Deployment.device_id == device_id)
    return session.scalars(rows.order_by(Deployment.created_at.desc(), Deployment.id)).all()


def cohort_devices(cohort: Cohort) -> Select[str]:
    """Return the query for the ids of a cohort's devices."""
    ids = (
        select(Device.id)
        .join(DeviceModel, DeviceModel.device_id == Device.id)
        .where(DeviceModel.model == cohort.model, Device.status == "active")
    )
    if cohort.filter is None:
        return ids.join(CohortMember, CohortMember.device_id == Device.id).where(
            CohortMember.cohort_id == cohort.id
        )
    return ids.where(*_conditions(cohort.model, cohort.filter))


def cohort_by_release(session: Session, cohort: Cohort) -> dict[int | None, int]:
    """Return release id (None: unknown bytes) -> number of a cohort's devices that run it."""
    rows = (
        select(DeviceModel.running_release, func.count())
        .where(DeviceModel.device_id.in_(cohort_devices(cohort)))
        .group_by(DeviceModel.running_release)
    )
    return {key: value for key, value in session.execute(rows)}


def _conditions(model: str, chosen: dict[str, Any]) -> list[Any]:
    conditions: list[Any] = []
    if chosen.get("hardware"):
        conditions.append(Device.hardware.in_(chosen["hardware"]))
    for name, value in chosen.get("attributes", {}).items():
        conditions.append(Device.attributes[name].as_string() == value)
    for name, value in chosen.get("tags", {}).items():
        conditions.append(Device.tags[name].as_string() == value)
    if chosen.get("running"):
        names = select(Release.id).where(
            Release.model == model, Release.name.in_(chosen["running"])
        )
        conditions.append(DeviceModel.running_release.in_(names))
    return conditions


def in_cohort(session: Session, cohort: Cohort, device_id: str) -> bool:
    """Return whether a device belongs to a cohort now."""
    members = cohort_devices(cohort).where(Device.id == device_id)
    return session.execute(members).first() is not None


def live_rollouts(session: Session, model: str) -> Sequence[Rollout]:
    """Return a model's running and paused rollouts, the newest first."""
    rows = (
        select(Rollout)
        .where(Rollout.model == model, Rollout.state.in_(LIVE))
        .order_by(Rollout.created_at.desc(), Rollout.id)
    )
    return session.scalars(rows).all()


def recent_rollouts(
    session: Session, limit: int, *, model: str | None = None, state: str | None = None
) -> Sequence[Rollout]:
    """Return the newest rollouts, optionally of one model or in one state."""
    rows = select(Rollout).order_by(Rollout.created_at.desc(), Rollout.id).limit(limit)
    if model is not None:
        rows = rows.where(Rollout.model == model)
    if state is not None:
        rows = rows.where(Rollout.state == state)
    return session.scalars(rows).all()


def running_rollouts(session: Session) -> Sequence[Rollout]:
    """Return every running rollout."""
    rows = select(Rollout).where(Rollout.state == "running").order_by(Rollout.id)
    return session.scalars(rows).all()


def stages_of(session: Session, rollout_id: str) -> Sequence[Stage]:
    """Return a rollout's stages in order."""
    rows = select(Stage).where(Stage.rollout_id == rollout_id).order_by(Stage.number)
    return session.scalars(rows).all()


def deployment_of(
    session: Session, rollout_id: str, device_id: str, direction: str
) -> Deployment | None:
    """Return one device's deployment in a rollout."""
    rows = select(Deployment).where(
        Deployment.rollout_id == rollout_id,
        Deployment.device_id == device_id,
        Deployment.direction == direction,
    )
    return session.scalars(rows).first()


def open_deployments(session: Session, device_id: str) -> Sequence[Deployment]:
    """Return the deployments of a device that have no outcome yet."""
    rows = (
        select(Deployment)
        .where(Deployment.device_id == device_id, Deployment.state.in_(OPEN))
        .order_by(Deployment.created_at)
    )
    return session.scalars(rows).all()


def reverted_deployment(session: Session, device_id: str, running: str) -> Deployment | None:
    """Return the forward deployment that put these bytes on a device, if it is to be undone.

    Only the newest one that leads to these bytes can have put them there.
    """
    rows = (
        select(Deployment, Rollout)
        .join(Rollout, Rollout.id == Deployment.rollout_id)
        .where(
            Deployment.device_id == device_id,
            Deployment.direction == "forward",
            Deployment.to_sha256 == running,
        )
        .order_by(Deployment.created_at.desc())
        .limit(1)
    )
    for deployment, rollout in session.execute(rows):
        if rollout.state == "halted" and rollout.on_halt == "revert":
            return deployment
    return None


def deployment_counts(session: Session, rollout_id: str) -> dict[tuple[int, str, str], int]:
    """Return (stage, direction, state) -> number of deployments."""
    rows = (
        select(Deployment.stage, Deployment.direction, Deployment.state, func.count())
        .where(Deployment.rollout_id == rollout_id)
        .group_by(Deployment.stage, Deployment.direction, Deployment.state)
    )
    return {(stage, way, state): n for stage, way, state, n in session.execute(rows)}


def bytes_sent(session: Session, rollout_id: str) -> dict[int, int]:
    """Return stage -> bytes that devices said they fetched."""
    rows = (
        select(Deployment.stage, func.sum(Deployment.bytes_sent))
        .where(Deployment.rollout_id == rollout_id)
        .group_by(Deployment.stage)
    )
    return {stage: int(total) for stage, total in session.execute(rows)}


def sums_of(session: Session, rollout_id: str, scope: str = "all") -> CanarySums | None:
    """Return the canary sums of a rollout."""
    return session.get(CanarySums, (rollout_id, scope))


def decisions_of(session: Session, rollout_id: str) -> Sequence[Decision]:
    """Return a rollout's decisions, the oldest first."""
    rows = select(Decision).where(Decision.rollout_id == rollout_id).order_by(Decision.seq)
    return session.scalars(rows).all()


def has_counted(session: Session, rollout_id: str, device_id: str) -> bool:
    """Return whether a device's pair is in the sums of a rollout."""
    rows = select(CanaryReport.report_id).where(
        CanaryReport.rollout_id == rollout_id,
        CanaryReport.device_id == device_id,
        CanaryReport.counted,
    )
    return session.execute(rows).first() is not None


def orders_to_sign(session: Session, aged: datetime, limit: int) -> Sequence[DeviceModel]:
    """Return the devices that wait for an order, or whose order expires before `aged`."""
    rows = (
        select(DeviceModel)
        .join(Deployment, Deployment.id == DeviceModel.deployment_id)
        .where(
            Deployment.state.in_(OPEN),
            or_(
                DeviceModel.order_deployment.is_distinct_from(DeviceModel.deployment_id),
                DeviceModel.order_expires_at < aged,
            ),
        )
        .order_by(DeviceModel.device_id)
        .limit(limit)
    )
    return session.scalars(rows).all()


def overdue_deployments(session: Session, now: datetime, limit: int) -> Sequence[Deployment]:
    """Return open deployments past their deadline; a pause or a way back has none."""
    rows = (
        select(Deployment)
        .join(Rollout, Rollout.id == Deployment.rollout_id)
        .where(
            Rollout.state == "running",
            Deployment.direction == "forward",
            Deployment.state.in_(OPEN),
            Deployment.deadline_at < now,
        )
        .order_by(Deployment.id)
        .limit(limit)
    )
    return session.scalars(rows).all()


def devices_with_outcome(session: Session, rollout: Rollout, silent: datetime) -> set[str]:
    """Return the devices that are on a rollout's release, past it, or out of it for good.

    Out of it are those that refused or failed, were not seen since `silent`, or have other
    hardware than the release is made for.
    """
    release = session.get_one(Release, rollout.release_id)
    on_it = (
        select(DeviceModel.device_id)
        .join(Release, Release.id == DeviceModel.running_release)
        .where(Release.model == rollout.model, Release.seq >= release.seq)
    )
    beyond = Device.last_seen_at < silent
    if release.hardware:
        beyond = or_(beyond, Device.hardware.not_in(release.hardware))
    out = select(Deployment.device_id).where(
        Deployment.rollout_id == rollout.id,
        Deployment.direction == "forward",
        Deployment.state.in_(("refused", "failed")),
    )
    found = (on_it, out, select(Device.id).where(beyond))
    return {device_id for rows in found for device_id in session.scalars(rows)}


def errors_by_stage(session: Session, rollout_id: str) -> dict[int, tuple[int, int, int]]:
    """Return stage -> (word errors of the old model, of the new one, reference words)."""
    r = CanaryReport
    rows = (
        select(
            r.stage,
            func.sum(r.old_sub + r.old_del + r.old_ins),
            func.sum(r.new_sub + r.new_del + r.new_ins),
            func.sum(r.ref_words),
        )
        .where(r.rollout_id == rollout_id, r.counted)
        .group_by(r.stage)
    )
    return {s: (int(old), int(new), int(n)) for s, old, new, n in session.execute(rows)}
