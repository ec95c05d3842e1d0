"""What has been published: models, artifacts, signed metadata, and what follows from it.

The signed family *is* the act of publishing. Releases, patches and the canary set of this
database are derived from a family document in the transaction that accepts it, so there is no
second place that could say something else.
"""

import json
import re
import secrets
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Table
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Targets

from service.blobs import Blobs
from service.core.errors import (
    AlreadyExists,
    InvalidRequest,
    MissingArtifact,
    NotAcceptable,
    NotFound,
    NotTheNextVersion,
)
from service.db import queries
from service.db.session import insert_into
from service.db.tables import Artifact, CanarySet, MetadataFile, Model, Patch, Release
from trust.accept import accept_family, accept_root, accept_targets
from trust.errors import Untrusted
from trust.roles import NAME, SHA256, CanaryTarget, Family, PatchTarget, family_role, read_family
from trust.roles import Release as SignedRelease

CANARY_MANIFEST_BYTES_MAX = 1 << 20
WORDS_MAX = 1_000_000  # of one shard: what a report may count
_FILENAME = re.compile(r"(?:(\d{1,9})\.)?([a-z0-9][a-z0-9._-]{0,80})\.json\Z")


def create_model(session: Session, name: str, now: datetime) -> Model:
    """Add a line of speech models."""
    if not NAME.match(name):
        raise InvalidRequest(f"{name!r} is not a name: a-z, 0-9, dot, dash, underscore, up to 64")
    if session.get(Model, name) is not None:
        raise AlreadyExists(f"there is a model {name} already", model=name)
    model = Model(name=name, canary_salt=secrets.token_hex(16), created_at=now)
    session.add(model)
    return model


def model_named(session: Session, name: str) -> Model:
    """Return a model, or refuse."""
    model = session.get(Model, name)
    if model is None:
        raise NotFound(f"there is no model {name}")
    return model


def record_artifact(session: Session, sha256: str, size: int, now: datetime) -> bool:
    """Note that a blob is stored; True if it is new."""
    if session.get(Artifact, sha256) is not None:
        return False
    row = insert_into(session, cast(Table, Artifact.__table__))
    row = row.values(sha256=sha256, bytes=size, created_at=now).on_conflict_do_nothing()
    return session.execute(row.returning(Artifact.sha256)).first() is not None


def metadata_file(session: Session, filename: str) -> bytes:
    """Return a signed document by its TUF file name, e.g. `3.family-asr.json`."""
    match = _FILENAME.match(filename)
    if match is None:
        raise NotFound(f"{filename} is not the name of a metadata file")
    if match[1] is None:
        row = queries.newest_metadata(session, match[2])
    else:
        row = session.get(MetadataFile, (match[2], int(match[1])))
    if row is None:
        raise NotFound(f"{filename} was never published")
    return row.body


def accept_metadata(
    session: Session, blobs: Blobs, role: str, body: bytes, now: datetime
) -> MetadataFile:
    """Accept the next version of an offline-signed document, and publish what it says.

    Raises:
        NotTheNextVersion: another version came first.
        NotAcceptable: a signature or a rule is broken.
        MissingArtifact: it signs a file that was not uploaded.
    """
    try:
        uploaded = _verified(session, role, body, now)
        family = None
        if role.startswith("family-"):
            model = model_named(session, role.removeprefix("family-")).name
            family = accept_family(model, uploaded.signed, published_family(session, model))
    except Untrusted as error:
        refusal = NotTheNextVersion if error.code == "E_ROLLBACK_META" else NotAcceptable
        raise refusal(error.message, code=error.code, role=role) from error
    row = store_metadata(session, role, uploaded, body, now)
    if family is not None:
        _publish(session, blobs, family, now)
    return row


def store_metadata(
    session: Session, role: str, document: Metadata[Any], body: bytes, now: datetime
) -> MetadataFile:
    """Keep a signed document; a version is written once and never again."""
    row = MetadataFile(
        role=role,
        version=document.signed.version,
        body=body,
        expires_at=document.signed.expires,
        accepted_at=now,
    )
    session.add(row)
    session.flush()
    return row


def published_family(session: Session, model: str) -> Family | None:
    """Return what the newest accepted family document of a model says."""
    row = queries.newest_metadata(session, family_role(model))
    if row is None:
        return None
    return read_family(model, Metadata[Targets].from_bytes(row.body).signed)


