"""What a changed poll carries: signed metadata, a signed order, and the plan to follow it.

Everything in one body, so that a device needs no further request to decide. Only the metadata
and the order are believed; the plan merely says where the bytes are.
"""

import hashlib
import json
from typing import Any

from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Snapshot

from service.core.offers import Answer, Hold, plan_of
from service.db import queries
from service.db.tables import MetadataFile
from trust.roles import family_role


def bundle_of(session: Session, answer: Answer, root: int, canary_timeout_s: int) -> dict[str, Any]:
    """Return the body of a changed poll for a device that trusts this version of the root."""
    metadata = _metadata(session, answer.row.model, root)
    hold = answer.hold
    if not metadata:
        hold = Hold.NOTHING_PUBLISHED
    order = plan = None
    if hold is None:
        assert answer.row.order_body is not None
        order = json.loads(answer.row.order_body)
        plan = plan_of(session, answer) | {"gate": {"timeout_s": canary_timeout_s}}
    return {"metadata": metadata, "order": order, "hold": hold, "plan": plan}


def fleet_version(session: Session) -> str:
    """Return what changes whenever signed metadata does."""
    row = queries.newest_metadata(session, "timestamp")
    return str(row.version) if row else "0"


def root_digest(session: Session) -> str:
    """Return the digest of the first root, which a new device may compare with its own."""
    row = session.get(MetadataFile, ("root", 1))
    return hashlib.sha256(row.body).hexdigest() if row else ""


def _metadata(session: Session, model: str, root: int) -> dict[str, str]:
    """Return the files of the current snapshot that this model needs, as text."""
    timestamp = queries.newest_metadata(session, "timestamp")
    snapshot = queries.newest_metadata(session, "snapshot")
    if timestamp is None or snapshot is None:
        return {}
    files = {f"{row.version}.root.json": row for row in queries.roots_after(session, root)}
    files |= {"timestamp.json": timestamp, f"{snapshot.version}.snapshot.json": snapshot}
    listed = Metadata[Snapshot].from_bytes(snapshot.body).signed.meta
    for role in ("targets", family_role(model)):
        # The snapshot decides which version belongs to it, not what was uploaded since.
        if f"{role}.json" in listed:
            version = listed[f"{role}.json"].version
            files[f"{version}.{role}.json"] = session.get_one(MetadataFile, (role, version))
    return {name: row.body.decode() for name, row in files.items()}
