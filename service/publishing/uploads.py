"""How much a caller may upload: within a day, and in all until a release uses it.

Room is taken before the first byte arrives, one caller after the other, so that two uploads at once
cannot have together what neither may have alone; what breaks off gives its room back.
"""

from datetime import datetime, timedelta
from itertools import accumulate

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from service.core.errors import DayUsedUp, TooLarge, TooMuchUnused
from service.db import artifacts
from service.db.pipelines import Upload
from service.db.session import take_turns
from service.db.tables import Artifact
from service.settings import Settings

DAY = timedelta(days=1)


def take_room(
    session: Session, principal: str, sha256: str, size: int, limits: Settings, now: datetime
) -> Upload:
    """Return the row that keeps room for an upload; `give_back` it if nothing comes of it.

    Raises:
        TooLarge: the store is full; TooMuchUnused: so is this caller's share of it.
        DayUsedUp: the caller has to wait.
    """
    take_turns(session, "uploads")
    stored = (Artifact.sha256 == Upload.sha256, Artifact.state == "stored")
    there = select(Artifact.sha256).where(*stored).exists()
    recent, mine = Upload.at > now - DAY, Upload.principal == principal
    held = artifacts.stored_bytes(session) + _sum(session, recent, ~there)
    if held + size > limits.store_bytes_max:
        full = f"{held} bytes of {limits.store_bytes_max} are stored; there is no room for it"
        raise TooLarge(full)
    unused = _sum(session, mine, ~Upload.used, recent | there)
    left = max(limits.upload_bytes_unused_max - unused, 0)
    if size > left:
        what = f"{unused} bytes of yours are in no release yet; publish them, or ask for more room"
        raise TooMuchUnused(f"{what}: {left} are left", left_bytes=left)
    _check_day(session, principal, size, limits.upload_bytes_per_day_max, now)
    row = Upload(principal=principal, sha256=sha256, bytes=size, at=now, used=False)
    session.add(row)
    session.flush()
    return row


def give_back(session: Session, row: Upload) -> None:
    """Give the room of an upload back: it broke off, or was there already."""
    session.execute(delete(Upload).filter_by(id=row.id))


def _check_day(session: Session, principal: str, size: int, most: int, now: datetime) -> None:
    rows = select(Upload.at, Upload.bytes).filter_by(principal=principal)
    recent = session.execute(rows.where(Upload.at > now - DAY).order_by(Upload.at)).all()
    used = sum(held for _, held in recent)
    left = max(most - used, 0)
    if size > most:
        raise TooLarge(f"a caller may upload {most} bytes a day", left_bytes=left)
    if size > left:
        gone = accumulate(held for _, held in recent)
        fits = (
            at for (at, _), sent in zip(recent, gone, strict=True) if used - sent + size <= most
        )
        at = next(fits)
        wait_s = int((at + DAY - now).total_seconds()) + 1
        when = (at + DAY).isoformat(timespec="seconds")
        detail = f"{left} of {most} bytes are left of your day; there is room for it at {when}"
        raise DayUsedUp(detail, left_bytes=left, retry_after_s=wait_s)


def _sum(session: Session, *which: ColumnElement[bool]) -> int:
    rows = select(func.coalesce(func.sum(Upload.bytes), 0)).where(*which)
    return int(session.execute(rows).scalar_one())
