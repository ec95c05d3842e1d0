"""What routes ask for: a transaction, the blobs, the clock, and who is calling.

`Tx` is the only transaction of a request: committed before the reply leaves (scope="function";
with FastAPI's default scope a failing commit has already answered 200), rolled back on any error.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, cast

from fastapi import Depends, Header, Request
from fastapi.concurrency import contextmanager_in_threadpool
from sqlalchemy.orm import Session

from service.blobs import Blobs
from service.core import access
from service.core.errors import Unauthorized
from service.db.session import Database
from service.db.tables import Device
from service.settings import Settings


def settings(request: Request) -> Settings:
    """Return the server's settings."""
    return cast(Settings, request.app.state.settings)


def blobs(request: Request) -> Blobs:
    """Return the artifact store."""
    return cast(Blobs, request.app.state.blobs)


def clock(request: Request) -> datetime:
    """Return the time; tests replace `app.state.clock`."""
    return cast(Callable[[], datetime], request.app.state.clock)().astimezone(UTC)


async def transaction(request: Request) -> AsyncIterator[Session]:
    """Yield the one transaction of a request.

    Writers queue here, in the event loop, before they have a thread: those that waited for
    SQLite's lock in a thread would keep the one that holds it from getting a thread to finish.
    """
    state = request.app.state
    async with state.writers, contextmanager_in_threadpool(state.database.writer()) as session:
        yield session


def reading(request: Request) -> Iterator[Session]:
    """Yield a session whose changes are not kept."""
    with cast(Database, request.app.state.database).reader() as session:
        yield session


Tx = Annotated[Session, Depends(transaction, scope="function")]
Reader = Annotated[Session, Depends(reading, scope="function")]
Now = Annotated[datetime, Depends(clock)]
Store = Annotated[Blobs, Depends(blobs)]
Config = Annotated[Settings, Depends(settings)]
Bearer = Annotated[str | None, Header(alias="Authorization", include_in_schema=False)]


@dataclass(frozen=True)
class Operator:
    """A person or a pipeline with an API token."""

    name: str
    scopes: tuple[str, ...]
    expires_at: datetime


def operator(scope: str | None) -> Callable[..., Operator]:
    """Return the dependency that admits callers whose token carries a scope.

    It lets go of its connection before the route asks for `Tx`: callers that hold one while they
    queue for the writer would leave the writer without any.
    """

    def admit(request: Request, now: Now, authorization: Bearer = None) -> Operator:
        with cast(Database, request.app.state.database).reader() as session:
            token = access.authorize(session, _bearer(authorization), scope, now)
            return Operator(token.name, tuple(token.scopes), token.expires_at)

    admit.scope = scope or "any"  # type: ignore[attr-defined]  # the test of routes reads it
    return admit


def fetching_device(request: Request, authorization: Bearer = None) -> Device:
    """Return the device that calls to fetch something; a download holds no connection."""
    with cast(Database, request.app.state.database).reader() as session:
        return access.identify_device(session, _bearer(authorization))


def device(
    _admitted: Annotated[Device, Depends(fetching_device)],
    session: Tx,
    authorization: Bearer = None,
) -> Device:
    """Return the device that calls, in the transaction of its request, one at a time.

    It is admitted first: a stranger never gets as far as a transaction. Routes ask for their
    caller before they ask for `Tx`, for the same reason.
    """
    return access.identify_device(session, _bearer(authorization), lock=True)


device.scope = fetching_device.scope = "device"  # type: ignore[attr-defined]
Caller = Annotated[Device, Depends(device)]
Fetcher = Annotated[Device, Depends(fetching_device)]


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized("send `Authorization: Bearer ...`")
    return token.strip()
