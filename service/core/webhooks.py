"""Webhooks: addresses that are told what happens, in order, at least once.

The audit log is the outbox: an entry is written in the transaction of what it records, so nothing
that happened is untold and nothing is told that did not happen. A webhook keeps the number of the
last entry it was told. The messages are those of Standard Webhooks
(https://github.com/standard-webhooks/standard-webhooks, specification 1.0.0). A webhook's secret
is derived from the server's key and lies in no database.
"""

import hashlib
import hmac
import json
import secrets
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import standardwebhooks
from sqlalchemy import Select, or_, select, update
from sqlalchemy.orm import Session

from service.core import audit
from service.core.errors import Forbidden, InvalidRequest, found
from service.db.pipelines import Webhook
from service.db.session import changed
from service.db.tables import AuditEntry, AuditHead

WEBHOOKS_MAX = 100
PAGE_MAX = 100
LEASE = timedelta(seconds=30)  # whoever has not told the outcome by then, died
PAUSE_FIRST, PAUSE_MAX = timedelta(seconds=5), timedelta(hours=6)
FAILING_MAX = timedelta(days=5)
ERROR_LETTERS_MAX = 200
GONE = 410


@dataclass(frozen=True)
class Sender:
    """What the server's settings allow.

    Attributes:
        key: of the server, from which each webhook's secret is derived.
        allowed: how an address must begin; nobody who calls decides whom this server calls.
    """

    key: bytes
    allowed: tuple[str, ...]

    def secret(self, webhook_id: str) -> bytes:
        """Return the secret that signs what a webhook is told, 32 bytes."""
        return hmac.digest(self.key, webhook_id.encode(), hashlib.sha256)

    def check(self, url: str) -> None:
        """Raise Forbidden if the address is not one that the settings allow."""
        if not url.startswith(self.allowed):
            known = ", ".join(self.allowed)
            raise Forbidden(f"{url} is not allowed; FLEETDIFF_WEBHOOKS_TO has {known}")


@dataclass(frozen=True)
class Delivery:
    """One message to one address."""

    webhook: str
    url: str
    seq: int
    headers: dict[str, str]
    body: bytes


def create(
    session: Session, sender: Sender, url: str, events: Sequence[str], creator: str, now: datetime
) -> tuple[Webhook, str]:
    """Add a webhook that is told what happens from now on; returns it and its secret, once.

    Raises:
        Forbidden: the settings do not allow this address.
        InvalidRequest: there are too many webhooks.
    """
    sender.check(url)
    if len(session.scalars(select(Webhook.id)).all()) >= WEBHOOKS_MAX:
        raise InvalidRequest(f"there are {WEBHOOKS_MAX} webhooks; delete one that nobody needs")
    head = session.get_one(AuditHead, 1).seq
    row = Webhook(
        id=secrets.token_hex(8),
        url=url,
        events=sorted(set(events)),
        cursor=head,
        next_at=now,
        failing_since=None,
        created_by=creator,
        created_at=now,
    )
    session.add(row)
    session.flush()
    audit.record(session, "webhook.create", row.id, now, url=url, events=row.events)
    return row, f"whsec_{b64encode(sender.secret(row.id)).decode()}"


def named(session: Session, webhook_id: str) -> Webhook:
    """Return a webhook.

    Raises:
        NotFound: there is none.
    """
    return found(session.get(Webhook, webhook_id, with_for_update=True), f"webhook {webhook_id}")


def delete(session: Session, webhook_id: str, now: datetime) -> None:
    """Tell an address nothing more."""
    session.delete(named(session, webhook_id))
    audit.record(session, "webhook.delete", webhook_id, now)


def enable(session: Session, webhook_id: str, now: datetime) -> Webhook:
    """Try at once, from where it stopped: nothing is left out."""
    row = named(session, webhook_id)
    row.state, row.attempts, row.failing_since, row.next_at = "active", 0, None, now
    audit.record(session, "webhook.enable", row.id, now)
    return row


