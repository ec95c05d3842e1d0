"""What routes ask for: a transaction, the blobs, the clock, and who is calling.

`Tx` is the only transaction of a request: committed before the reply leaves (scope="function";
with FastAPI's default scope a failing commit has already answered 200), rolled back on any error.
"""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from typing import Annotated, Any, cast

from fastapi import Depends, Request
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from service.api import once
from service.api.origin import certificate_of, limit, origin_of, writing
from service.api.signed import read_signature
from service.blobs import Blobs
from service.core import access
from service.core.credential import Shown, shown_by
from service.core.errors import Unauthorized
from service.db.session import Database
from service.db.tables import ApiToken, Device
from service.fleet import devices
from service.publishing.freshness import Tally
from service.settings import Settings


def of_app(name: str) -> Callable[[Request], Any]:
    """Return the dependency on a part of the server; `create_app` names the parts.

    Like all that only looks something up, it is asynchronous: not worth a hop into a thread.
    """

    async def part(request: Request) -> Any:
        return getattr(request.app.state, name)

    return part


async def clock(request: Request) -> datetime:
    """Return the time; tests replace `app.state.clock`."""
    return cast(datetime, request.app.state.clock())


USE_NOTED_EVERY = timedelta(minutes=1)  # for people, and a minute is enough
Now = Annotated[datetime, Depends(clock)]
Store = Annotated[Blobs, Depends(of_app("blobs"))]
Config = Annotated[Settings, Depends(of_app("settings"))]
Wake = Annotated[threading.Event, Depends(of_app("wake"))]
Reports = Annotated[Tally, Depends(of_app("reports"))]
Data = Annotated[Database, Depends(of_app("database"))]
_SCHEME = HTTPBearer(scheme_name="bearer", auto_error=False)
Sent = Annotated[HTTPAuthorizationCredentials | None, Depends(_SCHEME)]


async def bearer(sent: Sent) -> str:
    """Return the credential that was sent, whose ever it is."""
    if sent is None:
        raise Unauthorized("send `Authorization: Bearer ...`")
    return sent.credentials


Bearer = Annotated[str, Depends(bearer)]


async def transaction(request: Request) -> AsyncIterator[Session]:
    """Yield the one transaction of a request."""
    async with writing(request) as session:
        claim = await once.claim(request, session)
        yield session
        if claim is not None:
            claim.keep(session, request, request.app.state.clock())


async def rehearsal(request: Request) -> AsyncIterator[Session]:
    """Yield a session that may write as a poll does, and of which nothing is kept."""
    state = request.app.state
    async with state.writers, contextmanager_in_threadpool(state.database.rehearsal()) as session:
        yield session


def supposing(database: Data) -> Iterator[Session]:
    """Yield a session in which a poll can be walked through; it writes nothing, nobody waits."""
    with database.supposing() as session:
        yield session


def reading(database: Data) -> Iterator[Session]:
    """Yield a session whose changes are not kept."""
    with database.reader() as session:
        yield session


Tx = Annotated[Session, Depends(transaction, scope="function")]
Rehearsal = Annotated[Session, Depends(rehearsal, scope="function")]
Supposed = Annotated[Session, Depends(supposing, scope="function")]
Reader = Annotated[Session, Depends(reading, scope="function")]


def operator(scope: str | None) -> Callable[..., Awaitable[ApiToken]]:
    """Return the dependency that admits callers whose token carries a scope.

    It lets go of its connection before the route asks for `Tx`: callers that hold one while they
    queue for the writer would leave the writer without any.
    """

    async def admit(request: Request, database: Data, now: Now, credential: Bearer) -> ApiToken:
        def recognise() -> ApiToken:
            provider = request.app.state.provider
            if provider is not None and not credential.startswith("fd_"):
                return cast(ApiToken, provider.recognise(credential, now))
            with database.reader() as session:
                return access.authorize(session, credential, now, origin_of(request).ip)

        caller = await run_in_threadpool(recognise)
        request.state.actor = access.actor(caller)
        limit(request, "operator_calls", request.state.actor)
        if caller.last_used_at is None or now - caller.last_used_at >= USE_NOTED_EVERY:
            async with writing(request) as session:
                await run_in_threadpool(access.note_use, session, caller, now)
        return access.allowed(caller, scope)

    admit.scope = scope or "any"  # type: ignore[attr-defined]  # the test of routes reads it
    return admit


async def signature(request: Request, now: Now) -> Shown | None:
    """Return what the signature of a request shows, None if it has none."""
    return await read_signature(request, now) if "signature-input" in request.headers else None


SignedOrNot = Annotated[Shown | None, Depends(signature)]


async def shown(request: Request, sent: Sent, now: Now) -> Shown:
    """Return what a device shows of itself: the credential that it sent, or else its signature."""
    signed = await signature(request, now) if sent is None else None
    return signed or shown_by(await bearer(sent))


IsShown = Annotated[Shown, Depends(shown)]


def admitted_device(request: Request, database: Data, shown: IsShown) -> str:
    """Return the id of the device that calls; what it signed is not counted yet."""
    with database.reader() as session:
        devices.admit(session, shown, certificate_of(request))
    request.state.actor = f"device {shown.device_id}"
    limit(request, "device_calls", shown.device_id)
    return shown.device_id


Admitted = Annotated[str, Depends(admitted_device)]


async def fetching_device(request: Request, admitted: Admitted, shown: IsShown) -> str:
    """Return the id of who calls to fetch something; a download holds no connection."""
    if shown.number is not None:
        async with writing(request) as session:
            await run_in_threadpool(devices.count_request, session, shown)
    return admitted


Fetcher = Annotated[str, Depends(fetching_device)]


def device(request: Request, _admitted: Admitted, session: Tx, now: Now, shown: IsShown) -> Device:
    """Return the device that calls, in the transaction of its request, one at a time.

    It is admitted first: a stranger never gets as far as a transaction. Routes ask for their
    caller before they ask for `Tx`, for the same reason.
    """
    return devices.identify_device(session, shown, certificate_of(request), now)


device.scope = fetching_device.scope = "device"  # type: ignore[attr-defined]
Caller = Annotated[Device, Depends(device)]
