"""Whoever runs pipelines: webhooks and the task that calls them, and the same as a stream.

Only this server's settings say whom it calls; a redirect is not followed.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx2
from fastapi import FastAPI, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from service.api.deps import Config, Now, Reader, Tx
from service.api.once import SHOWN_ONCE
from service.api.problems import document
from service.api.rollouts import CanRead, CanWrite
from service.api.strict import for_people
from service.core import webhooks
from service.core.bodies import EventName, Label, NewWebhook
from service.core.errors import Forbidden, TooManyRequests
from service.core.webhooks import Delivery, Sender
from service.db.pipelines import Webhook
from service.settings import Settings

logger = logging.getLogger(__name__)
router = for_people("webhooks")
SHOWN = "id url events state attempts next_at failing_since last_error created_by created_at"
CALL_S_MAX = 10.0  # for one call, whatever drips
PAUSE_S = 1
STREAM_LOOKS = 3600  # a stream ends after about an hour
RATHER = ["rollout.*"]
UNCACHED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx must not wait


def sender_of(settings: Settings) -> Sender | None:
    """Return what the settings allow; None if they name no address or no key."""
    if not settings.webhooks_to or settings.webhooks_key is None:
        return None
    return Sender(settings.webhooks_key.get_secret_value().encode(), settings.webhooks_to)


@router.post("/webhooks", status_code=201, openapi_extra=SHOWN_ONCE)
def create_webhook(
    caller: CanWrite, body: NewWebhook, session: Tx, now: Now, settings: Config
) -> dict[str, Any]:
    """Add an address that is told of events from now on; its secret is shown once."""
    sender = sender_of(settings)
    if sender is None:
        raise Forbidden("this server calls nobody: set FLEETDIFF_WEBHOOKS_TO and _WEBHOOKS_KEY")
    row, secret = webhooks.create(session, sender, body.url, body.events, caller.name, now)
    return {"secret": secret} | row.shown(SHOWN)


@router.get("/webhooks")
def list_webhooks(_caller: CanRead, session: Reader) -> dict[str, Any]:
    """List the webhooks, and how the last call of each went."""
    rows = session.scalars(select(Webhook).order_by(Webhook.created_at, Webhook.id))
    return {"items": [row.shown(SHOWN) for row in rows]}


@router.delete("/webhooks/{webhook_id}", status_code=204, responses=document(404))
def delete_webhook(_caller: CanWrite, webhook_id: Label, session: Tx, now: Now) -> None:
    """Tell an address nothing more."""
    webhooks.delete(session, webhook_id, now)


@router.post("/webhooks/{webhook_id}/enable", responses=document(404))
def enable_webhook(_caller: CanWrite, webhook_id: Label, session: Tx, now: Now) -> dict[str, Any]:
    """Try again at once, from where it stopped."""
    return webhooks.enable(session, webhook_id, now).shown(SHOWN)


@router.post("/webhooks/{webhook_id}/test", responses=document(404))
def test_webhook(_caller: CanWrite, webhook_id: Label, session: Tx, now: Now) -> dict[str, Any]:
    """Let an address be told `webhook.test`."""
    return webhooks.test(session, webhook_id, now).shown(SHOWN)


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Events, as they come"}},
)
async def stream_events(
    request: Request,
    _caller: CanRead,
    events: Annotated[list[EventName], Query(max_length=32)] = RATHER,
    last_event_id: Annotated[int | None, Header(ge=0, le=1 << 53)] = None,
) -> StreamingResponse:
    """Tell what happens as it happens: server-sent events, as `type` and `data` of a webhook.

    A stream ends after an hour; with the last `id` as `Last-Event-ID`, which browsers send by
    themselves, the next one goes on where it stopped. Asynchronous, like the wait for a rollout.
    """
    database, places = request.app.state.database, request.app.state.streams
    if places.locked():
        raise TooManyRequests("too many streams are open; come back later", retry_after_s=PAUSE_S)

    def look(seq: int | None) -> tuple[int, list[dict[str, Any]]]:
        with database.reader() as session:
            return webhooks.told_after(session, seq, events)

    async def told() -> AsyncIterator[str]:
        seq = last_event_id
        async with places:
            for _ in range(STREAM_LOOKS):
                seq, found = await run_in_threadpool(look, seq)
                for one in found:
                    name, data = one["type"], json.dumps(one)
                    yield f"id: {one['data']['seq']}\nevent: {name}\ndata: {data}\n\n"
                if not found:
                    yield ":\n\n"  # whoever left is noticed
                    await asyncio.sleep(PAUSE_S)

    return StreamingResponse(told(), media_type="text/event-stream", headers=UNCACHED)


async def call_for_ever(app: FastAPI, sender: Sender) -> None:
    """Tell webhooks what happens until canceled; what was under way is told again later."""
    async with httpx2.AsyncClient(follow_redirects=False, trust_env=False) as client:
        while True:
            try:
                told = await call_once(app, sender, client)
            except Exception:
                logger.exception("webhooks failed")
                told = 0
            if not told:
                await asyncio.sleep(PAUSE_S)


async def call_once(app: FastAPI, sender: Sender, client: httpx2.AsyncClient) -> int:
    """Make every call that is due, at once; returns how many arrived."""
    database, clock = app.state.database, app.state.clock

    def claim() -> list[Delivery]:
        with database.writer() as session:
            return webhooks.claim(session, sender, clock())

    def settle(delivery: Delivery, error: str, status: int) -> None:
        with database.writer() as session:
            webhooks.settle(session, delivery, error, clock(), status)

    async def call(delivery: Delivery) -> bool:
        error, status = await _call(client, sender, delivery)
        if error:
            logger.info("webhook failed", extra={"webhook": delivery.webhook, "why": error})
        await run_in_threadpool(settle, delivery, error, status)
        return not error

    due = await run_in_threadpool(claim)
    return sum(await asyncio.gather(*(call(delivery) for delivery in due)))


async def _call(client: httpx2.AsyncClient, sender: Sender, told: Delivery) -> tuple[str, int]:
    """Return why a call failed, "" if it did not, and its status, 0 if there was none."""
    try:
        sender.check(told.url)  # the settings may have changed since
        async with asyncio.timeout(CALL_S_MAX):
            asked = client.stream("POST", told.url, headers=told.headers, content=told.body)
            async with asked as answer:
                status = answer.status_code
                return "" if 200 <= status < 300 else f"it answered {status}", status
    except TimeoutError:
        return f"it did not answer within {CALL_S_MAX:.0f} s", 0
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"{type(error).__name__}: {error}", 0
    except Forbidden as error:
        return error.detail, 0
