"""Every SELECT over artifacts, whose rows outlive their bytes."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.tables import Artifact


def stored_bytes(session: Session) -> int:
    """Return the bytes that the artifacts in the store take together."""
    rows = select(func.coalesce(func.sum(Artifact.bytes), 0)).where(Artifact.state != "deleted")
    return int(session.scalar(rows) or 0)


def deleted(session: Session) -> set[str]:
    """Return the artifacts whose bytes are gone, or go."""
    return set(session.scalars(select(Artifact.sha256).where(Artifact.state != "stored")))
