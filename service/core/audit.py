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
from sqlalchemy import event
from sqlalchemy.orm import Session

from service.db.tables import AuditEntry, AuditHead
from trust.audit import SIGN, Head, entry_digest, head_envelope

logger = logging.getLogger(__name__)
SIGNED_EVERY = timedelta(days=1)
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


def sign_head(session: Session, director: Signer, now: datetime) -> None:
    """Let the publisher vouch once a day for how far the log goes; the log keeps the signature.

    The API holds no key: whoever takes it over cannot write yesterday anew.
    """
    row = session.get_one(AuditHead, 1)
    if row.signed_at is not None and now - row.signed_at < SIGNED_EVERY:
        return
    session.refresh(row, with_for_update=True)  # the signature is the very next entry
    envelope = head_envelope(Head(row.seq, row.sha256))
    envelope.sign(director)
    row.signed_at = now
    record(session, SIGN, str(row.seq), now, envelope=envelope.to_dict())
    logger.info("audit head", extra={"seq": row.seq, "sha256": row.sha256})


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
