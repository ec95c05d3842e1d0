"""Where a request comes from, and the note in the audit log when it is refused."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from urllib.parse import quote

from fastapi import Request
from fastapi.concurrency import contextmanager_in_threadpool
from sqlalchemy.orm import Session

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


@asynccontextmanager
async def writing(request: Request) -> AsyncIterator[Session]:
    """Enter a transaction on behalf of a request.

    Writers queue here, in the event loop, before they have a thread: those that waited for
    SQLite's lock in a thread would keep the one that holds it from getting a thread to finish.
    """
    state = request.app.state
    async with state.writers, contextmanager_in_threadpool(state.database.writer()) as session:
        session.info["origin"] = origin_of(request)
        yield session


async def note_denied(request: Request, refusal: Refusal, now: datetime) -> None:
    """Write a refused request down, in a transaction of its own."""
    why = {"why": type(refusal).__name__} | refusal.noted
    path = quote(request.url.path)[:PATH_LETTERS_MAX]
    async with writing(request) as session:
        audit.record(session, request.method, path, now, result="denied", **why)
