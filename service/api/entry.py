"""Whoever lets people in, and auditors: API tokens, and what was done by whom."""

from datetime import timedelta
from typing import Annotated, Any

from fastapi import Depends, Query

from service.api.deps import Now, Reader, Tx, operator
from service.api.once import SHOWN_ONCE
from service.api.paging import LIMIT, Limit, page
from service.api.problems import document
from service.api.strict import for_people
from service.core import access, audit
from service.core.bodies import Label, NewToken
from service.db import queries
from service.db.tables import ApiToken, AuditHead

router = for_people("access")
CanAdmit = Annotated[ApiToken, Depends(operator("tokens:admin"))]
CanAudit = Annotated[ApiToken, Depends(operator("audit:read"))]
Seq = Annotated[int, Query(ge=0, le=1 << 53)]
SHOWN = "id name scopes networks created_at expires_at revoked_at last_used_at"


@router.post("/tokens", status_code=201, openapi_extra=SHOWN_ONCE)
def create_token(caller: CanAdmit, body: NewToken, session: Tx, now: Now) -> dict[str, Any]:
    """Make an API token with scopes that the caller has, too; it is shown once."""
    lifetime, where = timedelta(seconds=body.ttl_s), body.networks
    row, token = access.create_token(
        session, body.name, body.scopes, lifetime, now, networks=where, maker=caller
    )
    return {"token": token} | row.shown(SHOWN)


@router.get("/tokens")
def list_tokens(
    _caller: CanAdmit, session: Reader, cursor: Label | None = None, limit: Limit = LIMIT
) -> dict[str, Any]:
    """List the API tokens by id, and when each was used; pass `next` as `cursor`."""
    items = [row.shown(SHOWN) for row in queries.tokens_page(session, cursor or "", limit)]
    return page(items, "id", limit)


@router.post("/tokens/{token_id}/revoke", responses=document(404))
def revoke_token(_caller: CanAdmit, token_id: Label, session: Tx, now: Now) -> dict[str, Any]:
    """End a token now."""
    return access.revoke_token(session, token_id, now).shown(SHOWN)


@router.get("/audit")
def list_audit(
    _caller: CanAudit,
    session: Reader,
    cursor: Seq | None = None,
    limit: Limit = LIMIT,
    newest_first: bool = False,
) -> dict[str, Any]:
    """List the audit log, exactly as its digests are made; pass `next` as `cursor`.

    `head` is the last entry at the moment of asking: a chain that ends before it was cut off.
    """
    head = session.get_one(AuditHead, 1).shown("seq sha256")  # first: what follows is not older
    items = audit.page(session, cursor, limit, newest_first)
    return page(items, "seq", limit) | {"head": head}
