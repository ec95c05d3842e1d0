"""Every SELECT longer than a `get`. Nothing here decides or writes."""

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload

from service.db.rollout_tables import Event
from service.db.tables import DeviceModel, MetadataFile, Model, Patch, Release, Table

Row = TypeVar("Row", bound=Table)


def first(session: Session, table: type[Row], **equal: object) -> Row | None:
    """Return a row whose columns have these values, None if there is none."""
    return session.scalars(select(table).filter_by(**equal)).first()


def newest_metadata(session: Session, role: str) -> MetadataFile | None:
    """Return the newest accepted version of a signed document."""
    rows = select(MetadataFile).filter_by(role=role).order_by(MetadataFile.version.desc())
    return session.scalars(rows.limit(1)).first()


def newest_versions(session: Session) -> dict[str, int]:
    """Return role -> newest accepted version."""
    rows = select(MetadataFile.role, func.max(MetadataFile.version)).group_by(MetadataFile.role)
    return {key: value for key, value in session.execute(rows)}


def roots_after(session: Session, version: int) -> Sequence[MetadataFile]:
    """Return every root newer than a version, oldest first."""
    newer = select(MetadataFile).where(MetadataFile.role == "root", MetadataFile.version > version)
    return session.scalars(newer.order_by(MetadataFile.version)).all()


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


def devices_by_release(session: Session, *which: Any) -> dict[int | None, int]:
    """Return release id (None: unknown bytes) -> number of devices, of those in question."""
    release = DeviceModel.running_release
    rows = select(release, func.count()).where(*which).group_by(release)
    return {key: value for key, value in session.execute(rows)}


def last_events(session: Session, device_id: str, limit: int) -> Sequence[Event]:
    """Return a device's newest events."""
    rows = select(Event).filter_by(device_id=device_id).order_by(Event.seq.desc())
    return session.scalars(rows.limit(limit)).all()
