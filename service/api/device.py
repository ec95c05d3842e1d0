"""Device agents: enroll, poll, fetch, report. The credential says which device calls."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from service.api.answers import Question, reply_to
from service.api.artifacts import ARTIFACT, send_artifact
from service.api.deps import Caller, Config, Fetcher, Now, Reports, SignedOrNot, Store, Tx, Wake
from service.api.origin import certificate_of, limit_enrolls
from service.api.problems import document
from service.api.strict import StrictRoute
from service.core.bodies import Sha256
from service.core.device_bodies import Capacity, DeviceEvents, Enrollment, NewCanaryReport, NewKey
from service.core.errors import Unauthorized
from service.fleet import devices, reports
from service.fleet.bundle import root_digest

router = APIRouter(
    prefix="/device/v1", route_class=StrictRoute, tags=["device"], responses=document(401, 422, 429)
)
UNCHANGED = {"description": "Nothing changed; asked again in the same words, it costs no database"}


@router.post(
    "/enroll",
    status_code=201,
    responses=document(408, 409, 413),
    dependencies=[Depends(limit_enrolls)],
)
def enroll(
    request: Request, body: Enrollment, signed: SignedOrNot, session: Tx, now: Now
) -> dict[str, str]:
    """Admit a device; its credential is shown once, unless it signs: then it has none."""
    if body.public_key is not None:
        key = devices.key_sha256(body.public_key)
        if signed is None or signed.device_id or signed.sha256 != key:
            raise Unauthorized("sign this request with the key, to prove that you have it")
    described = body.model_dump(exclude={"enrollment_token", "public_key"})
    described["certificate_sha256"] = certificate_of(request)
    proof = signed if body.public_key else None
    device, credential = devices.enroll(
        session, body.enrollment_token, now=now, signed=proof, **described
    )
    root = root_digest(session)
    return {"device_id": device.id, "credential": credential, "root_sha256": root}


@router.get("/poll", responses={**document(503), 304: UNCHANGED})
def poll(
    request: Request,
    device: Caller,
    session: Tx,
    now: Now,
    s: Annotated[Sha256 | None, Query(description="digest of the active model file")] = None,
    root: Annotated[int, Query(ge=0, le=1 << 31, description="root version trusted")] = 0,
    t: Annotated[int, Query(ge=0, le=1 << 31, description="timestamp version verified")] = 0,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Answer what the device should run: an order and how to get there, or why to hold."""
    asked = Question(s or "", root, t, if_none_match)
    reply = reply_to(request.app.state, session, device, asked, now)
    request.state.lasting = reply.lasting
    media = "application/json" if reply.body else None
    return Response(reply.body, reply.status, reply.headers, media)


@router.post("/key", status_code=202, responses=document(408, 409, 413))
def post_key(device: Caller, body: NewKey, session: Tx) -> dict[str, str]:
    """Take the next key of a device that signs; both are good until this one is first used."""
    devices.take_key(device, body.public_key)
    return {"device_id": device.id}


@router.get("/artifacts/{sha256}", responses=ARTIFACT, response_class=Response)
@router.head("/artifacts/{sha256}", include_in_schema=False)
def get_artifact(
    sha256: Sha256, request: Request, store: Store, config: Config, _device: Fetcher
) -> Response:
    """Return a blob, with ranges, or redirect to a short-lived URL."""
    return send_artifact(sha256, request, store, config)


@router.post("/events", responses=document(408, 413))
def post_events(device: Caller, body: DeviceEvents, session: Tx, now: Now) -> dict[str, int]:
    """Store a batch of events; repeats are no-ops."""
    return {"acknowledged": reports.record_events(session, device, body.events, now)}


@router.post("/capacity", status_code=202, responses=document(408, 413))
def post_capacity(device: Caller, body: Capacity, session: Tx) -> dict[str, str]:
    """Store what the device has for an update; plans keep within it."""
    reports.record_capacity(session, device, body)
    return {"result": "stored"}


@router.post("/canary-reports", status_code=202, responses=document(408, 409, 413))
def post_canary_report(
    device: Caller, body: NewCanaryReport, session: Tx, now: Now, wake: Wake, tally: Reports
) -> dict[str, str]:
    """Store a canary report; the first valid pair of a device counts."""
    result = reports.record_pair(session, device, body, now)
    tally.add(result)
    wake.set()
    return {"result": result}
