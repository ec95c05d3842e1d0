"""Every SELECT longer than a `get`: first of the catalogue, then of rollouts.

Nothing here decides or writes.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Select,
    and_,
    bindparam,
    func,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import Session, contains_eager, joinedload, selectinload

from service.db.columns import Table
from service.db.rollout_tables import (
    LIVE,
    OPEN,
    Cohort,
    CohortMember,
    Decision,
    Deployment,
    Event,
    Floor,
    Rollout,
)
from service.db.tables import INACTIVE, ApiToken, Device, DeviceModel, Model, Patch, Release
from trust.fields import is_at_least

Row = TypeVar("Row", bound=Table)


def first(session: Session, table: type[Row], **equal: object) -> Row | None:
    """Return a row whose columns have these values, None if there is none."""
    return session.scalars(select(table).filter_by(**equal)).first()


def model_names(session: Session) -> Sequence[str]:
    """Return the names of all models."""
    return session.scalars(select(Model.name).order_by(Model.name)).all()


def releases_of(session: Session, model: str) -> Sequence[Release]:
    """Return a model's releases, oldest first."""
    return session.scalars(select(Release).filter_by(model=model).order_by(Release.seq)).all()


def patches_of(session: Session, model: str) -> Sequence[Patch]:
    """Return a model's patches with the releases at both ends."""
    rows = select(Patch).options(joinedload(Patch.source), joinedload(Patch.target))
    return session.scalars(rows.filter_by(model=model).order_by(Patch.sha256)).all()


def floors_of(session: Session, model: str) -> Sequence[Floor]:
    """Return a model's floors, the lowest first."""
    rows = select(Floor).join(Floor.release).options(contains_eager(Floor.release))
    return session.scalars(rows.where(Release.model == model).order_by(Release.seq)).all()


def devices_by_release(session: Session, model: str) -> dict[int | None, int]:
    """Return release id (None: unknown bytes) -> number of a model's devices."""
    release = DeviceModel.running_release
    rows = select(release, func.count()).where(DeviceModel.model == model).group_by(release)
    return {key: value for key, value in session.execute(rows)}


def tokens_page(session: Session, after: str, limit: int) -> Sequence[ApiToken]:
    """Return a page of the API tokens, by id."""
    rows = select(ApiToken).where(ApiToken.id > after).order_by(ApiToken.id)
    return session.scalars(rows.limit(limit)).all()


def last_events(session: Session, device_id: str, limit: int) -> Sequence[Event]:
    """Return a device's newest events."""
    rows = select(Event).filter_by(device_id=device_id).order_by(Event.seq.desc())
    return session.scalars(rows.limit(limit)).all()


def cohorts_page(session: Session, after: str, limit: int) -> Sequence[Cohort]:
    """Return a page of the cohorts, by name."""
    rows = select(Cohort).where(Cohort.name > after).order_by(Cohort.name)
    return session.scalars(rows.limit(limit)).all()


def devices_page(
    session: Session, model: str | None, cohort: Cohort | None, after: str, limit: int
) -> Sequence[DeviceModel]:
    """Return a page of devices with what they run, by id."""
    listed = DeviceModel.device_id  # the index of a model's devices goes by it
    rows = select(DeviceModel).join(DeviceModel.device).where(listed > after)
    if model is not None:
        rows = rows.where(DeviceModel.model == model)
    if cohort is not None:
        rows = rows.where(*_membership(cohort))
    rows = rows.options(contains_eager(DeviceModel.device))
    return session.scalars(rows.order_by(listed).limit(limit)).all()


_NEWEST = (Deployment.created_at.desc(), Deployment.id)
_DEPLOYMENTS = select(Deployment).where(Deployment.device_id == bindparam("device"))
_DEPLOYMENTS = _DEPLOYMENTS.order_by(*_NEWEST)  # made once: every poll asks this


def deployments_of(session: Session, device_id: str) -> Sequence[Deployment]:
    """Return a device's deployments, the newest first."""
    return session.scalars(_DEPLOYMENTS, {"device": device_id}).all()


