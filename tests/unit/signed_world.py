"""Signed documents in memory, and a device that judges them at a time that the test sets.

Roles, holders and thresholds are data, so that a test changes one thing, signs again and asks.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Role, Root, Targets
from tuf.ngclient._internal import trusted_metadata_set

from trust import sign
from trust.errors import Untrusted
from trust.floors import Floors
from trust.order import PAYLOAD_TYPE, Order
from trust.roles import DEV_PROFILE, PatchTarget, Release, family_role, patch_path
from trust.verify import Trusted, check_order, refresh

MODEL = "asr"
FAMILY = family_role(MODEL)
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
TOP = ("root", "targets", "snapshot", "timestamp")


@cache
def signer(name: str) -> CryptoSigner:
    """Return the one signer of this name; made once a run."""
    return CryptoSigner.generate_ed25519()


def twin(name: str) -> CryptoSigner:
    """Return the same key under another id: python-tuf counts it twice."""
    other = CryptoSigner(signer(name)._private_key)
    other.public_key.keyid = digest(signer(name).public_key.keyid)
    return other


def keys_of(signers: list[CryptoSigner]) -> dict[str, Key]:
    return {s.public_key.keyid: s.public_key for s in signers}


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def release(name: str, **more: Any) -> Release:
    """Return release r<n>, with seq n."""
    fields: dict[str, Any] = {
        "seq": int(name[1:]),
        "status": "active",
        "sha256": digest(name),
        "bytes": 1000,
        "format": "raw",
        "hardware": (),
        "rollback_from": (),
    }
    return Release(name=name, **{**fields, **more})


def patch(source: Release, target: Release, **more: Any) -> PatchTarget:
    path = patch_path(MODEL, source.name, target.name)
    made = PatchTarget(path, digest(path), 90, source.sha256, target.sha256, "sparse")
    return replace(made, **more)


class SignedWorld:
    """Everything signed about one model: `files` is what a server would send a new device."""

    def __init__(self, *releases: Release) -> None:
        self.now = NOW
        self.signers = {name: [signer(name)] for name in (*TOP, "director", FAMILY)}
        self.thresholds = dict.fromkeys(self.signers, 1)
        self.documents: dict[str, Any] = {}
        self.bodies: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.entries: dict[str, Any] = {}
        self.sign_root()
        self.sign_targets()
        self.publish(*(releases or (release("r1"), release("r2"))))

    @property
    def pinned(self) -> bytes:
        return self.files["1.root.json"]

    def put(self, role: str, document: Any, by: list[CryptoSigner] | None = None) -> bytes:
        """Sign a document as the newest of its role."""
        body = sign.sign(Metadata(document), self.signers[role] if by is None else by)
        if role != "root":  # a server keeps every root, and the newest of the rest
            self.files = {n: b for n, b in self.files.items() if f"{role}.json" not in n}
        number = "" if role == "timestamp" else f"{document.version}."
        self.files[f"{number}{role}.json"] = self.bodies[role] = body
        self.documents[role] = document
        return body

    def next_version(self, role: str) -> int:
        return self.documents[role].version + 1 if role in self.documents else 1

    def root(self) -> Root:
        roles = {
            name: Role([s.public_key.keyid for s in self.signers[name]], self.thresholds[name])
            for name in TOP
        }
        keys = keys_of([s for name in TOP for s in self.signers[name]])
        expires, dev = self.now + 365 * DAY, {DEV_PROFILE: "dev"}  # thresholds of 1
        version = self.next_version("root")
        return Root(version, None, expires, keys, roles, unrecognized_fields=dev)

    def sign_root(self, by: list[CryptoSigner] | None = None) -> bytes:
        return self.put("root", self.root(), by)

    def targets(self) -> Targets:
        roles = {}
        for name, paths in (("director", ["director/*"]), (FAMILY, [f"{MODEL}/*"])):
            keyids = [s.public_key.keyid for s in self.signers[name]]
            roles[name] = DelegatedRole(name, keyids, self.thresholds[name], True, paths)
        keys = keys_of(self.signers["director"] + self.signers[FAMILY])
        document = Targets(self.next_version("targets"), None, self.now + 365 * DAY)
        document.delegations = Delegations(keys, roles)
        return document

    def sign_targets(self) -> bytes:
        return self.put("targets", self.targets())

    def family(self) -> Targets:
        expires = self.now + sign.LIFETIME["family"]
        return Targets(self.next_version(FAMILY), None, expires, dict(self.entries))

    def publish(self, *entries: Release | PatchTarget) -> None:
        """Sign these releases and patches into the next version, and all that names it."""
        for entry in entries:
            path, target = sign.target_of(MODEL, entry)
            self.entries[path] = target
        self.put(FAMILY, self.family())
        self.sign_online()

    def sign_online(self) -> None:
        """Sign the next snapshot and timestamp over what is newest."""
        bodies = {f"{name}.json": self.bodies[name] for name in ("targets", FAMILY)}
        before = self.documents.get("snapshot")
        self.put("snapshot", sign.next_snapshot(before, bodies, self.now).signed)
        self.sign_timestamp()

    def sign_timestamp(self) -> None:
        before = self.documents.get("timestamp")
        snapshot = self.bodies["snapshot"]
        self.put("timestamp", sign.next_timestamp(before, snapshot, self.now).signed)


def resign(world: SignedWorld, role: str, by: list[CryptoSigner] | None = None) -> None:
    """Sign the next version of a role, and truly what names it."""
    world.documents[role].version += 1
    world.put(role, world.documents[role], by)
    if role in ("targets", FAMILY):
        world.sign_online()
    elif role == "snapshot":
        world.sign_timestamp()


def order(wanted: Release, by: CryptoSigner | None = None, **more: Any) -> bytes:
    """Return a signed order for device d1, valid for a week from NOW."""
    return sign.sign_order(an_order(wanted, **more), by or signer("director"))


def an_order(wanted: Release, **more: Any) -> Order:
    fields: dict[str, Any] = {
        "device": "d1",
        "seq": 1,
        "issued": NOW,
        "expires": NOW + 7 * DAY,
        "model": MODEL,
        "release": wanted.name,
        "sha256": wanted.sha256,
        "root": 1,
        "timestamp": 1,
        "hold": False,
        "deployment": "dep-1",
    }
    return Order(**{**fields, **more})


class Device:
    """What a device keeps: a pinned root, a cache that may be wiped, and floors."""

    def __init__(self, folder: Path, pinned: bytes) -> None:
        self.cache, self.pinned, self.floors = folder / "tuf", pinned, Floors()

    def refresh(self, files: Mapping[str, bytes], now: datetime = NOW) -> Trusted:
        with tuf_clock(now):
            trusted, self.floors = refresh(self.cache, self.pinned, files, MODEL, now, self.floors)
        return trusted

    def obey(self, trusted: Trusted, envelope: bytes, now: datetime = NOW) -> Order:
        told, self.floors = check_order(
            trusted, envelope, device_id="d1", model=MODEL, now=now, floors=self.floors
        )
        return told

    def wipe_cache(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)


def tuf_clock(now: datetime) -> Any:
    """python-tuf reads the system clock by itself; here it reads the test's."""
    frozen = SimpleNamespace(datetime=SimpleNamespace(now=lambda tz: now), timezone=timezone)
    return mock.patch.object(trusted_metadata_set, "datetime", frozen)


def refuses(device: Device, files: dict[str, bytes], *codes: str, now: datetime = NOW) -> None:
    """The bundle is refused with one of the codes, and the floors stay."""
    before = device.floors
    with pytest.raises(Untrusted) as caught:
        device.refresh(files, now)
    assert caught.value.code in codes, caught.value
    assert device.floors == before


def disobeys(device: Device, trusted: Trusted, envelope: bytes, *codes: str) -> None:
    before = device.floors
    with pytest.raises(Untrusted) as caught:
        device.obey(trusted, envelope)
    assert caught.value.code in codes, caught.value
    assert device.floors == before


def envelope(payload: bytes, by: CryptoSigner, kind: str = PAYLOAD_TYPE) -> bytes:
    made = Envelope(payload, kind, {})
    made.sign(by)
    return json.dumps(made.to_dict()).encode()
