"""Everything signed, verified again from the pinned root: the publisher believes no row.

Whoever can write to the database can add, alter and remove rows, but cannot sign. So of each
document the newest version counts that the keys above it signed, and none older than one that
was vouched for before; of what is left out it is said why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy.orm import Session
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from service.db import documents
from service.db.tables import MetadataFile
from service.signing.record import Record
from trust.accept import accept_family, check_signed, read_metadata
from trust.errors import Untrusted, require
from trust.roles import Family

TRIED_MAX = 8  # versions of a document that are looked at, however many were forged
REMEMBERED_MAX = 128  # documents, so that a round that finds nothing new verifies nothing again
REFUSALS = (Untrusted, RepositoryError, ValueError)


@dataclass
class Verified:
    """What may be vouched for.

    Attributes:
        root: the newest root's bytes.
        roots: the chain of roots, from the pinned one to the newest.
        snapshot: the newest one that a root of the chain asked for, or None.
        timestamp: likewise.
        targets: the newest top-level targets, None if there is no valid one.
        bodies: file name -> bytes of `targets.json` and of each family's file.
        families: model -> what its family says.
        refused: role -> why its newest version, or any version, is left out.
    """

    root: bytes
    roots: list[Root]
    snapshot: Snapshot | None = None
    timestamp: Timestamp | None = None
    targets: Targets | None = None
    bodies: dict[str, bytes] = field(default_factory=dict)
    families: dict[str, Family] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def listed(self) -> dict[str, MetaFile]:
        """What the newest snapshot says of each file."""
        return self.snapshot.meta if self.snapshot else {}


def verify_all(session: Session, pinned: bytes, record: Record) -> Verified:
    """Verify everything that is stored.

    Raises:
        Untrusted: the pinned root is not signed by its own keys.
    """
    found = Verified(pinned, [_signed("root", pinned, pinned).signed])
    _follow_roots(session, found)
    found.snapshot = _newest_own(session, found, "snapshot", record)
    found.timestamp = _newest_own(session, found, "timestamp", record)
    behind = found.roots[-1].version < record.highest("root")
    if behind:
        found.refused["root"] = f"root {record.highest('root')} was followed, and is gone"
        return found
    found.targets = _newest(session, found, "targets", found.root, record)
    delegations = found.targets.delegations if found.targets else None
    for role in (delegations.roles if delegations else None) or {}:
        if role.startswith("family-"):
            _newest(session, found, role, found.bodies["targets.json"], record)
    return found


def signed_by(roots: Sequence[Root], row: MetadataFile) -> Metadata[Any] | None:
    """Return a snapshot or timestamp if one of these roots asks for the key that signed it."""
    for root in roots:
        try:
            document: Metadata[Any] = Metadata.from_bytes(row.body)
            check_signed(row.role, root, document)
            _check_named(row, document)
            return document
        except REFUSALS:
            continue
    return None


def _follow_roots(session: Session, found: Verified) -> None:
    for row in documents.roots_after(session, found.roots[-1].version):
        before = found.roots[-1].version
        try:
            _signed("root", row.body, found.root)
            document = _signed("root", row.body, row.body)
            _check_named(row, document)
            require(row.version == before + 1, "E_ROLLBACK_META", f"a root follows {before}")
        except REFUSALS as error:
            found.refused["root"] = str(error)
            return
        found.root = row.body
        found.roots.append(document.signed)


def _newest_own(session: Session, found: Verified, role: str, record: Record) -> Any:
    """Return the newest snapshot or timestamp that is ours.

    What a replaced key signed counts up to the last number that is on record: it may be replaced
    because it was stolen.
    """
    known = record.highest(role)
    for row in documents.newest_first(session, role, TRIED_MAX):
        old = found.roots[-2::-1] if row.version <= known or not known else []
        document = signed_by([found.roots[-1], *old], row)
        if document is not None:
            return document.signed
        found.refused[role] = f"{role} {row.version} is not one that this publisher signed"
    return None


def _newest(
    session: Session, found: Verified, role: str, delegator: bytes, record: Record
) -> Targets | None:
    """Return the newest valid version of `targets` or a family, and keep what it says."""
    for row in documents.newest_first(session, role, TRIED_MAX):
        try:
            document = _signed(role, row.body, delegator)
            _check_named(row, document)
            _check_not_older(found, role, row, record)
            if role != "targets":
                family = _family(role.removeprefix("family-"), row.body)
                found.families[family.model] = family
        except REFUSALS as error:
            found.refused.setdefault(role, str(error))
            continue
        found.bodies[f"{role}.json"] = row.body
        targets: Targets = document.signed
        return targets
    if floor := _floor(found, role, record):
        found.refused.setdefault(role, f"{role} {floor} was published, and is gone")
    return None


@lru_cache(maxsize=REMEMBERED_MAX)
def _signed(role: str, body: bytes, delegator: bytes) -> Metadata[Any]:
    """Return a document that this delegator's keys signed; a round is made every second."""
    document = read_metadata(role, body)
    check_signed(role, Metadata[Any].from_bytes(delegator).signed, document)
    return document


@lru_cache(maxsize=REMEMBERED_MAX)
def _family(model: str, body: bytes) -> Family:
    return accept_family(model, Metadata[Targets].from_bytes(body).signed, None)


def _check_named(row: MetadataFile, document: Metadata[Any]) -> None:
    """A signed body under another role or number is a row that somebody made up."""
    kind = row.role if row.role in ("root", "snapshot", "timestamp") else "targets"
    found = (document.signed.type, document.signed.version)
    require(found == (kind, row.version), "E_MIX", f"{row.role} {row.version} holds {found}")


def _check_not_older(found: Verified, role: str, row: MetadataFile, record: Record) -> None:
    floor, listed = _floor(found, role, record), found.listed.get(f"{role}.json")
    newest = f"{role} is at {row.version}, but {floor} was published"
    require(row.version >= floor, "E_ROLLBACK_META", newest)
    if listed is not None and listed.version == row.version:
        listed.verify_length_and_hashes(row.body)


def _floor(found: Verified, role: str, record: Record) -> int:
    """Return the version of a document that was vouched for before."""
    listed = found.listed.get(f"{role}.json")
    return max(record.highest(role), listed.version if listed else 0)
