"""What has been published: models, artifacts, signed metadata, and what follows from it.

The signed family *is* the act of publishing. Releases, patches and the canary set of this
database are derived from a family document in the transaction that accepts it, so there is no
second place that could say something else.
"""

import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, update
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Snapshot, Targets

from service.blobs import Blobs
from service.core import audit, errors
from service.core.words import counted
from service.db import documents, queries
from service.db.pipelines import Upload
from service.db.rollout_tables import Cohort
from service.db.session import insert_into
from service.db.tables import Artifact, CanarySet, Draft, MetadataFile, Model, Patch, Release
from service.publishing.manifest import Shard, read_manifest
from service.publishing.patches import checked, unchecked
from service.publishing.sight import check_devices
from trust.accept import Delegator, accept_family, check_complete, delegators, review, signatures_of
from trust.errors import Untrusted, require
from trust.fields import write
from trust.order import read_time
from trust.roles import Entry, Family, read_family

_FILENAME = re.compile(r"(?:(\d{1,9})\.)?([a-z0-9][a-z0-9._-]{0,80})\.json\Z")


def create_model(session: Session, name: str, now: datetime) -> Model:
    """Add a line of speech models."""
    if session.get(Model, name) is not None:
        raise errors.AlreadyExists(f"there is a model {name} already", model=name)
    model = Model(name=name, canary_salt=secrets.token_hex(16), created_at=now)
    session.add(model)
    return model


def model_named(session: Session, name: str) -> Model:
    """Return a model, or refuse."""
    return errors.found(session.get(Model, name), f"model {name}")


def cohort_named(session: Session, name: str) -> Cohort:
    """Return a cohort, or refuse."""
    return errors.found(queries.first(session, Cohort, name=name), f"cohort {name}")


def record_artifact(session: Session, sha256: str, size: int, now: datetime) -> bool:
    """Note that a blob is stored; True if it is new, or was deleted before."""
    row = session.get(Artifact, sha256, with_for_update={"key_share": True})
    if row is not None:  # whoever brings it again needs it: a time of grace begins anew
        was, row.state = row.state, "stored"
        row.unneeded_since = row.deleted_at = None
        return was != "stored"
    made = insert_into(session, Artifact).values(sha256=sha256, bytes=size, created_at=now)
    added = session.execute(made.on_conflict_do_nothing().returning(Artifact.sha256))
    return added.first() is not None


def metadata_file(session: Session, filename: str) -> bytes:
    """Return a signed document by its TUF file name, e.g. `3.family-asr.json`."""
    match = _FILENAME.match(filename)
    if match is None:
        raise errors.NotFound(f"{filename} is not the name of a metadata file")
    if match[1] is None:
        row = documents.newest_metadata(session, match[2])
    else:
        row = session.get(MetadataFile, (match[2], int(match[1])))
    if row is None:
        raise errors.NotFound(f"{filename} was never published")
    return row.body


@dataclass(frozen=True)
class Reviewed:
    """A document that may follow the current one as soon as its `delegators` say so."""

    document: Metadata[Any]
    delegators: list[Delegator]
    family: Family | None
    manifest: dict[str, Any] | None


def review_metadata(
    session: Session, blobs: Blobs, role: str, body: bytes, now: datetime
) -> Reviewed:
    """Return a document that may be the next version of an offline role, whoever signed it.

    Raises:
        NotTheNextVersion: another version came first.
        NotAcceptable: a rule is broken.
        MissingArtifact: it names a file that was not uploaded.
    """
    current = newest_body(session, role)
    beside = _beside(session, role)
    with refusals(role):
        document = review(role, body, beside, current, now)
        family = None
        if role.startswith("family-"):
            model = model_named(session, role.removeprefix("family-")).name
            before = Metadata[Targets].from_bytes(current).signed if current else None
            published = read_family(model, before) if before else None
            family = accept_family(model, document.signed, published)
        _check_below(session, role, document.signed)
        check_devices(session, document.signed, current, now)
    manifest = _check_files(session, blobs, family) if family else None
    return Reviewed(document, delegators(document, current, beside), family, manifest)


def accept_metadata(
    session: Session, blobs: Blobs, role: str, body: bytes, now: datetime
) -> MetadataFile:
    """Accept the next version of an offline-signed document, and publish what it says.

    Raises:
        NotTheNextVersion: another version came first.
        NotAcceptable: a signature or a rule is broken.
        MissingArtifact: it signs a file that was not uploaded.
        BadPatch: it lists a patch that `patches` has not applied yet.
    """
    reviewed = review_metadata(session, blobs, role, body, now)
    check_signed(role, reviewed)
    for patch in unchecked(session, reviewed.family) if reviewed.family else ():
        raise errors.BadPatch(f"{patch.path} was not applied to its base yet; try again")
    row = store_metadata(session, role, reviewed.document, body, now)
    session.execute(delete(Draft).filter_by(role=role))  # it would not be the next version now
    if reviewed.family is not None:
        _publish(session, reviewed.family, reviewed.manifest, now)
    return row


def check_signed(role: str, reviewed: Reviewed) -> None:
    """Refuse a document that lacks signatures."""
    with refusals(role):
        check_complete(role, reviewed.delegators, reviewed.document)


