"""The sign side: keys in files, the next version of a document, a signature on it.

Used by release managers (root, targets, families) and by the publisher (snapshot, timestamp,
orders); never by a device. Every function makes the next document from the last verified one,
so a version is never chosen by hand.
"""

import json
import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, Key, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from trust.order import PAYLOAD_TYPE, Order, order_payload
from trust.roles import (
    DIRECTOR,
    FORMS,
    CanaryTarget,
    Entry,
    PatchTarget,
    Release,
    family_role,
    target_path,
)

# Lifetimes of trust.md 3.2: long where people sign, short where a process does.
LIFETIME = {
    "root": timedelta(days=365),
    "targets": timedelta(days=365),
    "family": timedelta(days=30),
    "snapshot": timedelta(days=14),
    "timestamp": timedelta(days=3),
    "order": timedelta(days=7),
}
DEV_PROFILE = "x-fleetdiff-profile"
Document = TypeVar("Document", Root, Targets, Snapshot, Timestamp)


def generate_key(path: Path) -> Key:
    """Write a new Ed25519 key to a PEM file (mode 0600) and return its public part.

    Raises:
        FileExistsError: a key is never overwritten.
    """
    signer = CryptoSigner.generate_ed25519()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(signer.private_bytes)
    return signer.public_key


def load_signer(path: Path) -> CryptoSigner:
    """Return the signer of a PEM key file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not an unencrypted private key; names the file.
    """
    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), None))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not an unencrypted private key: {error}") from error


def new_root(keys: Mapping[str, Key], now: datetime, *, dev: bool) -> Metadata[Root]:
    """Return version 1 of a root with one key per top-level role, unsigned.

    Args:
        keys: the public keys of root, targets, snapshot and timestamp.
        now: the moment it is made.
        dev: mark it as a development root, which a production device refuses.
    """
    return _next(
        Root,
        None,
        now + LIFETIME["root"],
        keys={key.keyid: key for key in keys.values()},
        roles={name: Role([key.keyid], 1) for name, key in keys.items()},
        unrecognized_fields={DEV_PROFILE: "dev"} if dev else {},
    )


def next_targets(
    previous: Targets | None, families: Mapping[str, Key], director: Key, now: datetime
) -> Metadata[Targets]:
    """Return the next top-level targets, which delegate to every family and the director.

    Args:
        previous: the last version, whose families are kept.
        families: model -> key, added or replaced.
        director: the key that signs orders.
        now: the moment it is made.
    """
    before = previous.delegations if previous else None
    keys = dict(before.keys) if before else {}
    named = dict(before.roles or {}) if before else {}
    for folder, key in {**families, DIRECTOR: director}.items():
        name = DIRECTOR if folder == DIRECTOR else family_role(folder)
        named[name] = DelegatedRole(name, [key.keyid], 1, True, paths=[f"{folder}/*"])
        keys[key.keyid] = key
    used = {keyid for role in named.values() for keyid in role.keyids}
    kept = {keyid: key for keyid, key in keys.items() if keyid in used}
    expires = now + LIFETIME["targets"]
    return _next(Targets, previous, expires, delegations=Delegations(kept, named))


def next_family(
    previous: Targets | None, changed: Iterable[tuple[str, TargetFile]], now: datetime
) -> Metadata[Targets]:
    """Return the next version of a family: the last one with these targets added or replaced."""
    targets = {**(previous.targets if previous else {}), **dict(changed)}
    return _next(Targets, previous, now + LIFETIME["family"], targets=targets)


def release_target(model: str, release: Release) -> tuple[str, TargetFile]:
    """Return the target entry that signs a release."""
    return _target(model, "release", release)


def patch_target(patch: PatchTarget) -> tuple[str, TargetFile]:
    """Return the target entry that signs a patch."""
    return _target("", "patch", patch)


def canary_target(model: str, canary: CanaryTarget) -> tuple[str, TargetFile]:
    """Return the target entry that signs a canary set."""
    return _target(model, "canary", canary)


def next_snapshot(
    previous: Snapshot | None, files: Mapping[str, bytes], now: datetime
) -> Metadata[Snapshot]:
    """Return the next snapshot over `targets.json` and the families' files (name -> bytes)."""
    meta = {name: _listed(body) for name, body in files.items()}
    return _next(Snapshot, previous, now + LIFETIME["snapshot"], meta=meta)


def next_timestamp(
    previous: Timestamp | None, snapshot: bytes, now: datetime
) -> Metadata[Timestamp]:
    """Return the next timestamp, which names this snapshot file."""
    expires = now + LIFETIME["timestamp"]
    return _next(Timestamp, previous, expires, snapshot_meta=_listed(snapshot))


def sign(metadata: Metadata[Document], signers: Iterable[Signer]) -> bytes:
    """Sign a document and return its file: canonical, so that one content has one digest."""
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))


def sign_order(order: Order, director: Signer) -> bytes:
    """Return an order's signed DSSE envelope as JSON bytes."""
    envelope = Envelope(order_payload(order), PAYLOAD_TYPE, {})
    envelope.sign(director)
    return json.dumps(envelope.to_dict(), sort_keys=True, separators=(",", ":")).encode()


def _next(
    kind: type[Document], previous: Document | None, expires: datetime, **content: Any
) -> Metadata[Document]:
    version = previous.version + 1 if previous else 1
    return Metadata(kind(version=version, expires=expires.replace(microsecond=0), **content))


def _target(model: str, kind: str, entry: Entry) -> tuple[str, TargetFile]:
    custom: dict[str, Any] = {"v": 1, "kind": kind}
    for field, (attribute, _) in FORMS[kind][1].items():
        value = getattr(entry, attribute)
        custom[field] = list(value) if isinstance(value, tuple) else value
    path = target_path(model, entry)
    return path, TargetFile(entry.bytes, {"sha256": entry.sha256}, path, {"custom": custom})


def _listed(body: bytes) -> MetaFile:
    version = Metadata[Any].from_bytes(body).signed.version
    return MetaFile.from_data(version, body, ["sha256"])