def cohort_devices(cohort: Cohort, span: tuple[str, str] | None = None) -> Select[str]:
    """Return the query for the ids of a cohort's devices, or of those from one id to another."""
    ids = select(Device.id).join(DeviceModel, DeviceModel.device_id == Device.id)
    return ids.where(*_membership(cohort, span))


def _membership(cohort: Cohort, span: tuple[str, str] | None = None) -> list[Any]:
    """Return what is true of a cohort's devices, and of no others."""
    true = [DeviceModel.model == cohort.model, Device.status == "active"]
    members = select(CohortMember.device_id).filter_by(cohort_id=cohort.id)
    if span:
        true.append(DeviceModel.device_id.between(*span))
        members = members.where(CohortMember.device_id.between(*span))
    if cohort.filter is None:
        return [*true, Device.id.in_(members)]
    return [*true, *_conditions(cohort.model, cohort.filter)]


def rollout_devices(rollout: Rollout, span: tuple[str, str] | None = None) -> Select[str]:
    """Return the query for the ids of the devices that a rollout is for."""
    ids = cohort_devices(rollout.cohort, span)
    if rollout.include_new or rollout.started_at is None:
        return ids
    return ids.where(Device.enrolled_at <= rollout.started_at)


def _conditions(model: str, chosen: dict[str, Any]) -> list[Any]:
    conditions: list[Any] = []
    if chosen.get("hardware"):
        conditions.append(Device.hardware.in_(chosen["hardware"]))
    for column in (Device.attributes, Device.tags):
        for name, value in chosen.get(column.key, {}).items():
            conditions.append(column[name].as_string() == value)
    if chosen.get("running"):
        named = select(Release.id).where(
            Release.model == model, Release.name.in_(chosen["running"])
        )
        conditions.append(DeviceModel.running_release.in_(named))
    return conditions


def devices_without(session: Session, attribute: str, since: datetime) -> Sequence[str]:
    """Return the devices heard of since then that do not say "yes" to an attribute."""
    said = func.coalesce(Device.attributes[attribute].as_string(), "")
    heard = func.coalesce(Device.last_seen_at, Device.enrolled_at)
    devices = select(Device.id).where(Device.status != "revoked", said != "yes", heard >= since)
    return session.scalars(devices.order_by(Device.id)).all()


def count_devices(session: Session, model: str) -> int:
    """Return how many devices are in the fleet of a model, by indexes alone: 25 ns each."""
    devices = select(func.count()).select_from(DeviceModel).where(DeviceModel.model == model)
    inactive = devices.where(DeviceModel.device_id.in_(select(Device.id).where(INACTIVE)))
    return session.execute(devices).scalar_one() - session.execute(inactive).scalar_one()


def count_reach(session: Session, rollout: Rollout) -> tuple[int, int]:
    """Return how many devices a rollout goes to, and how many its release then was offered to.

    Counted and never sampled, however long that takes: it says whether approvals are needed, and
    whoever made the cohort must not be able to gain from what a sample happens to miss.
    """
    cohort, others = rollout.cohort, func.count(Deployment.device_id.distinct())
    members = cohort_devices(cohort)
    before = (
        select(others)
        .join(Deployment.rollout)
        .where(
            Rollout.release_id == rollout.release_id,
            Deployment.direction == "forward",
            ~members.where(Device.id == Deployment.device_id).exists(),
        )
    )
    if cohort.filter is not None and not _conditions(cohort.model, cohort.filter):
        devices = count_devices(session, cohort.model)
    else:
        devices = session.execute(members.with_only_columns(func.count())).scalar_one()
    return devices, devices + session.execute(before).scalar_one()


def any_runs(session: Session, cohort: Cohort, releases: Sequence[Release]) -> bool:
    """Return whether a device of a cohort runs one of some releases."""
    named = DeviceModel.running_release.in_([release.id for release in releases])
    return session.execute(cohort_devices(cohort).where(named).limit(1)).first() is not None


def in_cohort(session: Session, cohort: Cohort, device_id: str) -> bool:
    """Return whether a device belongs to a cohort now."""
    members = cohort_devices(cohort).where(Device.id == device_id)
    return session.execute(members).first() is not None


