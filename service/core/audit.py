"""The audit log: who did what, from where, and what was refused; append-only, as one chain.

An entry is written in the transaction of what it records, so there is never one without the
other. The links are made when that transaction commits: by then it holds every other lock it
needs, and the lock of the head comes last, so the chain stays one line and nobody waits in a
circle. No entry holds a secret.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.signer import Signer
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from service.db.tables import AuditEntry, AuditHead
from trust.audit import SIGN, Head, entry_digest, follow, head_envelope
from trust.errors import require

logger = logging.getLogger(__name__)
SIGNED_EVERY = timedelta(days=1)
PART_ENTRIES = 1000  # of the log in memory at a time
FIELDS = "seq actor action object result details ip request_id previous_sha256"


@dataclass(frozen=True)
class Origin:
    """Who causes what a session does, as far as it is known."""

    actor: str
    ip: str = ""
    request_id: str = ""


def record(
    session: Session,
    action: str,
    thing: str,
    now: datetime,
    *,
    actor: str = "server",
    result: str = "done",
    **details: Any,
) -> None:
    """Note that something was done to a thing; kept if the transaction is.

    Args:
        session: of the change; `session.info["origin"]` says who causes it.
        action: what was done, as `rollout.halt`.
        thing: the id or the name of what it was done to.
        now: the time.
        actor: who did it, if the session has no origin.
        result: done or denied.
        details: what else matters; texts and numbers, never a secret.
    """
    origin = session.info.get("origin") or Origin(actor)
    entry = AuditEntry(
        at=now, action=action, object=thing, result=result, details=details, **vars(origin)
    )
    session.info.setdefault("audit", []).append(entry)


def is_signature_due(session: Session, now: datetime) -> bool:
    """Whether nobody vouched for the log since yesterday."""
    row = session.get_one(AuditHead, 1)
    return row.signed_at is None or now - row.signed_at >= SIGNED_EVERY


def head_at(session: Session, seq: int) -> Head:
    """Return the log's head as it was at an entry."""
    entry = session.get(AuditEntry, seq) if seq else None
    return Head(seq, entry.sha256) if entry else Head()


def follow_log(session: Session, head: Head) -> Head:
    """Follow the chain from a head to its end.

    Raises:
        Untrusted: E_AUDIT, naming the first entry that is missing or is not what was written.
    """
    rows = select(AuditEntry).where(AuditEntry.seq > head.seq).order_by(AuditEntry.seq)
    for part in session.scalars(rows.execution_options(yield_per=PART_ENTRIES)).partitions():
        head = follow(head, shown(part))
    return head


def sign_head(session: Session, director: Signer, checked: Head, now: datetime) -> Head:
    """Vouch for how far the log goes; the log keeps the signature, and this returns the head.

    Args:
        session: to append to.
        director: whose key the API does not hold: who takes it over cannot write yesterday anew.
        checked: a head from which the chain is followed to the one that is signed.
        now: the time.

    Raises:
        Untrusted: E_AUDIT, and nothing is signed.
    """
    row = session.get_one(AuditHead, 1, with_for_update=True)  # the signature is the next entry
    head = follow_log(session, checked)
    require(head == Head(row.seq, row.sha256), "E_AUDIT", "the audit log was cut off")
    envelope = head_envelope(head)
    envelope.sign(director)
    row.signed_at = now
    record(session, SIGN, str(head.seq), now, envelope=envelope.to_dict())
    logger.info("audit head", extra=head._asdict())
    return head


def page(session: Session, cursor: int | None, limit: int, back: bool) -> list[dict[str, Any]]:
    """Return a page of the log after a number or, going back from the end, before it."""
    seq = AuditEntry.seq
    rows = select(AuditEntry).order_by(seq.desc() if back else seq)
    if cursor is not None:
        rows = rows.where(seq < cursor if back else seq > cursor)
    return shown(session.scalars(rows.limit(limit)).all())


def shown(entries: Sequence[AuditEntry]) -> list[dict[str, Any]]:
    """Return entries exactly as their digests are computed from them."""
    return [_signed_part(entry) | {"sha256": entry.sha256} for entry in entries]


@event.listens_for(Session, "before_commit")
def _append(session: Session) -> None:
    entries: list[AuditEntry] = session.info.pop("audit", [])
    if not entries:
        return
    session.flush()
    head = session.get_one(AuditHead, 1, with_for_update=True)
    for entry in entries:
        entry.seq, entry.previous_sha256 = head.seq + 1, head.sha256
        entry.sha256 = entry_digest(_signed_part(entry))
        head.seq, head.sha256 = entry.seq, entry.sha256
    session.add_all(entries)


def _signed_part(entry: AuditEntry) -> dict[str, Any]:
    return entry.shown(FIELDS) | {"at": entry.at.isoformat()}
