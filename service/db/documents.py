"""Every SELECT over signed documents: their versions, and the drafts of the next ones."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.tables import CanarySet, Draft, MetadataFile


def newest_first(session: Session, role: str, limit: int) -> Sequence[MetadataFile]:
    """Return the newest versions of a signed document."""
    rows = select(MetadataFile).filter_by(role=role).order_by(MetadataFile.version.desc())
    return session.scalars(rows.limit(limit)).all()


def newest_ends(session: Session, roles: Sequence[str] | None = None) -> dict[str, datetime]:
    """Return role -> when its newest accepted version expires, of all or some roles."""
    newest = select(MetadataFile.role, func.max(MetadataFile.version).label("version"))
    if roles is not None:
        newest = newest.where(MetadataFile.role.in_(roles))
    last = newest.group_by(MetadataFile.role).subquery()
    same = (MetadataFile.role == last.c.role, MetadataFile.version == last.c.version)
    rows = select(MetadataFile.role, MetadataFile.expires_at).where(*same)
    return {role: end for role, end in session.execute(rows)}


def canary_ends(session: Session, *models: str) -> dict[str, datetime]:
    """Return model -> when its canary set expires, of those whose set does."""
    rows = select(CanarySet.model, CanarySet.expires_at).where(CanarySet.model.in_(models))
    return {model: end for model, end in session.execute(rows) if end is not None}


def newest_metadata(session: Session, role: str) -> MetadataFile | None:
    """Return the newest accepted version of a signed document."""
    return next(iter(newest_first(session, role, 1)), None)


def newest_versions(session: Session) -> dict[str, int]:
    """Return role -> newest accepted version."""
    rows = select(MetadataFile.role, func.max(MetadataFile.version)).group_by(MetadataFile.role)
    return {key: value for key, value in session.execute(rows)}


def roots_after(session: Session, version: int) -> Sequence[MetadataFile]:
    """Return every root newer than a version, oldest first."""
    newer = select(MetadataFile).where(MetadataFile.role == "root", MetadataFile.version > version)
    return session.scalars(newer.order_by(MetadataFile.version)).all()


def all_drafts(session: Session) -> Sequence[Draft]:
    """Return the documents that wait for signatures, by role."""
    return session.scalars(select(Draft).order_by(Draft.role)).all()
