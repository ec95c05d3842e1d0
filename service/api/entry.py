"""Auditors: what was done, and by whom."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from service.api.deps import Reader, operator
from service.api.problems import document
from service.api.strict import StrictRoute
from service.core import audit
from service.db import queries
from service.db.tables import ApiToken, AuditHead

router = APIRouter(
    prefix="/v1", route_class=StrictRoute, tags=["access"], responses=document(401, 403, 422)
)
CanAudit = Annotated[ApiToken, Depends(operator("audit:read"))]
Seq = Annotated[int, Query(ge=0, le=1 << 53)]


@router.get("/audit")
def list_audit(
    _caller: CanAudit,
    session: Reader,
    cursor: Seq | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    newest_first: bool = False,
) -> dict[str, Any]:
    """List the audit log, exactly as its digests are made; pass `next` as `cursor`.

    `head` is the last entry at the moment of asking: a chain that ends before it was cut off.
    """
    head = session.get_one(AuditHead, 1).shown("seq sha256")  # first: what follows is not older
    items = audit.shown(queries.audit_page(session, cursor, limit, newest_first))
    return {"items": items, "head": head, "next": items[-1]["seq"] if len(items) == limit else None}