@contextmanager
def refusals(role: str) -> Iterator[None]:
    """Turn what the trust layer refuses about a role into a refusal of the service."""
    try:
        yield
    except Untrusted as error:
        late = error.code == "E_ROLLBACK_META"
        refusal = errors.NotTheNextVersion if late else errors.NotAcceptable
        raise refusal(error.message, code=error.code, role=role) from error


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
    digest = hashlib.sha256(body).hexdigest()
    audit.record(session, "metadata.publish", f"{row.version}.{role}.json", now, sha256=digest)
    return row


def listed(snapshot: Snapshot | None) -> dict[str, int]:
    """Return role -> version of everything that a snapshot vouches for."""
    meta = snapshot.meta if snapshot else {}
    return {name.removesuffix(".json"): file.version for name, file in meta.items()}


def newest_body(session: Session, role: str) -> bytes | None:
    """Return the newest accepted document of a role, as it was signed."""
    row = documents.newest_metadata(session, role)
    return row.body if row else None


def _beside(session: Session, role: str) -> Delegator | None:
    """Return the document that a role's keys are judged by, if it is there."""
    body = newest_body(session, "root" if role == "targets" else "targets")
    return Metadata[Any].from_bytes(body).signed if body else None


def _check_below(session: Session, role: str, signed: Delegator) -> None:
    """Check that what is published below still has enough signatures: devices would refuse it."""
    found = documents.newest_versions(session)
    families = [name for name in found if name.startswith("family-")]
    below = {"root": ["targets"], "targets": families}.get(role, [])
    for name in below:
        if body := newest_body(session, name):
            missing = signatures_of(name, Metadata[Any].from_bytes(body), [signed]).missing
            first = f"first let those sign {name} again who stay, or whom the one before adds"
            some = counted(missing, "signature would", "signatures would")
            require(not missing, "E_SIG", f"{some} be missing; {first}")


def _check_files(session: Session, blobs: Blobs, family: Family) -> dict[str, Any] | None:
    """Check that what a family names is here; return the manifest of its canary set, if any."""
    # What was published before may have been deleted since, for nothing needed it.
    lists = (queries.releases_of, queries.patches_of)
    before = {row.sha256 for rows in lists for row in rows(session, family.model)}
    for file in sorted(files_of(family), key=lambda file: file.sha256):
        _require_artifact(session, file.sha256, file, file.sha256 in before)
    if family.canary is None:
        return None
    manifest = read_manifest(blobs, family.canary)
    for shard in manifest["shards"]:
        _require_artifact(session, f"canary shard {shard['id']}", Shard(**shard))
    return manifest


def files_of(family: Family) -> list[Entry]:
    """Return every file that a family lists."""
    files = (*family.releases.values(), *family.patches, *family.components, family.canary)
    return [file for file in files if file is not None]


def _publish(
    session: Session, family: Family, manifest: dict[str, Any] | None, now: datetime
) -> None:
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
        elif row.status != signed.status:
            named = f"{family.model}/{row.name}"
            audit.record(session, f"release.{signed.status}", named, now, before=row.status)
        row.status = signed.status
        row.hardware = list(signed.hardware)
        row.rollback_from = list(signed.rollback_from)
        row.rollback_until = signed.rollback_until
        row.min_agent = signed.min_agent
        row.evaluation = write(signed.evaluation) if signed.evaluation else None
    session.flush()
    _publish_patches(session, family)
    used = [file.sha256 for file in files_of(family)]
    used += [shard["sha256"] for shard in (manifest or {"shards": ()})["shards"]]
    session.execute(update(Upload).where(Upload.sha256.in_(used)).values(used=True))
    if family.canary is not None:
        sha256 = family.canary.sha256
        text = (manifest or {}).get("expires")
        end = read_time(text) if text else None
        found = CanarySet(model=family.model, sha256=sha256, manifest=manifest, expires_at=end)
        session.merge(found)


def _require_artifact(
    session: Session, name: str, file: Entry | Shard, deleted: bool = False
) -> None:
    # What is collected just then is waited for, in the order in which that locks.
    row = session.get(Artifact, file.sha256, with_for_update={"read": True})
    if row is None or row.bytes != file.bytes or not (deleted or row.state == "stored"):
        detail = f"upload {name} ({file.bytes} bytes) before you sign it"
        raise errors.MissingArtifact(detail, sha256=file.sha256)


def _publish_patches(session: Session, family: Family) -> None:
    by_sha256 = {row.sha256: row.id for row in queries.releases_of(session, family.model)}
    signed = {patch.sha256: patch for patch in family.patches}
    for row in queries.patches_of(session, family.model):
        if signed.pop(row.sha256, None) is None:
            session.delete(row)
    for patch in signed.values():
        found = checked(session, patch)
        assert found is not None  # or the family would not have been accepted
        session.add(
            Patch(
                sha256=patch.sha256,
                model=family.model,
                from_release=by_sha256[patch.from_sha256],
                to_release=by_sha256[patch.to_sha256],
                kind=patch.kind,
                bytes=patch.bytes,
                **found.shown("memory_bytes goes_back"),
            )
        )