def test(session: Session, webhook_id: str, now: datetime) -> Webhook:
    """Let a webhook be told `webhook.test`, whatever else it wants to be told."""
    row = named(session, webhook_id)
    audit.record(session, "webhook.test", row.id, now)
    return row


def claim(session: Session, sender: Sender, now: datetime) -> list[Delivery]:
    """Return what is to be told now; nobody else gets it before the lease is over."""
    due = select(Webhook).filter_by(state="active").where(Webhook.next_at <= now)
    head = session.get_one(AuditHead, 1).seq
    claimed = []
    for row in session.scalars(due).all():
        entry = session.scalars(_entries(row.cursor, row.events, row.id).limit(1)).first()
        if entry is None:
            row.cursor = head  # where to look from, next time
        elif _take(session, row, next_at=now + LEASE):
            claimed.append(_message(sender, row, entry, now))
    return claimed


def settle(session: Session, told: Delivery, error: str, now: datetime, status: int = 0) -> None:
    """Note that a message arrived, or why it did not and when it is sent again.

    An address that says it is gone (410), or fails for days, is not tried again until somebody
    enables it; it goes on where it stopped.
    """
    row = session.get(Webhook, told.webhook, with_for_update=True)
    if row is None or row.cursor >= told.seq:
        return
    row.last_error = error[:ERROR_LETTERS_MAX]
    if not error:
        row.cursor, row.attempts, row.failing_since, row.next_at = told.seq, 0, None, now
        return
    row.failing_since = row.failing_since or now
    row.next_at = now + min(PAUSE_FIRST * 4 ** min(row.attempts, 10), PAUSE_MAX)
    row.attempts += 1
    if status == GONE or now - row.failing_since >= FAILING_MAX:
        row.state = "disabled"
        audit.record(session, "webhook.disable", row.id, now, error=row.last_error)


def told_after(
    session: Session, seq: int | None, events: Sequence[str]
) -> tuple[int, list[dict[str, Any]]]:
    """Return what happened after an entry, a page of it, and after which entry to look next.

    Without an entry nothing happened yet: what is told begins now.
    """
    head = session.get_one(AuditHead, 1).seq
    if seq is None:
        return head, []
    rows = session.scalars(_entries(seq, events).limit(PAGE_MAX)).all()
    return (rows[-1].seq if len(rows) == PAGE_MAX else head), [_told(row) for row in rows]


def _entries(seq: int, events: Sequence[str], tested: str = "") -> Select[AuditEntry]:
    """Return the query for the entries after one that are to be told, the next one first."""
    whole = [name for name in events if not name.endswith("*")]
    kinds = [name[:-1] for name in events if name.endswith("*")]
    wanted = or_(
        AuditEntry.action.in_(whole),
        *(AuditEntry.action.startswith(kind, autoescape=True) for kind in kinds),
        (AuditEntry.action == "webhook.test") & (AuditEntry.object == tested),
    )
    entries = select(AuditEntry).where(AuditEntry.seq > seq, AuditEntry.result == "done")
    return entries.where(wanted).order_by(AuditEntry.seq)


def _told(entry: AuditEntry) -> dict[str, Any]:
    data = entry.shown("seq actor object details")
    return {"type": entry.action, "timestamp": entry.at.isoformat(), "data": data}


def _take(session: Session, row: Webhook, **values: datetime) -> bool:
    as_read = (Webhook.id == row.id, Webhook.next_at == row.next_at)
    taken = update(Webhook).where(*as_read).values(values)
    return changed(session, taken.execution_options(synchronize_session=False))


def _message(sender: Sender, row: Webhook, entry: AuditEntry, now: datetime) -> Delivery:
    name, body = f"msg_{row.id}_{entry.seq}", json.dumps(_told(entry), separators=(",", ":"))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "fleetdiff",
        "webhook-id": name,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": standardwebhooks.Webhook(sender.secret(row.id)).sign(name, now, body),
    }
    return Delivery(row.id, row.url, entry.seq, headers, body.encode())
