"""Blobs, named by what they hold: uploaded by release managers, fetched by them and by devices."""

import re
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import anyio
from fastapi import HTTPException, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from service.api.deps import Config, Data, Now, Reader, Store, Tx, Wake
from service.api.paging import LIMIT, Limit, page
from service.api.problems import document
from service.api.releases import CanRead, CanWrite
from service.api.strict import for_people
from service.blobs import Blobs, WrongDigest, WrongLength
from service.core import access, errors
from service.core.bodies import Sha256
from service.db.session import take_turns
from service.fleet import retention
from service.publishing import catalog, uploads
from service.settings import Settings

router = for_people("releases")
ONE_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))\Z", re.ASCII)
BLOB = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
ARTIFACT: dict[int | str, dict[str, Any]] = {
    **document(404, 416),
    200: {"description": "The blob", "content": BLOB},
    206: {"description": "A range", "content": BLOB},
    304: {"description": "Nothing changed"},
    307: {"description": "Elsewhere"},
}
IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}


@router.put(
    "/artifacts/{sha256}",
    status_code=201,
    responses={**document(408, 411, 413), 200: {"description": "It was there already"}},
    openapi_extra={"requestBody": {"required": True, "content": BLOB}},
)
async def put_artifact(
    caller: CanWrite,
    sha256: Sha256,
    request: Request,
    response: Response,
    store: Store,
    database: Data,
    config: Config,
    now: Now,
) -> dict[str, Any]:
    """Store a blob under its digest; the raw body is streamed, never held in memory.

    One of two asynchronous routes: a body arrives in its own time and must not hold a thread
    while it does nothing.
    """
    size = _declared_bytes(request, config)

    def keep() -> bool:
        if store.size(sha256) == size:
            with database.writer() as session:
                take_turns(session, "uploads")
                if store.size(sha256) == size:  # still: nobody deletes it out of turn
                    return catalog.record_artifact(session, sha256, size, now)
        with database.writer() as session:
            row = uploads.take_room(session, access.actor(caller), sha256, size, config, now)
        new = False
        try:
            store.put(_from_thread(request.stream()), sha256, size)
            with database.writer() as session:
                new = catalog.record_artifact(session, sha256, size, now)
        finally:
            if not new:
                with database.writer() as session:
                    uploads.give_back(session, row)
        return new

    try:
        async with request.app.state.uploads:  # each holds a thread until its body is whole
            new = await run_in_threadpool(keep)
    except WrongDigest as error:
        raise errors.DigestMismatch(str(error)) from error
    except WrongLength as error:
        raise errors.InvalidRequest(str(error)) from error
    except ClientDisconnect as error:
        raise errors.InvalidRequest("the body broke off") from error
    response.status_code = 201 if new else 200
    return {"sha256": sha256, "bytes": size}


@router.get("/artifacts")
def list_artifacts(
    _caller: CanRead,
    session: Reader,
    store: Store,
    config: Config,
    now: Now,
    cursor: Sha256 = "0" * 64,
    limit: Limit = LIMIT,
) -> dict[str, Any]:
    """List the artifacts by digest: what needs each, or since when nothing does and when it may go.

    Pass `next` as `cursor` for the next page.
    """
    grace = timedelta(seconds=config.artifact_grace_s)
    items = retention.page(session, store, cursor, limit, grace, now)
    return page(items, "sha256", limit)


@router.post("/artifacts/collect")
def collect_artifacts(
    _caller: CanWrite, session: Tx, store: Store, config: Config, now: Now, wake: Wake
) -> dict[str, dict[str, int]]:
    """Delete what nothing has needed for the time of grace; what nothing needs now waits for it.

    The bytes go soon after this is answered; an upload brings them back.
    """
    wake.set()
    return retention.collect(session, store, timedelta(seconds=config.artifact_grace_s), now)


@router.get("/artifacts/{sha256}", responses=ARTIFACT, response_class=Response)
@router.head("/artifacts/{sha256}", include_in_schema=False)
def get_artifact(
    _caller: CanRead,
    sha256: Sha256,
    request: Request,
    session: Reader,
    store: Store,
    config: Config,
) -> Response:
    """Return a blob, or redirect to where it lies."""
    retention.check_not_going(session, sha256)
    return send_artifact(sha256, request, store, config)


def send_artifact(sha256: str, request: Request, store: Blobs, config: Settings) -> Response:
    """Answer with a blob: from the local folder with ranges, else by a short-lived URL."""
    size = errors.found(store.size(sha256), f"artifact {sha256}")
    headers = IMMUTABLE | {"ETag": f'"{sha256}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    path = store.path(sha256)
    if path is not None:
        _check_range(request, size)
        return _ArtifactFile(path, headers=headers, media_type="application/octet-stream")
    if request.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(size)})
    # A secret is short-lived: three times what a slow link needs, a minute at least.
    needed_s = 3 * size // config.url_bytes_s_min
    url = store.url(sha256, max(60, min(needed_s, config.url_lifetime_s_max)))
    assert url is not None
    return RedirectResponse(url, 307, headers={"Cache-Control": "no-store"})


def _check_range(request: Request, size: int) -> None:
    """Forget a Range header that is not one plain range (RFC 9110, 14.2); refuse one past the end.

    Raises:
        HTTPException: 416, with the size.
    """
    match = ONE_RANGE.match(request.headers.get("range", ""))
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        headers = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
        request.scope["headers"] = headers
    elif int(match[1] or 0) >= size or (match[3] is not None and int(match[3]) == 0):
        past = {"Content-Range": f"bytes */{size}"}
        raise HTTPException(416, f"the artifact has {size} bytes", past)


class _ArtifactFile(FileResponse):
    chunk_size = 1 << 20  # 64 KiB chunks cost four times the processor


def _declared_bytes(request: Request, config: Settings) -> int:
    declared = request.headers.get("content-length", "")
    if not declared.isdecimal():
        raise errors.LengthRequired("declare Content-Length; chunked uploads are not taken")
    # Too many digits are not even read: Python refuses to.
    size = int(declared) if len(declared) < 20 else config.artifact_bytes_max + 1
    if size > config.artifact_bytes_max:
        raise errors.TooLarge(f"an artifact may have {config.artifact_bytes_max} bytes")
    if size == 0:
        raise errors.InvalidRequest("an artifact has at least one byte")
    return size


def _from_thread(stream: AsyncIterator[bytes]) -> Iterator[bytes]:
    """Yield in a thread what arrives in the event loop."""

    async def next_chunk() -> bytes:
        return await anext(stream, b"")

    while chunk := anyio.from_thread.run(next_chunk):
        yield chunk
