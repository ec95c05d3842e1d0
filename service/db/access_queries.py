"""The SELECTs about who may do what, and who did."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.tables import ApiToken, AuditEntry


def audit_page(
    session: Session, cursor: int | None, limit: int, back: bool
) -> Sequence[AuditEntry]:
    """Return a page of the audit log after a number or, going back from the end, before it."""
    seq = AuditEntry.seq
    rows = select(AuditEntry).order_by(seq.desc() if back else seq)
    if cursor is not None:
        rows = rows.where(seq < cursor if back else seq > cursor)
    return session.scalars(rows.limit(limit)).all()


def tokens_page(session: Session, after: str, limit: int) -> Sequence[ApiToken]:
    """Return a page of the API tokens, by id."""
    rows = select(ApiToken).where(ApiToken.id > after).order_by(ApiToken.id)
    return session.scalars(rows.limit(limit)).all()
