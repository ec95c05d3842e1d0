"""Where a request comes from, how many may, and the note in the audit log when it is refused."""

import math
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

from fastapi import Request
from fastapi.concurrency import contextmanager_in_threadpool
from sqlalchemy.orm import Session

from service.core import audit
from service.core.audit import Origin
from service.core.credential import read_certificate, same
from service.core.errors import Refusal, TooManyRequests, Unauthorized
from service.core.network import client_ip, is_within, site_of

PATH_LETTERS_MAX = 200


def origin_of(request: Request) -> Origin:
    """Return who sends a request, as far as it was found out, and from where."""
    state = request.state
    if not hasattr(state, "request_id"):
        state.request_id = secrets.token_hex(8)
    peer = request.client.host if request.client else ""
    forwarded = request.headers.getlist("x-forwarded-for")
    ip = client_ip(peer, forwarded, request.app.state.settings.trusted_proxies)
    return Origin(getattr(state, "actor", "anyone"), ip, state.request_id)


def certificate_of(request: Request) -> str | None:
    """Return the digest by which a client's TLS certificate is known, None if there is none.

    Our own proxy terminates TLS and says who was there; anybody else who says so is not heard.
    Of `Client-Cert` (RFC 9440) it is the digest of the public key, which outlives a certificate.
    """
    settings = request.app.state.settings
    peer = request.client.host if request.client else ""
    told = request.headers.getlist(settings.client_cert_header)
    secrets_told = request.headers.getlist("Fleetdiff-Proxy-Secret")
    if (
        settings.client_cert_header == "off"
        or settings.proxy_secret is None
        or not is_within(peer, settings.trusted_proxies)
        or len(told) != 1  # of two, one is the client's own
        or len(secrets_told) != 1
        or not same(settings.proxy_secret.get_secret_value(), secrets_told[0])
    ):
        return None
    return read_certificate(told[0])


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


def limit(request: Request, kind: str, caller: str) -> None:
    """Count a request of a caller.

    Raises:
        TooManyRequests: there were too many of this kind within a minute.
    """
    state = request.app.state
    wait_s = math.ceil(state.limits[kind].take(caller, state.clock()))
    if wait_s:
        detail = f"too many requests; wait {wait_s} s"
        raise TooManyRequests(detail, retry_after_s=wait_s)


async def limit_enrolls(request: Request) -> None:
    """Count an enrollment by where it comes from.

    Only who is nobody yet is counted so: behind one address there may be a whole fleet.
    """
    limit(request, "enrolls", site_of(origin_of(request).ip))


async def denied(request: Request, refusal: Refusal) -> Refusal:
    """Write a refused request down, in a transaction of its own, and return the refusal.

    Whoever guesses too often is told so instead, and fills no log.
    """
    if isinstance(refusal, Unauthorized):
        try:
            limit(request, "failed_calls", site_of(origin_of(request).ip))
        except TooManyRequests as often:
            return often
    why = {"why": type(refusal).__name__} | refusal.noted
    path, now = quote(request.url.path)[:PATH_LETTERS_MAX], request.app.state.clock()
    async with writing(request) as session:
        audit.record(session, request.method, path, now, result="denied", **why)
    return refusal
