"""Operators: who am I, the devices, enrollment, the health of the fleet."""

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse

from service.api.deps import (
    Config,
    Data,
    Now,
    Reader,
    Reports,
    Sent,
    Store,
    Supposed,
    Tx,
    bearer,
    operator,
)
from service.api.once import SHOWN_ONCE
from service.api.paging import LIMIT, Limit, page
from service.api.problems import document
from service.api.strict import for_people
from service.core.bodies import DeviceChange, Label, Name, NewEnrollmentToken
from service.db import documents, queries
from service.db.tables import ApiToken
from service.engine import explain, rollouts
from service.engine.health import device_view, fleet_view
from service.fleet import registry
from service.publishing import catalog
from service.publishing.freshness import metrics, publisher_view

router = for_people("operations")
public = APIRouter(tags=["operations"])
Anyone = Annotated[ApiToken, Depends(operator(None))]
CanReadDevices = Annotated[ApiToken, Depends(operator("devices:read"))]
CanWriteDevices = Annotated[ApiToken, Depends(operator("devices:write"))]
CanEnroll = Annotated[ApiToken, Depends(operator("enroll:write"))]
SCOPE = "telemetry:read"
CanReadHealth = Annotated[ApiToken, Depends(operator(SCOPE))]
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
EVENTS_SHOWN_MAX = 50


def ready(request: Request, store: Store) -> None:
    """Check the store, one caller at a time; who comes meanwhile is told what was found last.

    It may be slow, and whoever asks needs no credential.
    """
    state = request.app.state
    if state.asking_store.acquire(blocking=False):
        try:
            store.ready()
            state.store_trouble = ""
        except OSError as error:
            state.store_trouble = str(error)
        finally:
            state.asking_store.release()
    if state.store_trouble:
        raise OSError(state.store_trouble)


@public.get("/healthz", dependencies=[Depends(ready)])
def healthz(session: Reader) -> dict[str, str]:
    """Answer if the database and the artifact store do; needs no credential, tells nothing."""
    documents.newest_versions(session)
    return {"status": "ok"}


@public.get("/readyz", dependencies=[Depends(ready)])
def readyz(session: Reader, now: Now) -> dict[str, Any]:
    """Answer if the server can serve, and whether anything is degraded, in words without names."""
    reasons = {reason["reason"] for reason in publisher_view(session, now)["reasons"]}
    return {"status": "degraded" if reasons else "ready", "reasons": sorted(reasons)}


async def watcher(request: Request, database: Data, config: Config, now: Now, sent: Sent) -> None:
    """Admit whoever may read the metrics."""
    if config.metrics == "token":
        await operator(SCOPE)(request, database, now, await bearer(sent))


watcher.scope = SCOPE  # type: ignore[attr-defined]  # the test of routes reads it


@public.get(
    "/metrics",
    dependencies=[Depends(watcher)],
    response_class=PlainTextResponse,
    responses=document(401, 403),
)
def get_metrics(session: Reader, now: Now, reports: Reports) -> Response:
    """Show Prometheus when documents expire, how the publisher is, and what reports came."""
    return Response(metrics(session, now, reports), media_type=PROMETHEUS)


@router.get("/whoami")
def whoami(caller: Anyone) -> dict[str, Any]:
    """Show the token that was sent: its name, its scopes, its end."""
    return caller.shown("name scopes expires_at")


@router.get("/health")
def get_health(_caller: CanReadHealth, session: Reader, now: Now) -> dict[str, Any]:
    """Show the fleet by release, the latest rollouts, and when signed metadata runs out."""
    return fleet_view(session, now)


@router.post(
    "/enrollment-tokens", status_code=201, responses=document(404), openapi_extra=SHOWN_ONCE
)
def create_enrollment_token(
    _caller: CanEnroll, body: NewEnrollmentToken, session: Tx, now: Now
) -> dict[str, Any]:
    """Make a token with which devices enroll; it is shown once."""
    lifetime = timedelta(seconds=body.ttl_s)
    row, token = registry.invite(session, body.model, body.uses, lifetime, body.cohort, now)
    return {"token": token, "id": row.id, "uses": row.uses_left, "expires_at": row.expires_at}


@router.get("/devices", responses=document(404))
def list_devices(
    _caller: CanReadDevices,
    session: Reader,
    model: Name | None = None,
    cohort: Name | None = None,
    cursor: Label | None = None,
    limit: Limit = LIMIT,
) -> dict[str, Any]:
    """List devices by id; pass `next` as `cursor` for the next page."""
    chosen = catalog.cohort_named(session, cohort) if cohort else None
    rows = queries.devices_page(session, model, chosen, cursor or "", limit)
    items = [device_view(row) for row in rows]
    return page(items, "id", limit)


@router.get("/devices/{device_id}", responses=document(404))
def get_device(_caller: CanReadDevices, device_id: Label, session: Reader) -> dict[str, Any]:
    """Show a device with its deployments and its last events."""
    row = registry.device_named(session, device_id)
    deployments = queries.deployments_of(session, device_id)
    events = queries.last_events(session, device_id, EVENTS_SHOWN_MAX)
    return device_view(row) | {
        "deployments": [
            d.shown("id rollout_id direction state reason bytes_sent updated_at")
            for d in deployments
        ],
        "events": [e.shown("seq kind deployment_id reason detail at received_at") for e in events],
    }


@router.get("/devices/{device_id}/explain", responses=document(404))
def explain_device(
    _caller: CanReadDevices,
    device_id: Label,
    session: Supposed,
    config: Config,
    now: Now,
    rollout: Label | None = None,
) -> dict[str, Any]:
    """Show every rule behind what a device would be told now, and the first that stops it.

    The rules are applied as the device's poll applies them; nothing changes by it.
    """
    row = registry.device_named(session, device_id)
    chosen = rollouts.rollout_named(session, rollout) if rollout else None
    timeout = timedelta(seconds=config.deployment_timeout_s)
    return explain.device(session, row, chosen, timeout, now)


@router.post("/devices/{device_id}/retry", responses=document(404))
def retry_device(
    _caller: CanWriteDevices, device_id: Label, session: Tx, now: Now
) -> dict[str, int]:
    """Let a device try again now what failed on it, in each rollout that is live."""
    row = registry.device_named(session, device_id)
    return {"retried": registry.retry_device(session, row, now)}


@router.patch("/devices/{device_id}", responses=document(404, 409))
def change_device(
    _caller: CanWriteDevices, device_id: Label, body: DeviceChange, session: Tx, now: Now
) -> dict[str, Any]:
    """Tag a device, quarantine, revoke or readmit it."""
    row = registry.device_named(session, device_id)
    if body.tags is not None:
        registry.tag_device(session, row, body.tags, now)
    if body.status is not None:
        registry.set_device_status(session, row, body.status, now)
    return device_view(row)
