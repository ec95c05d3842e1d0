"""The verify side: bytes in, verdict out. It never opens a connection.

A poll that changed brings one bundle: the metadata files a device may be missing and one order.
`refresh` feeds the bundle to `tuf.ngclient` through a fetcher that serves from memory, then adds
what python-tuf leaves to its caller: expiry at a time that cannot run backwards, version floors
that survive a wiped cache, and keys that count once however many ids they have. `check_order`
and `check_transition` then answer whether this device may go from the bytes it runs to the
release it is told. The cache folder is disposable; `Floors` is what a device must keep.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from securesystemslib.exceptions import Error as SecureSystemsError
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    EqualVersionNumberError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Role, Root, Snapshot, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from trust.errors import Untrusted
from trust.order import Order, read_envelope, read_order, read_time, write_time
from trust.roles import DIRECTOR, Family, Release, family_role, read_family, release_path

TIMESTAMP_AHEAD_MAX = timedelta(days=10)
ORDER_AHEAD_MAX = timedelta(days=14)
LIMITS = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=8,
    root_max_length=64 * 1024,
    timestamp_max_length=4 * 1024,
    snapshot_max_length=256 * 1024,
    targets_max_length=1024 * 1024,
)
_URL = "bundle:///"


@dataclass(frozen=True)
class Floors:
    """What a device has seen and will never go back behind; persisted, unlike the cache.

    Attributes:
        versions: role -> [fingerprint of its key set, version]. Keyed by key set, so that
            rotating a key recovers from a version that was pushed far ahead.
        order_seq: the highest order accepted.
        order_sha256: digest of that order's payload: one number, one content.
        time: the latest moment that is known to have passed.
    """

    versions: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    order_seq: int = 0
    order_sha256: str = ""
    time: datetime = datetime(2026, 1, 1, tzinfo=UTC)  # when this code was young

    def to_json(self) -> dict[str, Any]:
        """Return the floors as plain JSON values."""
        return {
            "versions": {role: list(floor) for role, floor in self.versions.items()},
            "order_seq": self.order_seq,
            "order_sha256": self.order_sha256,
            "time": write_time(self.time),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Floors":
        """Return the floors that `to_json` wrote."""
        return Floors(
            versions={r: (str(k), int(v)) for r, (k, v) in document["versions"].items()},
            order_seq=int(document["order_seq"]),
            order_sha256=str(document["order_sha256"]),
            time=read_time(document["time"]),
        )

    def now(self, clock: datetime) -> datetime:
        """Return the time to judge expiry by: the clock's, unless it ran backwards."""
        return max(clock, self.time)


@dataclass(frozen=True)
class Trusted:
    """Verified metadata of one model."""

    targets: Targets
    family: Family
    versions: Mapping[str, int]
    expires: datetime

    @property
    def root_version(self) -> int:
        """The version of the root that everything was verified under."""
        return self.versions["root"]


def refresh(
    cache: Path,
    pinned_root: bytes,
    metadata: Mapping[str, bytes],
    model: str,
    now: datetime,
    floors: Floors,
) -> tuple[Trusted, Floors]:
    """Verify a bundle's metadata and return what may be trusted, with raised floors.

    Args:
        cache: a folder for `tuf.ngclient`; may be wiped at any time.
        pinned_root: the root this device was born with.
        metadata: file name -> bytes, as the server sent them.
        model: whose family to verify.
        now: the system clock.
        floors: what was seen before.

    Raises:
        Untrusted: with the code that names the attack.
        OSError: the cache folder cannot be written.
    """
    now = floors.now(now)
    cache.mkdir(parents=True, exist_ok=True)
    try:
        updater = Updater(
            str(cache), _URL, fetcher=_Bundle(metadata), config=LIMITS, bootstrap=pinned_root
        )
        updater.refresh()
        # Any path of the family makes ngclient load it; the target itself may be absent.
        updater.get_targetinfo(release_path(model, "any"))
    except (RepositoryError, DownloadError, SecureSystemsError, ValueError) as error:
        raise _named(error) from error
    trusted, roles = _read_cache(cache, model)
    _check_dates(trusted, roles, now)
    return trusted, _raise_floors(floors, trusted, roles)


def check_order(
    trusted: Trusted, envelope: bytes, *, device_id: str, model: str, now: datetime, floors: Floors
) -> tuple[Order, Floors]:
    """Verify an order for this device and return it, with raised floors.

    Raises:
        Untrusted: E_SIG, E_AUD, E_FREEZE, E_CLOCK or E_REPLAY.
    """
    clock, now = now, floors.now(now)
    signed = read_envelope(envelope)
    try:
        trusted.targets.verify_delegate(DIRECTOR, signed.pae(), signed.signatures)
    except (UnsignedMetadataError, ValueError) as error:
        raise Untrusted("E_SIG", f"the order is not signed by the director: {error}") from error
    order = read_order(signed.payload)
    if order.device != device_id or order.model != model:
        raise Untrusted("E_AUD", f"an order for {order.device} and {order.model}")
    if order.expires <= now:
        raise Untrusted("E_FREEZE", f"the order expired at {write_time(order.expires)}")
    if order.expires > now + ORDER_AHEAD_MAX:
        raise Untrusted("E_CLOCK", f"an order valid until {write_time(order.expires)}")
    digest = sha256(signed.payload).hexdigest()
    if order.seq < floors.order_seq:
        raise Untrusted("E_REPLAY", f"order {order.seq} was superseded by {floors.order_seq}")
    if order.seq == floors.order_seq and digest != floors.order_sha256:
        raise Untrusted("E_REPLAY", f"two different orders carry number {order.seq}")
    # A stolen director key may date an order far ahead; the clock caps what it can move.
    passed = max(floors.time, min(order.issued, clock))
    return order, replace(floors, order_seq=order.seq, order_sha256=digest, time=passed)


