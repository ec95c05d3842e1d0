"""The only place where things are wired: settings in, an application out."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from weakref import WeakValueDictionary

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.datastructures import State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import contract, poll, problems, webhooks
from service.blobs import open_blobs
from service.core.errors import TooLarge, TooSlow
from service.core.identity import Provider
from service.core.network import Buckets
from service.core.rollout_limits import RolloutLimits, read_limits
from service.dashboard import pages
from service.db.changes import Stop
from service.db.session import Database
from service.engine.tick import tick
from service.fleet import retention
from service.fleet.reports import note_seen
from service.publishing.freshness import Tally
from service.settings import Settings
from service.signing.keys import OnlineKeys, Publisher
from service.signing.publisher import work
from service.signing.record import Record

logger = logging.getLogger(__name__)
SEEN_AT_ONCE = 500  # devices in one transaction
STREAMS_MAX = 100
CHECKS_MAX = 3  # of drafts at once; what is signed has a place of its own


def create_app(settings: Settings, *, ticking: bool = True, durable: bool = True) -> FastAPI:
    """Return the server's application.

    Args:
        settings: every choice there is.
        ticking: run the heartbeat in a thread; tests call `tick` themselves.
        durable: False lets SQLite skip fsync; for tests only.

    Raises:
        OSError, ValueError: keys or the artifact store cannot be used.
        InvalidRequest: the identity provider's groups have scopes that do not exist.
    """
    limits = read_limits(settings.rollout_limits) if settings.rollout_limits else None
    publisher = _embedded(settings, limits)
    life = partial(_life, publisher=publisher, ticking=ticking)
    # Its documents are files of this repository, see `api.contract`; nothing is served.
    # Nobody reads its telemetry, and to ask for that costs a fifth of an unchanged poll.
    silent: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}
    app = FastAPI(lifespan=life, openapi_url=None, redirect_slashes=False, telemetry=silent)
    app.state.settings = settings
    app.state.database = Database(
        settings.database, durable=durable, entries_max=settings.poll_entries_max
    )
    app.state.seen = {}
    app.state.writers = asyncio.Semaphore(app.state.database.writers_max)
    app.state.checking, app.state.turns = asyncio.Semaphore(CHECKS_MAX), WeakValueDictionary()
    app.state.streams = asyncio.Semaphore(STREAMS_MAX)
    app.state.uploads = asyncio.Semaphore(settings.uploads_max)
    app.state.blobs = open_blobs(settings.artifacts)
    app.state.asking_store, app.state.store_trouble = threading.Lock(), ""
    app.state.clock = lambda: datetime.now(UTC)
    kinds = ("operator_calls", "device_calls", "enrolls", "failed_calls")
    app.state.limits = {kind: Buckets(getattr(settings, f"{kind}_per_min")) for kind in kinds}
    app.state.provider = Provider(settings.oidc) if settings.oidc else None
    app.state.rollout_limits = limits
    app.state.wake, app.state.reports = threading.Event(), Tally()
    problems.install(app)
    # The last are the devices': what comes most is looked for first. Each route is taken as it was
    # made: `include_router` would make it anew when the first request comes, and nest it.
    for _, routers in reversed(contract.AUDIENCES.values()):
        for router in routers:
            app.router.routes.extend(router.routes)
    app.router.routes.extend(pages.router.routes)
    app.add_middleware(body_limit, settings=settings)
    app.add_middleware(poll.unchanged, state=app.state)
    return app


@asynccontextmanager
async def _life(app: FastAPI, publisher: Publisher | None, ticking: bool) -> AsyncIterator[None]:
    """Run what works beside the requests, for as long as the application does."""
    stop, database = Stop(), app.state.database
    threads = [threading.Thread(target=database.watch, args=(stop,), name="watch")]
    if ticking:
        beat = threading.Thread(target=_beat, args=(app, publisher, stop), name="tick")
        threads.append(beat)
    sender = webhooks.sender_of(app.state.settings) if ticking else None
    calls = asyncio.create_task(webhooks.call_for_ever(app, sender)) if sender else None
    for thread in threads:
        thread.start()
    yield
    stop.set()
    if calls is not None:
        calls.cancel()
        await asyncio.wait([calls])
    app.state.wake.set()
    for thread in threads:
        thread.join()
    try:
        flush_seen(app.state)
    except Exception:  # nothing depends on it that would be worth a stop that fails
        logger.exception("when devices were seen is lost")
    database.close()


def _embedded(settings: Settings, limits: RolloutLimits | None) -> Publisher | None:
    """Return the publisher that is a task of this process, if it is given keys."""
    if settings.online_keys is None:
        return None
    if limits and settings.record is None:
        raise ValueError("what limits count must outlive the process: set FLEETDIFF_RECORD")
    record = Record(settings.record)
    return Publisher(OnlineKeys.load(settings.online_keys), record=record, limits=limits)


def flush_seen(state: State) -> None:
    """Write down when devices polled last, since this was done before; others write in between."""
    while state.seen:
        # One by one, each in one step: polls go on noting meanwhile.
        some = dict(state.seen.popitem() for _ in range(min(len(state.seen), SEEN_AT_ONCE)))
        try:
            with state.database.writer() as session:
                note_seen(session, some)
        except Exception:
            for device_id, at in some.items():  # the next time, then
                state.seen.setdefault(device_id, at)
            raise


def body_limit(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Refuse a body over the limit by what arrives, whatever its header says, and one that drips.

    Uploads have a size limit of their own, and the time that the bytes that came may take.
    """

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        seen, more, began_s = 0, True, 0.0

        async def counted() -> Message:
            nonlocal seen, more, began_s
            if not more:
                return await receive()
            began_s = began_s or asyncio.get_running_loop().time()
            # Not by its announced length: nobody shall hold a place for days with one byte.
            earned_s = seen / settings.upload_bytes_per_s_min if _is_upload(scope) else 0
            try:
                async with asyncio.timeout_at(began_s + settings.body_s_max + earned_s):
                    message = await receive()
            except TimeoutError:
                raise TooSlow("the body came too slowly; send it again at once") from None
            more = message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > settings.body_bytes_max and not _is_upload(scope):
                raise TooLarge(f"the body has more than {settings.body_bytes_max} bytes")
            return message

        await app(scope, counted if scope["type"] == "http" else receive, send)

    return limited


def _is_upload(scope: Scope) -> bool:
    return bool(scope["path"].startswith("/v1/artifacts/"))


def _beat(app: FastAPI, publisher: Publisher | None, stop: threading.Event) -> None:
    """Tick until told to stop; what fails is logged and tried again, and keeps nothing else up."""
    state = app.state
    timeout = timedelta(seconds=state.settings.deployment_timeout_s)
    kept = timedelta(seconds=state.settings.reports_kept_s)
    parts: tuple[Callable[[], object], ...] = (
        lambda: flush_seen(state),
        lambda: tick(state.database, state.clock(), timeout, state.rollout_limits),
        lambda: publisher and work(state.database, publisher, state.clock()),
        lambda: retention.sweep(state.database, state.blobs),
        lambda: retention.forget_reports(state.database, kept, state.clock()),
    )
    while not stop.is_set():
        state.wake.clear()
        for part in parts:
            try:
                part()
            except Exception:
                logger.exception("tick failed")
        state.wake.wait(state.settings.tick_s)