def recent_rollouts(
    session: Session,
    *,
    limit: int | None = None,
    model: str | None = None,
    states: Sequence[str] | None = None,
    after: Rollout | None = None,
) -> Sequence[Rollout]:
    """Return rollouts, the newest first, optionally of one model, in some states, after another."""
    rows = select(Rollout).order_by(Rollout.created_at.desc(), Rollout.id).limit(limit)
    if after is not None:
        at = Rollout.created_at
        later = and_(at == after.created_at, Rollout.id > after.id)
        rows = rows.where(or_(at < after.created_at, later))
    if model is not None:
        rows = rows.where(Rollout.model == model)
    if states is not None:
        rows = rows.where(Rollout.state.in_(states))
    return session.scalars(rows).all()


def live_rollouts(session: Session, model: str) -> Sequence[Rollout]:
    """Return a model's running and paused rollouts, the newest first."""
    return recent_rollouts(session, model=model, states=LIVE)


def steering_rollouts(session: Session, model: str) -> Sequence[Rollout]:
    """Return a model's rollouts that may tell a device something, whole, the newest first."""
    back = and_(Rollout.state == "halted", Rollout.on_halt == "revert")
    rows = select(Rollout).where(Rollout.model == model, or_(Rollout.state.in_(LIVE), back))
    parts = (Rollout.release, Rollout.cohort, Rollout.stages, Rollout.budget)
    rows = rows.options(*map(selectinload, parts))
    return session.scalars(rows.order_by(Rollout.created_at.desc(), Rollout.id)).all()


def open_deployments(session: Session, device_id: str) -> Sequence[Deployment]:
    """Return the deployments of a device that have no outcome yet."""
    rows = select(Deployment).where(Deployment.device_id == device_id, Deployment.state.in_(OPEN))
    return session.scalars(rows.order_by(Deployment.created_at)).all()


def decisions_of(session: Session, rollout_id: str) -> Sequence[Decision]:
    """Return a rollout's decisions, the oldest first."""
    rows = select(Decision).filter_by(rollout_id=rollout_id).order_by(Decision.seq)
    return session.scalars(rows).all()


def remaining(session: Session, rollout: Rollout, silent: datetime, most: int) -> int:
    """Return how many devices of a cohort have yet to take a release, `most` if there are more.

    Not counted are those that are past it, refused or failed, were not seen since `silent`, or
    have other hardware or an older agent than the release asks for. If no way of a rollback is
    signed any more, whoever runs a later release has yet to take it.
    """
    release = rollout.release
    behind = Release.seq < release.seq
    if rollout.rollback:
        signed = Release.name.in_(release.rollback_from)
        behind = or_(behind, signed if release.rollback_from else Release.seq > release.seq)
    before = select(Release.id).where(Release.model == rollout.model, behind)
    heard = or_(Device.last_seen_at.is_(None), Device.last_seen_at >= silent)
    rows = rollout_devices(rollout).where(heard, not_out(rollout))
    if release.hardware:
        rows = rows.where(Device.hardware.in_(release.hardware))
    if release.min_agent:
        known = session.scalars(select(Device.agent_version).distinct())
        fit = [version for version in known if is_at_least(version, release.min_agent)]
        rows = rows.where(Device.agent_version.in_(fit))
    some = running_one_of(rows, before, most).subquery()
    return session.execute(select(func.count()).select_from(some)).scalar_one()


def not_out(rollout: Rollout) -> ColumnElement[bool]:
    """Return that a device did not refuse or fail in a rollout."""
    same = (Deployment.rollout_id == rollout.id, Deployment.device_id == Device.id)
    failed = (Deployment.direction == "forward", Deployment.state.in_(("refused", "failed")))
    return ~select(Deployment.id).where(*same, *failed).exists()


def running_one_of(rows: Select[str], releases: Select[int], most: int) -> CompoundSelect[str]:
    """Return at most so many of some devices that run one of these releases, or unknown bytes.

    Apart, so that an index leads to the few, and not past all that run something else; and each
    part with the limit, without which PostgreSQL would join a million devices to give ten.
    """
    running = DeviceModel.running_release
    parts = [rows.where(which).limit(most) for which in (running.is_(None), running.in_(releases))]
    return union_all(*(select(part.subquery().c[0]) for part in parts)).limit(most)
