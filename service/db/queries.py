"""Every SELECT longer than a `get`. Nothing here decides or writes."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.rollout_tables import (
    Event,
)
from service.db.tables import CanarySet, Device, DeviceModel, MetadataFile, Model, Patch, Release


def newest_metadata(session: Session, role: str) -> MetadataFile | None:
    """Return the newest accepted version of a signed document."""
    newest = (
        select(MetadataFile)
        .where(MetadataFile.role == role)
        .order_by(MetadataFile.version.desc())
        .limit(1)
    )
    return session.scalars(newest).first()


def newest_versions(session: Session) -> dict[str, int]:
    """Return role -> newest accepted version."""
    rows = select(MetadataFile.role, func.max(MetadataFile.version)).group_by(MetadataFile.role)
    return {key: value for key, value in session.execute(rows)}


def roots_after(session: Session, version: int) -> Sequence[MetadataFile]:
    """Return every root newer than a version, oldest first."""
    rows = (
        select(MetadataFile)
        .where(MetadataFile.role == "root", MetadataFile.version > version)
        .order_by(MetadataFile.version)
    )
    return session.scalars(rows).all()


def model_names(session: Session) -> Sequence[str]:
    """Return the names of all models."""
    return session.scalars(select(Model.name).order_by(Model.name)).all()


def canary_set_of(session: Session, model: str) -> CanarySet | None:
    """Return the canary set of a model."""
    return session.get(CanarySet, model)


def releases_of(session: Session, model: str) -> Sequence[Release]:
    """Return a model's releases, oldest first."""
    rows = select(Release).where(Release.model == model).order_by(Release.seq)
    return session.scalars(rows).all()


def release_named(session: Session, model: str, name: str) -> Release | None:
    """Return one release of a model."""
    return session.scalars(
        select(Release).where(Release.model == model, Release.name == name)
    ).first()


def release_with_bytes(session: Session, model: str, sha256: str) -> Release | None:
    """Return the release whose full file has this digest."""
    return session.scalars(
        select(Release).where(Release.model == model, Release.sha256 == sha256)
    ).first()


def patches_of(session: Session, model: str) -> Sequence[Patch]:
    """Return a model's patches."""
    return session.scalars(select(Patch).where(Patch.model == model).order_by(Patch.sha256)).all()


def devices_by_release(session: Session, model: str) -> dict[int | None, int]:
    """Return release id (None: unknown bytes) -> number of devices that run it."""
    rows = (
        select(DeviceModel.running_release, func.count())
        .where(DeviceModel.model == model)
        .group_by(DeviceModel.running_release)
    )
    return {key: value for key, value in session.execute(rows)}


def device_with_serial(session: Session, serial: str) -> Device | None:
    """Return the device that enrolled with a serial number."""
    return session.scalars(select(Device).where(Device.serial == serial)).first()


def last_events(session: Session, device_id: str, limit: int) -> Sequence[Event]:
    """Return a device's newest events."""
    rows = select(Event).where(Event.device_id == device_id).order_by(Event.seq.desc()).limit(limit)
    return session.scalars(rows).all()


def highest_event(session: Session, device_id: str) -> int:
    """Return the highest event number of a device, 0 if there is none."""
    return session.scalar(select(func.max(Event.seq)).where(Event.device_id == device_id)) or 0
