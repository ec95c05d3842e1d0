"""What a poll is answered, in bytes: by the route, and by the layer in front of it."""

import hashlib
import json
import random
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy.orm import Session
from starlette.datastructures import State

from service.db.tables import Device
from service.fleet import devices, offers
from service.fleet.bundle import bundle_of
from service.fleet.holds import Hold
from service.fleet.offers import Answer, Read

JITTER = 0.2
LASTS = timedelta(days=1)  # at most: a row that somebody changed by hand is seen after a day


class Question(NamedTuple):
    """What a device asks: the digest of what it runs, the versions it trusts, its last answer."""

    running: str
    root: int
    timestamp: int
    condition: str | None


class Reply(NamedTuple):
    """An answer; `lasting` is what an entry of it holds, None if it may be another at any time."""

    status: int
    headers: dict[str, str]
    body: bytes
    lasting: tuple[str, str | None, datetime, float] | None


def reply_to(
    state: State,
    session: Session,
    device: Device,
    asked: Question,
    now: datetime,
    known: Read | None = None,
) -> Reply:
    """Check a device in, and put its answer into words."""
    config = state.settings
    timeout = timedelta(seconds=config.deployment_timeout_s)
    answer = offers.check_in(session, device, asked.running, timeout, now, known)
    state.seen[device.id] = now
    if answer.hold is Hold.ORDER_PENDING:
        state.wake.set()
    etag = _etag(answer, asked.root)
    soon = answer.deployment is not None or answer.hold is Hold.ORDER_PENDING
    # As long again as it waits already: a publisher that is away brings no storm of a whole fleet.
    soon_s = max(config.poll_soon_s, answer.waits.total_seconds())
    after = min(soon_s, config.poll_after_s) if soon else config.poll_after_s
    headers, lasting = headers_of(etag, after), None
    lifetime = timedelta(seconds=config.credential_lifetime_s)
    renewed = devices.renew_credential(device, lifetime, now)
    if renewed is not None:
        headers["Next-Credential"] = renewed
    elif answer.until is not None:
        until = min(answer.until, now + LASTS, devices.renewal_due(device, lifetime))
        lasting = (answer.row.model, device.certificate_sha256, until, after)
    if asked.condition == etag:
        return Reply(304, headers, b"", lasting)
    timeout_s = config.canary_timeout_s
    body = bundle_of(session, answer, asked.root, asked.timestamp, timeout_s)
    return Reply(200, headers, body, lasting)


def headers_of(etag: str, after_s: float) -> dict[str, str]:
    """Return the headers of every answer to a poll."""
    # In a header, never in the body: a random number there would defeat every ETag.
    soon = max(1, round(after_s * random.uniform(1 - JITTER, 1 + JITTER)))
    return {"ETag": etag, "Poll-After": str(soon), "Cache-Control": "no-store"}


def _etag(answer: Answer, root: int) -> str:
    row, signed = answer.row, answer.ground.timestamp
    version = str(signed.version) if signed else "0"
    deployment = answer.deployment.id if answer.deployment else ""
    state: list[Any] = [version, root, row.running_sha256, row.order_seq, deployment, answer.hold]
    return f'"{hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]}"'
