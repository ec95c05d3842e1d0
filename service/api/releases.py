"""Release managers: models, artifacts, signed metadata, and what follows from it."""

import re
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import anyio
from fastapi import Depends, HTTPException, Path, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from service.api.deps import Config, Data, Now, Reader, Store, Tx, Wake, operator
from service.api.problems import document
from service.api.strict import for_people
from service.blobs import Blobs, WrongDigest, WrongLength
from service.core import catalog, drafts, errors
from service.core.bodies import Name, NewModel, NewSignature, Sha256
from service.core.health import model_view, release_views
from service.core.patches import check_patches, unchecked
from service.db import queries
from service.db.tables import ApiToken
from service.settings import Settings

router = for_people("releases")
CanRead = Annotated[ApiToken, Depends(operator("releases:read"))]
CanWrite = Annotated[ApiToken, Depends(operator("releases:write"))]
OfflineRole = Annotated[str, Path(pattern=r"^(root|targets|family-[a-z0-9][a-z0-9._-]{0,63})$")]
Filename = Annotated[str, Path(max_length=120)]
ONE_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))\Z", re.ASCII)
RAW_JSON = {"requestBody": {"required": True, "content": {"application/json": {}}}}
BLOB = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
ARTIFACT: dict[int | str, dict[str, Any]] = {
    **document(404, 416, 422),
    200: {"description": "The blob", "content": BLOB},
    206: {"description": "A range", "content": BLOB},
    304: {"description": "Nothing changed"},
    307: {"description": "Elsewhere"},
}
IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}


@router.post("/models", status_code=201, responses=document(409, 422))
def create_model(_caller: CanWrite, body: NewModel, session: Tx, now: Now) -> dict[str, Any]:
    """Add a line of speech models."""
    return model_view(session, catalog.create_model(session, body.name, now))


@router.get("/models")
def list_models(_caller: CanRead, session: Reader) -> dict[str, Any]:
    """List the models."""
    names = queries.model_names(session)
    return {"items": [model_view(session, catalog.model_named(session, name)) for name in names]}


@router.get("/models/{model}", responses=document(404, 422))
def get_model(_caller: CanRead, model: Name, session: Reader) -> dict[str, Any]:
    """Show one model."""
    return model_view(session, catalog.model_named(session, model))


@router.get("/models/{model}/releases", responses=document(404, 422))
def list_releases(_caller: CanRead, model: Name, session: Reader) -> dict[str, Any]:
    """List a model's releases, the oldest first, with the devices that run each."""
    catalog.model_named(session, model)
    fields = "name seq status sha256 bytes published_at rollback_from"
    return {"items": release_views(session, model, fields)}


@router.get("/models/{model}/patches", responses=document(404, 422))
def list_patches(_caller: CanRead, model: Name, session: Reader) -> dict[str, Any]:
    """List a model's patches: edges between releases."""
    catalog.model_named(session, model)
    return {
        "items": [
            {"from": patch.source.name, "to": patch.target.name} | patch.shown("kind sha256 bytes")
            for patch in queries.patches_of(session, model)
        ]
    }


@router.get("/metadata")
def list_metadata(_caller: CanRead, session: Reader) -> dict[str, int]:
    """Return the newest accepted version of every signed document."""
    return queries.newest_versions(session)


@router.get("/metadata/{filename}", responses=document(404, 422))
def get_metadata(_caller: CanRead, filename: Filename, session: Reader) -> Response:
    """Return a signed document, byte for byte."""
    return Response(catalog.metadata_file(session, filename), media_type="application/json")


async def raw_body(request: Request) -> bytes:
    """Return the body as it came; its size is limited by the app."""
    return await request.body()


RawBody = Annotated[bytes, Depends(raw_body)]


async def checked_patches(
    _caller: CanWrite, role: OfflineRole, body: RawBody, request: Request, now: Now
) -> None:
    """Have the patches of a family applied that never were, before there is a transaction.

    Callers queue in the event loop: a patch takes its time, and a thread that waits is one less.
    """

    def check() -> None:
        with state.database.reader() as session:
            family = catalog.review_metadata(session, state.blobs, role, body, now).family
            patches = unchecked(session, family) if family else []
        if family and patches:
            check_patches(state.database, state.blobs, family, patches, now)

    state = request.app.state
    async with state.checking:
        await run_in_threadpool(check)


Checked = Annotated[None, Depends(checked_patches)]


@router.put(
    "/metadata/{role}",
    status_code=201,
    responses=document(408, 409, 413, 422),
    openapi_extra=RAW_JSON,
)
def put_metadata(
    _caller: CanWrite,
    role: OfflineRole,
    body: RawBody,
    _patches: Checked,
    session: Tx,
    store: Store,
    now: Now,
    wake: Wake,
) -> dict[str, Any]:
    """Accept the next version of a document that was signed offline, and publish what it says."""
    row = catalog.accept_metadata(session, store, role, body, now)
    wake.set()
    return {"role": row.role, "version": row.version}


@router.get("/drafts")
def list_drafts(_caller: CanRead, session: Reader, store: Store, now: Now) -> dict[str, Any]:
    """List the documents that wait for signatures: who signed each, how many are missing."""
    return {"items": drafts.views(session, store, now)}


@router.get("/drafts/{role}", responses=document(404, 422))
def get_draft(_caller: CanRead, role: OfflineRole, session: Reader) -> Response:
    """Return a draft with its signatures so far, byte for byte."""
    return Response(drafts.draft_of(session, role).body, media_type="application/json")


@router.put(
    "/drafts/{role}",
    status_code=201,
    responses=document(408, 409, 413, 422),
    openapi_extra=RAW_JSON,
)
def put_draft(
    caller: CanWrite,
    role: OfflineRole,
    body: RawBody,
    _patches: Checked,
    session: Tx,
    store: Store,
    now: Now,
) -> dict[str, Any]:
    """Stage the unsigned next version of a document, for several people to sign."""
    return drafts.stage(session, store, role, body, caller.name, now)


@router.delete("/drafts/{role}", status_code=204, responses=document(404, 422))
def delete_draft(_caller: CanWrite, role: OfflineRole, session: Tx, now: Now) -> None:
    """Drop a draft; its signatures are gone with it."""
    drafts.drop(session, role, now)


@router.put("/drafts/{role}/signatures/{keyid}", responses=document(404, 409, 422))
def put_signature(
    _caller: CanWrite,
    role: OfflineRole,
    keyid: Sha256,
    body: NewSignature,
    session: Tx,
    store: Store,
    now: Now,
    wake: Wake,
) -> dict[str, Any]:
    """Sign a draft; with the last signature that it needs it is published."""
    shown = drafts.add_signature(session, store, role, keyid, body, now)
    wake.set()
    return shown


@router.put(
    "/artifacts/{sha256}",
    status_code=201,
    responses={**document(408, 411, 413, 422), 200: {"description": "It was there already"}},
    openapi_extra={"requestBody": {"required": True, "content": BLOB}},
)
async def put_artifact(
    _caller: CanWrite,
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
        if store.size(sha256) != size:
            with database.reader() as session:
                catalog.check_room(session, size, config.store_bytes_max)
            store.put(_from_thread(request.stream()), sha256, size)
        with database.writer() as session:
            return catalog.record_artifact(session, sha256, size, now)

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


@router.get("/artifacts/{sha256}", responses=ARTIFACT, response_class=Response)
@router.head("/artifacts/{sha256}", include_in_schema=False)
def get_artifact(
    _caller: CanRead, sha256: Sha256, request: Request, store: Store, config: Config
) -> Response:
    """Return a blob, or redirect to where it lies."""
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
