"""The sign side: keys in files, the next version of a document, a signature on it.

Used by release managers (root, targets, families) and by the publisher (snapshot, timestamp,
orders); never by a device. Every function makes the next document from the last verified one,
so a version is never chosen by hand.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, Key, Signer
from tuf.api import metadata as tuf

from trust import roles
from trust.accept import canonical
from trust.order import PAYLOAD_TYPE, Order, order_payload
from trust.roles import DEV_PROFILE, Entry

# Lifetimes of trust.md 3.2: long where people sign, short where a process does.
LIFETIME = {
    "root": timedelta(days=365),
    "targets": timedelta(days=365),
    "family": timedelta(days=30),
    "snapshot": timedelta(days=14),
    "timestamp": timedelta(days=3),
    "order": timedelta(days=7),
}
BCRYPT_ROUNDS = 128
Document = TypeVar("Document", tuf.Root, tuf.Targets, tuf.Snapshot, tuf.Timestamp)


def generate_key(path: Path, passphrase: str = "") -> Key:
    """Write a new Ed25519 key to a file (mode 0600) and return its public part.

    With a passphrase it is an OpenSSH key whose bcrypt takes about a second a try: PEM's own
    encryption falls to 2,500 tries a second.

    Raises:
        FileExistsError: a key is never overwritten.
    """
    private = Ed25519PrivateKey.generate()
    form: PrivateFormat = PrivateFormat.PKCS8
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase:
        form = PrivateFormat.OpenSSH
        encryption = form.encryption_builder().kdf_rounds(BCRYPT_ROUNDS).build(passphrase.encode())
    body = private.private_bytes(Encoding.PEM, form, encryption)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(body)
    return CryptoSigner(private).public_key


def load_signer(path: Path, passphrase: Callable[[], str] | None = None) -> CryptoSigner:
    """Return the signer of a private key file, PEM or OpenSSH.

    Args:
        path: of the file.
        passphrase: is asked if the file is encrypted; without it such a file is refused.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no private key, or not opened by this passphrase; names the file.
    """
    body = path.read_bytes()
    load = load_ssh_private_key if b"BEGIN OPENSSH" in body[:40] else load_pem_private_key
    try:
        try:
            return CryptoSigner(load(body, None))
        except TypeError as encrypted:
            if passphrase is None:
                raise ValueError("it is encrypted") from encrypted
            return CryptoSigner(load(body, passphrase().encode()))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path} is no private key that can be used: {error}") from error


@dataclass(frozen=True)
class Holders:
    """Who signs for a role: their public keys, and how many of them must.

    Raises:
        ValueError: nobody ever could, or a key is there twice.
    """

    keys: tuple[Key, ...]
    threshold: int = 1

    def __post_init__(self) -> None:
        differ = len({key.keyid for key in self.keys})
        whole = type(self.threshold) is int and differ == len(self.keys)
        if not whole or not 1 <= self.threshold <= differ:
            raise ValueError(f"it asks for {self.threshold!r} of {differ} different keys")


def holders_of(delegator: tuf.Root | tuf.Targets, role: str) -> Holders:
    """Return who signs for a role; ValueError if the delegator does not know it."""
    named = delegator.get_delegated_role(role)
    return Holders(tuple(delegator.get_key(keyid) for keyid in named.keyids), named.threshold)


def new_root(
    holders: Mapping[str, Key | Holders], now: datetime, *, dev: bool
) -> tuf.Metadata[tuf.Root]:
    """Return version 1 of a root, unsigned.

    Args:
        holders: of root, targets, snapshot and timestamp; a key alone is 1 of 1.
        now: the moment it is made.
        dev: mark it as a development root, which a production device refuses.
    """
    nobody = {name: tuf.Role([], 1) for name in roles.TOP_LEVEL_ROLES}
    profile = {DEV_PROFILE: "dev"} if dev else {}
    root = next_root(tuf.Root(roles=nobody, unrecognized_fields=profile), holders, now)
    root.signed.version = 1
    return root


def next_root(
    previous: tuf.Root, changes: Mapping[str, Key | Holders], now: datetime
) -> tuf.Metadata[tuf.Root]:
    """Return the next root, in which these roles have new holders, unsigned.

    It takes the signatures of the old root's holders and, if they change, of the new ones.
    """
    keys, named = dict(previous.keys), dict(previous.roles)
    for name, given in changes.items():
        keyids, threshold = _hold(given, keys)
        named[name] = tuf.Role(keyids, threshold)
    content = {"roles": named, "unrecognized_fields": previous.unrecognized_fields}
    expires = now + LIFETIME["root"]
    return _next(tuf.Root, previous, expires, keys=_used(keys, named), **content)


def next_targets(
    previous: tuf.Targets | None, changes: Mapping[str, Key | Holders], now: datetime
) -> tuf.Metadata[tuf.Targets]:
    """Return the next top-level targets, in which these roles have new holders, unsigned.

    They delegate to every family and the director; whom the last version names is kept.
    """
    before = (previous.delegations if previous else None) or tuf.Delegations({}, {})
    keys, named = dict(before.keys), dict(before.roles or {})
    for name, given in changes.items():
        keyids, threshold = _hold(given, keys)
        folder = name.removeprefix("family-")
        named[name] = tuf.DelegatedRole(name, keyids, threshold, True, paths=[f"{folder}/*"])
    expires = now + LIFETIME["targets"]
    delegations = tuf.Delegations(_used(keys, named), named)
    return _next(tuf.Targets, previous, expires, delegations=delegations)


def next_family(
    previous: tuf.Targets | None, changed: Iterable[tuple[str, tuf.TargetFile]], now: datetime
) -> tuf.Metadata[tuf.Targets]:
    """Return the next version of a family: the last one with these targets added or replaced."""
    targets = {**(previous.targets if previous else {}), **dict(changed)}
    return _next(tuf.Targets, previous, now + LIFETIME["family"], targets=targets)


def target_of(model: str, entry: Entry) -> tuple[str, tuf.TargetFile]:
    """Return the target, with its path, that signs a release, a patch or a canary set."""
    path, custom = roles.target_path(model, entry), {"custom": roles.custom_of(entry)}
    return path, tuf.TargetFile(entry.bytes, {"sha256": entry.sha256}, path, custom)


def next_snapshot(
    previous: tuf.Snapshot | None, files: Mapping[str, bytes], now: datetime
) -> tuf.Metadata[tuf.Snapshot]:
    """Return the next snapshot over `targets.json` and the families' files (name -> bytes)."""
    meta = {name: _listed(body) for name, body in files.items()}
    return _next(tuf.Snapshot, previous, now + LIFETIME["snapshot"], meta=meta)


