"""Polls, by a layer of raw ASGI in front of the routes, which cost more than what most polls do.

A device that asks exactly what it asked before, and was told that nothing changed, is told so
again from memory (`service.db.entries`), with the headers that the route `device.poll` sends; that
needs no database. Whoever else asks as agents do, with a credential that is good, is answered in
one transaction, in the words of the route. Everything else, a credential that is wrong too, goes
on to the routes. Of what is not answered from memory only so much is let in at once: the rest is
told to come back, spread over a whole period.
"""

import hashlib
import math
import random
import re
from datetime import datetime
from hmac import compare_digest
from typing import NamedTuple

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import DBAPIError
from starlette.datastructures import State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.answers import Question, Reply, headers_of, reply_to
from service.api.origin import certificate_of, origin_of
from service.api.problems import of_refusal
from service.core.credential import shown_by
from service.core.errors import Overloaded, Refusal
from service.db.entries import Entry
from service.fleet import offers
from service.fleet.devices import admit, recognised

PATH = "/device/v1/poll"
CREDENTIAL, CONDITION = b"authorization", b"if-none-match"
KIND = b"Bearer fc"
QUERY = re.compile(rb"root=(\d{1,9})&t=(\d{1,9})(?:&s=([0-9a-f]{64}))?\Z")


class Asked(NamedTuple):
    """A poll with a bearer's credential: who asks, what it sent, and a digest of all that."""

    device_id: str
    credential: bytes
    query: bytes
    condition: bytes | None
    digest: bytes


def unchanged(app: ASGIApp, state: State) -> ASGIApp:
    """Answer what can be answered here, and let no more of the rest in than can be worked on."""
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
            await _answer(send, (asked.condition or b"").decode("latin-1"), entry.after_s)
            return
        question = _question(asked) if asked else None
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
            reply = await _looked_up(scope, state, asked, question) if asked and question else None
            if reply is None:
                await app(scope, receive, noted)
            else:
                await _send(noted, reply.status, reply.headers, reply.body)
        finally:
            waiting -= 1
        lasting = reply.lasting if reply else scope.get("state", {}).get("lasting")
        if asked and question and status == 304 and lasting is not None:
            entries.keep(mark, asked.device_id, Entry(asked.digest, *lasting))

    return poll


def _read(scope: Scope) -> Asked | None:
    """Return what is asked; no more of it is looked into than a known answer takes."""
    sent: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in (CREDENTIAL, CONDITION):
            if name in sent:
                return None
            sent[name] = value
    credential, condition = sent.get(CREDENTIAL, b""), sent.get(CONDITION)
    kind, _, rest = credential.partition(b"_")
    if kind != KIND:
        return None
    query = scope["query_string"]
    digest = hashlib.sha256(b"\n".join((credential, query, condition or b""))).digest()
    device_id = rest.partition(b"_")[0].decode("latin-1")
    return Asked(device_id, credential, query, condition, digest)


def _question(asked: Asked) -> Question | None:
    """Return what is asked, if it is asked in the one way that agents ask."""
    query = QUERY.match(asked.query)
    if query is None:
        return None
    condition = asked.condition.decode("latin-1") if asked.condition is not None else None
    return Question((query[3] or b"").decode(), int(query[1]), int(query[2]), condition)


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


async def _looked_up(scope: Scope, state: State, asked: Asked, question: Question) -> Reply | None:
    """Return the answer to a device that is who it says, None if the route shall see to it."""
    request, now = Request(scope), state.clock()

    def transact() -> Reply | None:
        sent = asked.credential.partition(b" ")[2].decode("latin-1")
        shown, certificate = shown_by(sent), certificate_of(request)
        # As in `api.deps`: a stranger never gets as far as a transaction that writes.
        with state.database.reader() as session:
            admit(session, shown, certificate)
        if state.limits["device_calls"].take(asked.device_id, now):
            return None
        request.state.actor = f"device {asked.device_id}"
        with state.database.writer() as session:
            session.info["origin"] = origin_of(request)
            known = offers.read(session, shown.device_id)
            device = recognised(session, known and known.device, shown, certificate, now)
            return reply_to(state, session, device, question, now, known)

    async with state.writers:
        try:
            return await run_in_threadpool(transact)
        except (Refusal, DBAPIError):  # nothing was kept; the route says it in words
            return None


async def _answer(send: Send, etag: str, after_s: float) -> None:
    await _send(send, 304, headers_of(etag, after_s), b"")


async def _send(send: Send, status: int, named: dict[str, str], body: bytes) -> None:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in named.items()]
    if body:
        headers.append((b"content-length", str(len(body)).encode()))
        headers.append((b"content-type", b"application/json"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _later(period_s: float) -> ASGIApp:
    wait_s = math.ceil(random.random() * period_s)
    return of_refusal(Overloaded(f"come back in {wait_s} s", retry_after_s=wait_s))