def _verified(session: Session, role: str, body: bytes, now: datetime) -> Metadata[Any]:
    current = queries.newest_metadata(session, role)
    before = current.body if current else None
    if role == "root":
        return accept_root(body, before, now)
    delegator = queries.newest_metadata(session, "root" if role == "targets" else "targets")
    if delegator is None:
        raise NotAcceptable(f"publish the documents above {role} first", role=role)
    return accept_targets(role, body, Metadata.from_bytes(delegator.body), before, now)


def _publish(session: Session, blobs: Blobs, family: Family, now: datetime) -> None:
    files: list[SignedRelease | PatchTarget | CanaryTarget] = [
        *family.releases.values(),
        *family.patches,
    ]
    if family.canary is not None:
        files.append(family.canary)
    for file in files:
        artifact = session.get(Artifact, file.sha256)
        if artifact is None or artifact.bytes != file.bytes:
            raise MissingArtifact(
                f"upload {file.sha256} ({file.bytes} bytes) before you sign it", sha256=file.sha256
            )
    known = {release.name: release for release in queries.releases_of(session, family.model)}
    for signed in family.releases.values():
        row = known.get(signed.name)
        if row is None:
            row = Release(
                model=family.model,
                name=signed.name,
                seq=signed.seq,
                sha256=signed.sha256,
                bytes=signed.bytes,
                published_at=now,
            )
            session.add(row)
        row.status = signed.status
        row.hardware = list(signed.hardware)
        row.rollback_from = list(signed.rollback_from)
    session.flush()
    _publish_patches(session, family)
    if family.canary is not None:
        _publish_canary(session, blobs, family)


def _publish_patches(session: Session, family: Family) -> None:
    by_sha256 = {row.sha256: row.id for row in queries.releases_of(session, family.model)}
    signed = {patch.sha256: patch for patch in family.patches}
    for row in queries.patches_of(session, family.model):
        if signed.pop(row.sha256, None) is None:
            session.delete(row)
    for patch in signed.values():
        session.add(
            Patch(
                sha256=patch.sha256,
                model=family.model,
                from_release=by_sha256[patch.from_sha256],
                to_release=by_sha256[patch.to_sha256],
                kind=patch.kind,
                bytes=patch.bytes,
            )
        )


def _publish_canary(session: Session, blobs: Blobs, family: Family) -> None:
    assert family.canary is not None
    if family.canary.bytes > CANARY_MANIFEST_BYTES_MAX:
        raise NotAcceptable("the canary manifest is larger than 1 MiB")
    with blobs.open(family.canary.sha256) as file:
        raw = file.read(CANARY_MANIFEST_BYTES_MAX + 1)
    manifest = _read_manifest(raw)
    for shard in manifest["shards"]:
        artifact = session.get(Artifact, shard["sha256"])
        if artifact is None or artifact.bytes != shard["bytes"]:
            raise MissingArtifact(
                f"upload canary shard {shard['id']} before you sign the set",
                sha256=shard["sha256"],
            )
    row = session.get(CanarySet, family.model)
    if row is None:
        row = CanarySet(model=family.model)
        session.add(row)
    row.sha256 = family.canary.sha256
    row.manifest = manifest


def _read_manifest(raw: bytes) -> dict[str, Any]:
    """Return the manifest of a canary set: every poll and every report relies on its shards."""
    try:
        manifest: dict[str, Any] = json.loads(raw, parse_constant=_no_number)
        ids = [_checked_shard(shard)["id"] for shard in manifest["shards"]]
        if not ids or len(set(ids)) != len(ids):
            raise ValueError("there must be shards, each with an id of its own")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotAcceptable(f"the canary manifest is not understood: {error!r}") from error
    return manifest


def _checked_shard(shard: dict[str, Any]) -> dict[str, Any]:
    if not NAME.match(shard["id"]) or not SHA256.match(shard["sha256"]):
        raise ValueError("a shard has a name as its id, and a SHA-256")
    for field in ("utterances", "ref_words"):
        if type(shard[field]) is not int or not 1 <= shard[field] <= WORDS_MAX:
            raise ValueError(f"{field} of shard {shard['id']} must lie between 1 and {WORDS_MAX}")
    return shard


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
