"""Where a request comes from, and the note in the audit log when it is refused."""

import secrets
from datetime import datetime
from urllib.parse import quote

from fastapi import Request
from fastapi.concurrency import contextmanager_in_threadpool

from service.core import audit
from service.core.audit import Origin
from service.core.errors import Refusal

PATH_LETTERS_MAX = 200


def origin_of(request: Request) -> Origin:
    """Return who sends a request, as far as it was found out, and from where."""
    state = request.state
    if not hasattr(state, "request_id"):
        state.request_id = secrets.token_hex(8)
    ip = request.client.host if request.client else ""
    return Origin(getattr(state, "actor", "anyone"), ip, state.request_id)


async def note_denied(request: Request, refusal: Refusal, now: datetime) -> None:
    """Write a refused request down, in a transaction of its own."""
    state = request.app.state
    why = {"why": type(refusal).__name__} | refusal.noted
    path = quote(request.url.path)[:PATH_LETTERS_MAX]
    async with state.writers, contextmanager_in_threadpool(state.database.writer()) as session:
        session.info["origin"] = origin_of(request)
        audit.record(session, request.method, path, now, result="denied", **why)