def check_transition(
    trusted: Trusted, order: Order, *, running_sha256: str, hardware: str
) -> Release:
    """Return the ordered release if the bytes that run may become it.

    Raises:
        Untrusted: E_NOT_RELEASED, E_EQUIVOCATION, E_WITHDRAWN, E_INCOMPAT or E_DOWNGRADE.
    """
    release = trusted.family.releases.get(order.release)
    if release is None:
        raise Untrusted("E_NOT_RELEASED", f"{order.target} is not signed by the family")
    if release.sha256 != order.sha256:
        raise Untrusted("E_EQUIVOCATION", f"order and family differ about {order.target}")
    if release.status != "active":
        raise Untrusted("E_WITHDRAWN", f"release {release.name} is {release.status}")
    if release.hardware and hardware not in release.hardware:
        raise Untrusted("E_INCOMPAT", f"release {release.name} is not made for {hardware}")
    running = trusted.family.release_of(running_sha256)
    # Bytes nobody released have no place in the order of releases: any release replaces them.
    if running and release.seq < running.seq and running.name not in release.rollback_from:
        raise Untrusted(
            "E_DOWNGRADE", f"no signed edge leads from {running.name} to {release.name}"
        )
    return release


class _Bundle(FetcherInterface):
    """Serves `tuf.ngclient` from the bundle; what is not in it does not exist."""

    def __init__(self, metadata: Mapping[str, bytes]) -> None:
        self._metadata = metadata

    def _fetch(self, url: str) -> Iterator[bytes]:
        body = self._metadata.get(url.removeprefix(_URL))
        if body is None:
            raise DownloadHTTPError(f"{url} is not in the bundle", 404)
        return iter([body])


_CODE_OF = (
    (DownloadHTTPError, "E_MIX"),
    (DownloadLengthMismatchError, "E_SIZE"),
    (ExpiredMetadataError, "E_FREEZE"),
    (EqualVersionNumberError, "E_ROLLBACK_META"),
    (BadVersionNumberError, "E_ROLLBACK_META"),
    (LengthOrHashMismatchError, "E_MIX"),
)


def _named(error: Exception) -> Untrusted:
    code = next((code for kind, code in _CODE_OF if isinstance(error, kind)), "E_SIG")
    return Untrusted(code, str(error))


@dataclass(frozen=True)
class _SignedRole:
    """One verified document, with the role (keys and threshold) that signed it."""

    signed: Root | Timestamp | Snapshot | Targets
    role: Role
    delegator: Root | Targets


def _read_cache(cache: Path, model: str) -> tuple[Trusted, dict[str, _SignedRole]]:
    family = family_role(model)
    try:
        root = Metadata[Root].from_file(os.fspath(cache / "root.json")).signed
        targets = Metadata[Targets].from_file(os.fspath(cache / "targets.json")).signed
        delegated = (targets.delegations.roles if targets.delegations else None) or {}
        if family not in delegated or DIRECTOR not in delegated:
            raise Untrusted("E_NOT_RELEASED", f"targets does not delegate {family} and director")
        roles = {"root": _SignedRole(root, root.roles["root"], root)}
        for name in ("timestamp", "snapshot", "targets"):
            signed = Metadata[Any].from_file(os.fspath(cache / f"{name}.json")).signed
            roles[name] = _SignedRole(signed, root.roles[name], root)
        signed = Metadata[Targets].from_file(os.fspath(cache / f"{family}.json")).signed
        roles[family] = _SignedRole(signed, delegated[family], targets)
    except (RepositoryError, ValueError) as error:
        raise _named(error) from error
    except FileNotFoundError as error:
        raise Untrusted("E_NOT_RELEASED", f"{model} has no signed family") from error
    for signed_role in roles.values():
        _refuse_twin_keys(signed_role)
    return Trusted(
        targets=targets,
        family=read_family(model, signed),
        versions={name: r.signed.version for name, r in roles.items()},
        expires=min(r.signed.expires for r in roles.values()),
    ), roles


def _refuse_twin_keys(signed_role: _SignedRole) -> None:
    """One key under two ids must not meet a threshold of two (python-tuf counts it twice)."""
    keys = [signed_role.delegator.get_key(keyid) for keyid in signed_role.role.keyids]
    material = {(key.keytype, json.dumps(key.keyval, sort_keys=True)) for key in keys}
    if len(material) != len(keys):
        raise Untrusted("E_SIG", f"a key of {signed_role.signed.type} is listed twice")


def _check_dates(trusted: Trusted, roles: Mapping[str, _SignedRole], now: datetime) -> None:
    for name, role in roles.items():
        if role.signed.expires <= now:
            raise Untrusted("E_FREEZE", f"{name} expired at {write_time(role.signed.expires)}")
    if roles["timestamp"].signed.expires > now + TIMESTAMP_AHEAD_MAX:
        raise Untrusted("E_CLOCK", "timestamp is valid for longer than any publisher signs")


def _raise_floors(floors: Floors, trusted: Trusted, roles: Mapping[str, _SignedRole]) -> Floors:
    versions = dict(floors.versions)
    for name, role in roles.items():
        keys = json.dumps([sorted(role.role.keyids), role.role.threshold]).encode()
        # The root's floor never resets: its chain of signatures is what allows new keys.
        fingerprint = "" if name == "root" else sha256(keys).hexdigest()[:16]
        known, floor = versions.get(name, ("", 0))
        if known == fingerprint and role.signed.version < floor:
            raise Untrusted(
                "E_ROLLBACK_META", f"{name} version {role.signed.version}, but {floor} was seen"
            )
        versions[name] = (fingerprint, role.signed.version)
    return replace(floors, versions=versions)
