"""Every SELECT over artifacts, whose rows outlive their bytes."""

from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.tables import Artifact

LATE = timedelta(minutes=15)  # a beat comes every few seconds


def stored_bytes(session: Session) -> int:
    """Return the bytes that the artifacts in the store take together."""
    rows = select(func.coalesce(func.sum(Artifact.bytes), 0)).where(Artifact.state != "deleted")
    return int(session.scalar(rows) or 0)


def undeleted(session: Session, now: datetime) -> dict[str, int]:
    """Count what was marked long ago to be deleted, and is there still."""
    late = (Artifact.state == "deleting", Artifact.deleted_at <= now - LATE)
    size = func.coalesce(func.sum(Artifact.bytes), 0)
    number, total = session.execute(select(func.count(), size).where(*late)).one()
    return {"artifacts": number, "bytes": int(total)}


def deleted(session: Session) -> set[str]:
    """Return the artifacts whose bytes are gone, or go."""
    return set(session.scalars(select(Artifact.sha256).where(Artifact.state != "stored")))
