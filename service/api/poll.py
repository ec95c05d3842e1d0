"""Polls that need no database: a layer of raw ASGI in front of the routes.

A device that asks exactly what it asked before, and was told that nothing changed, is told so
again from memory (`service.db.entries`), with the headers that the route `device.poll` sends.
Everything else, a credential that is wrong too, goes on to the routes. Of what goes on, only so
much is let in at once: the rest is told to come back, spread over a whole period.
"""

import hashlib
import math
import random
from datetime import datetime
from hmac import compare_digest
from typing import Any, NamedTuple

from fastapi import Request
from starlette.datastructures import State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.origin import certificate_of
from service.api.problems import of_refusal
from service.core.errors import Overloaded
from service.db.entries import Entry

PATH = "/device/v1/poll"
JITTER = 0.2
CREDENTIAL, CONDITION = b"authorization", b"if-none-match"
KIND = b"Bearer fc"


class Asked(NamedTuple):
    """A poll with a condition: who asks, by its credential, and a digest of the whole question."""

    device_id: str
    digest: bytes
    etag: bytes


def unchanged(app: ASGIApp, state: State) -> ASGIApp:
    """Answer unchanged polls, and let no more of the others in than can be worked on."""
    entries, settings = state.database.entries, state.settings
    waiting = 0

    async def poll(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal waiting
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "GET":
            await app(scope, receive, send)
            return
        asked = _read(scope)
        entry = entries.find(asked.device_id) if asked else None
        if asked and entry and _stands(scope, state, asked, entry):
            await _answer(send, asked.etag, entry.after_s)
            return
        if waiting >= settings.polls_at_once_max:
            await _later(settings.poll_after_s)(scope, receive, send)
            return
        mark, status = entries.mark(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        waiting += 1
        try:
            await app(scope, receive, noted)
        finally:
            waiting -= 1
        lasting = scope.get("state", {}).get("lasting")
        if asked and status == 304 and lasting is not None:
            entries.keep(mark, asked.device_id, Entry(asked.digest, *lasting))

    return poll


def headers_of(etag: str, after_s: float) -> dict[str, str]:
    """Return the headers of every answer to a poll."""
    # In a header, never in the body: a random number there would defeat every ETag.
    soon = max(1, round(after_s * random.uniform(1 - JITTER, 1 + JITTER)))
    return {"ETag": etag, "Poll-After": str(soon), "Cache-Control": "no-store"}


def _read(scope: Scope) -> Asked | None:
    """Return what is asked, if it is asked in the one way that agents ask."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in (CREDENTIAL, CONDITION):
            if name in found:
                return None
            found[name] = value
    kind, _, rest = found.get(CREDENTIAL, b"").partition(b"_")
    if kind != KIND or CONDITION not in found:
        return None
    whole = b"\n".join((found[CREDENTIAL], scope["query_string"], found[CONDITION]))
    device_id = rest.partition(b"_")[0].decode("latin-1")
    return Asked(device_id, hashlib.sha256(whole).digest(), found[CONDITION])


def _stands(scope: Scope, state: State, asked: Asked, entry: Entry) -> bool:
    """Whether the route would give the same answer; if so, the poll is counted and noted."""
    now: datetime = state.clock()
    if not compare_digest(asked.digest, entry.asked) or now >= entry.until:
        return False
    if entry.certificate is not None and certificate_of(Request(scope)) != entry.certificate:
        return False
    if state.limits["device_calls"].take(asked.device_id, now):
        return False
    state.seen[asked.device_id] = now
    return True


async def _answer(send: Send, etag: bytes, after_s: float) -> None:
    headers: list[Any] = [
        (name.lower().encode(), value.encode("latin-1"))
        for name, value in headers_of(etag.decode("latin-1"), after_s).items()
    ]
    await send({"type": "http.response.start", "status": 304, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _later(period_s: float) -> ASGIApp:
    wait_s = math.ceil(random.random() * period_s)
    return of_refusal(Overloaded(f"come back in {wait_s} s", retry_after_s=wait_s))
