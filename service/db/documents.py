"""Every SELECT over the versions of signed documents."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.tables import MetadataFile


def newest_first(session: Session, role: str, limit: int) -> Sequence[MetadataFile]:
    """Return the newest versions of a signed document."""
    rows = select(MetadataFile).filter_by(role=role).order_by(MetadataFile.version.desc())
    return session.scalars(rows.limit(limit)).all()


def newest_ends(session: Session) -> dict[str, datetime]:
    """Return role -> when its newest accepted version expires."""
    newest = select(MetadataFile.role, func.max(MetadataFile.version).label("version"))
    last = newest.group_by(MetadataFile.role).subquery()
    same = (MetadataFile.role == last.c.role, MetadataFile.version == last.c.version)
    rows = select(MetadataFile.role, MetadataFile.expires_at).where(*same)
    return {role: end for role, end in session.execute(rows)}
