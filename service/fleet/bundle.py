"""What a changed poll carries: signed metadata, a signed order, and the plan to follow it.

Everything in one body, so that a device needs no further request to decide. Only the metadata
and the order are believed; the plan merely says where the bytes are.
"""

import hashlib
import json

from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from service.db import documents
from service.db.tables import MetadataFile
from service.fleet.holds import Hold
from service.fleet.offers import Answer, plan_of
from service.publishing.catalog import listed
from trust.roles import family_role


def bundle_of(
    session: Session, answer: Answer, root: int, timestamp: int, canary_timeout_s: int
) -> bytes:
    """Return the body of a changed poll, JSON.

    Args:
        session: to read from.
        answer: what the device is told.
        root: the version of the root it trusts.
        timestamp: the version of the timestamp it has verified, 0 if none; what belongs to that
            version is not sent again.
        canary_timeout_s: how long the device may listen.
    """
    newest, model = answer.ground.timestamp, answer.row.model

    def written() -> str:
        return json.dumps(_metadata(session, model, newest, root, timestamp) if newest else {})

    metadata = answer.ground.once(("metadata", root, timestamp), written)
    hold = hold_of(answer)
    order = plan = None
    if hold is None:
        assert answer.row.order_body is not None
        order = json.loads(answer.row.order_body)
        plan = plan_of(session, answer) | {"gate": {"timeout_s": canary_timeout_s}}
    rest = json.dumps({"order": order, "hold": hold, "plan": plan})
    return f'{{"metadata": {metadata}, {rest[1:]}'.encode()


def hold_of(answer: Answer) -> Hold | None:
    """Return why a device gets no order, as the poll tells it."""
    return Hold.NOTHING_PUBLISHED if answer.ground.timestamp is None else answer.hold


def root_digest(session: Session) -> str:
    """Return the digest of the first root, which a new device may compare with its own."""
    row = session.get(MetadataFile, ("root", 1))
    return hashlib.sha256(row.body).hexdigest() if row else ""


def _metadata(
    session: Session, model: str, newest: MetadataFile, root: int, timestamp: int
) -> dict[str, str]:
    """Return the files of the current snapshot that this device lacks, as text."""
    files = {f"{row.version}.root.json": row for row in documents.roots_after(session, root)}
    if newest.version != timestamp:
        files["timestamp.json"] = newest
        current = _listed(session, newest.version)
        known = _listed(session, timestamp)
        # The snapshot decides which version belongs to it, not what was uploaded since.
        for role in ("snapshot", "targets", family_role(model)):
            if role in current and current[role] != known.get(role):
                row = session.get_one(MetadataFile, (role, current[role]))
                files[f"{row.version}.{role}.json"] = row
    return {name: row.body.decode() for name, row in files.items()}


def _listed(session: Session, timestamp: int) -> dict[str, int]:
    """Return role -> version of everything that a timestamp vouches for."""
    row = session.get(MetadataFile, ("timestamp", timestamp))
    if row is None:
        return {}
    version = Metadata[Timestamp].from_bytes(row.body).signed.snapshot_meta.version
    snapshot = session.get_one(MetadataFile, ("snapshot", version))
    return listed(Metadata[Snapshot].from_bytes(snapshot.body).signed) | {"snapshot": version}
