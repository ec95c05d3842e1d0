"""Release managers: models, signed documents and their drafts, and what follows from them."""

import asyncio
import contextlib
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from service.api.deps import Now, Reader, Store, Tx, Wake, operator
from service.api.paging import LIMIT, Limit, page
from service.api.problems import document
from service.api.strict import for_people
from service.core.bodies import Name, NewModel, NewSignature, Sha256
from service.db import documents, queries
from service.db.tables import ApiToken
from service.engine.health import model_view, release_views
from service.fleet.plans import patch_view
from service.publishing import catalog, drafts
from service.publishing.patches import check_patches, unchecked
from trust.roles import Family, PatchTarget

router = for_people("releases")
CanRead = Annotated[ApiToken, Depends(operator("releases:read"))]
CanWrite = Annotated[ApiToken, Depends(operator("releases:write"))]
OfflineRole = Annotated[str, Path(pattern=r"^(root|targets|family-[a-z0-9][a-z0-9._-]{0,63})$")]
Filename = Annotated[str, Path(max_length=120)]
UPLOAD: dict[str, Any] = {  # of a document, whose signatures are on these very bytes
    "status_code": 201,
    "responses": document(408, 409, 413),
    "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {}}}},
}


@router.post("/models", status_code=201, responses=document(409))
def create_model(_caller: CanWrite, body: NewModel, session: Tx, now: Now) -> dict[str, Any]:
    """Add a line of speech models."""
    return model_view(session, catalog.create_model(session, body.name, now))


@router.get("/models")
def list_models(_caller: CanRead, session: Reader) -> dict[str, Any]:
    """List the models."""
    names = queries.model_names(session)
    return {"items": [model_view(session, catalog.model_named(session, name)) for name in names]}


@router.get("/models/{model}", responses=document(404))
def get_model(_caller: CanRead, model: Name, session: Reader) -> dict[str, Any]:
    """Show one model."""
    return model_view(session, catalog.model_named(session, model))


@router.get("/models/{model}/releases", responses=document(404))
def list_releases(
    _caller: CanRead,
    model: Name,
    session: Reader,
    cursor: Annotated[int, Query(ge=0, le=1 << 53)] = 0,
    limit: Limit = LIMIT,
) -> dict[str, Any]:
    """List a model's releases, the oldest first, with the devices that run each.

    Pass `next` as `cursor` for the next page.
    """
    catalog.model_named(session, model)
    fields = "name seq status sha256 bytes published_at rollback_from min_agent"
    later = [row for row in release_views(session, model, fields) if row["seq"] > cursor]
    return page(later[:limit], "seq", limit)


@router.get("/models/{model}/patches", responses=document(404))
def list_patches(
    _caller: CanRead, model: Name, session: Reader, cursor: Sha256 = "0" * 64, limit: Limit = LIMIT
) -> dict[str, Any]:
    """List a model's patches by digest: edges between releases, and how they do in the field.

    Pass `next` as `cursor` for the next page.
    """
    catalog.model_named(session, model)
    later = [patch for patch in queries.patches_of(session, model) if patch.sha256 > cursor]
    return page([patch_view(patch) for patch in later[:limit]], "sha256", limit)


@router.get("/metadata")
def list_metadata(_caller: CanRead, session: Reader) -> dict[str, int]:
    """Return the newest accepted version of every signed document."""
    return documents.newest_versions(session)


@router.get("/metadata/{filename}", responses=document(404))
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
    What is signed has a place that nothing else takes; who only stages has one place, not all.
    """

    def look() -> tuple[Family | None, list[PatchTarget]]:
        with state.database.reader() as session:
            reviewed = catalog.review_metadata(session, state.blobs, role, body, now)
            if not staged:
                catalog.check_signed(role, reviewed)
            return reviewed.family, unchecked(session, reviewed.family) if reviewed.family else []

    state, staged = request.app.state, request.url.path.startswith("/v1/drafts/")
    family, patches = await run_in_threadpool(look)
    if family is None or not patches:
        return
    turn = state.turns.setdefault(request.state.actor if staged else "", asyncio.Lock())
    places = state.checking if staged else contextlib.nullcontext()
    async with turn, places:
        await run_in_threadpool(check_patches, state.database, state.blobs, family, patches, now)


Checked = Annotated[None, Depends(checked_patches)]


@router.put("/metadata/{role}", **UPLOAD)
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
    return {
        "items": [drafts.view(session, store, row, now) for row in documents.all_drafts(session)]
    }


@router.get("/drafts/{role}", responses=document(404))
def get_draft(_caller: CanRead, role: OfflineRole, session: Reader) -> Response:
    """Return a draft with its signatures so far, byte for byte."""
    return Response(drafts.draft_of(session, role).body, media_type="application/json")


@router.put("/drafts/{role}", **UPLOAD)
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


@router.delete("/drafts/{role}", status_code=204, responses=document(404))
def delete_draft(_caller: CanWrite, role: OfflineRole, session: Tx, now: Now) -> None:
    """Drop a draft; its signatures are gone with it."""
    drafts.drop(session, role, now)


@router.put("/drafts/{role}/signatures/{keyid}", responses=document(404, 409))
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