def next_timestamp(
    previous: tuf.Timestamp | None, snapshot: bytes, now: datetime
) -> tuf.Metadata[tuf.Timestamp]:
    """Return the next timestamp, which names this snapshot file."""
    expires = now + LIFETIME["timestamp"]
    return _next(tuf.Timestamp, previous, expires, snapshot_meta=_listed(snapshot))


def sign(metadata: tuf.Metadata[Document], signers: Iterable[Signer]) -> bytes:
    """Sign a document and return its file: canonical, so that one content has one digest."""
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return canonical(metadata)


def sign_order(order: Order, director: Signer) -> bytes:
    """Return an order's signed DSSE envelope as JSON bytes."""
    envelope = Envelope(order_payload(order), PAYLOAD_TYPE, {})
    envelope.sign(director)
    return json.dumps(envelope.to_dict(), sort_keys=True, separators=(",", ":")).encode()


def _next(
    kind: type[Document], previous: Document | None, expires: datetime, **content: Any
) -> tuf.Metadata[Document]:
    version = previous.version + 1 if previous else 1
    return tuf.Metadata(kind(version=version, expires=expires.replace(microsecond=0), **content))


def _hold(given: Key | Holders, keys: dict[str, Key]) -> tuple[list[str], int]:
    """Add a role's keys to all keys, and return what the role says of them."""
    holders = given if isinstance(given, Holders) else Holders((given,))
    keys.update({key.keyid: key for key in holders.keys})
    return [key.keyid for key in holders.keys], holders.threshold


def _used(keys: Mapping[str, Key], named: Mapping[str, tuf.Role]) -> dict[str, Key]:
    used = {keyid for role in named.values() for keyid in role.keyids}
    return {keyid: key for keyid, key in keys.items() if keyid in used}


def _listed(body: bytes) -> tuf.MetaFile:
    version = tuf.Metadata[Any].from_bytes(body).signed.version
    return tuf.MetaFile.from_data(version, body, ["sha256"])
