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
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from securesystemslib import exceptions as securesystemslib
from tuf.api import exceptions as tuf
from tuf.api.metadata import Metadata, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from trust import roles
from trust.errors import Untrusted, require
from trust.floors import Floors
from trust.order import Order, read_envelope, read_order, write_time
from trust.roles import DIRECTOR, Family, Release

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
Files = Mapping[str, bytes]
Names = Collection[str]
_URL = "bundle:///"
_REFUSALS = (tuf.RepositoryError, tuf.DownloadError, securesystemslib.Error, ValueError, TypeError)


@dataclass(frozen=True)
class Trusted:
    """Verified metadata of one model."""

    targets: Targets
    family: Family
    versions: Mapping[str, int]
    expires: datetime


def refresh(
    cache: Path, pinned_root: bytes, metadata: Files, model: str, now: datetime, floors: Floors
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
    now, family = floors.now(now), roles.family_role(model)
    cache.mkdir(parents=True, exist_ok=True)
    try:
        updater = Updater(
            str(cache), _URL, fetcher=_Bundle(metadata, cache), config=LIMITS, bootstrap=pinned_root
        )
        updater.refresh()
        # Any path of the family makes ngclient load it; the target itself may be absent.
        updater.get_targetinfo(roles.release_path(model, "any"))
        signed = _read_cache(cache, family)
    except _REFUSALS as error:
        raise _named(error) from error
    _check_dates(signed, now)
    trusted = Trusted(
        targets=signed["targets"],
        family=roles.read_family(model, signed[family]),
        versions={name: document.version for name, document in signed.items()},
        expires=min(document.expires for document in signed.values()),
    )
    return trusted, _raise_floors(floors, signed)


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
    except (tuf.UnsignedMetadataError, ValueError, TypeError) as error:
        raise Untrusted("E_SIG", f"the order is not signed by the director: {error}") from error
    order = read_order(signed.payload)
    keys = trusted.targets.get_delegated_role(DIRECTOR).keyids
    # As with metadata: replacing a stolen key recovers from a number that was pushed far ahead.
    if not set(floors.versions.get(DIRECTOR, ("", 0))[0].split()) <= set(keys):
        floors = replace(floors, order_seq=0, order_sha256="")
    until, seq, seen = write_time(order.expires), order.seq, floors.order_seq
    mine = (order.device, order.model) == (device_id, model)
    require(mine, "E_AUD", f"an order for {order.device} and {order.model}")
    require(order.expires > now, "E_FREEZE", f"the order expired at {until}")
    require(order.expires <= now + ORDER_AHEAD_MAX, "E_CLOCK", f"an order valid until {until}")
    # A newer root or timestamp that is withheld may be the one that revokes what was sent.
    hidden = [r for r in ("root", "timestamp") if getattr(order, r) > trusted.versions[r]]
    require(not hidden, "E_FREEZE", f"the order knows of a newer {' and '.join(hidden)}")
    require(seq >= seen, "E_REPLAY", f"order {seq} was superseded by {seen}")
    digest = sha256(signed.payload).hexdigest()
    same = seq != seen or digest == floors.order_sha256
    require(same, "E_REPLAY", f"two different orders carry number {seq}")
    # A stolen director key may date an order far ahead; the clock caps what it can move.
    passed = max(floors.time, min(order.issued, clock))
    versions = {**floors.versions, DIRECTOR: (" ".join(sorted(keys)), 0)}
    floors = replace(floors, versions=versions, time=passed)
    return order, replace(floors, order_seq=seq, order_sha256=digest)


def check_transition(
    trusted: Trusted,
    order: Order,
    now: datetime,
    *,
    running_sha256: str,
    hardware: str,
    formats: Names = (),
    agent: str = "",
) -> Release:
    """Return the ordered release if the bytes that run may become it.

    Args:
        trusted: what was verified.
        order: what is ordered.
        now: the time to judge the ends of ways back by.
        running_sha256: the digest of the model that runs, read now.
        hardware: what the device is.
        formats: the formats that it can run; none means any.
        agent: the version of its agent; what is none is older than any.

    Raises:
        Untrusted: E_NOT_RELEASED, E_EQUIVOCATION, E_WITHDRAWN, E_INCOMPAT or E_DOWNGRADE.
    """
    release = trusted.family.releases.get(order.release)
    if release is None:
        raise Untrusted("E_NOT_RELEASED", f"{order.target} is not signed by the family")
    path, name = order.target, release.name
    require(
        release.sha256 == order.sha256, "E_EQUIVOCATION", f"order and family differ about {path}"
    )
    require(release.status == "active", "E_WITHDRAWN", f"release {name} is {release.status}")
    misfit = release.misfit(hardware, agent)
    if formats and release.format not in formats:
        misfit = f"is {release.format}, not {' or '.join(formats)}"
    require(not misfit, "E_INCOMPAT", f"release {name} {misfit}")
    running = trusted.family.release_of(running_sha256)
    # Bytes nobody released have no place in the order of releases: any release replaces them.
    if running and not release.takes_back(running, now):
        raise Untrusted("E_DOWNGRADE", f"no signed edge leads from {running.name} to {name}")
    return release


class _Bundle(FetcherInterface):
    """Serves `tuf.ngclient` from the bundle; what is not in it does not exist.

    Except the timestamp: a bundle without one says that the device has the newest already, and
    then the one that was verified before is looked at again, for its expiry.
    """

    def __init__(self, metadata: Files, cache: Path) -> None:
        self._metadata = metadata
        self._timestamp = cache / "timestamp.json"

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(_URL)
        body = self._metadata.get(name)
        if body is None and name == self._timestamp.name and self._timestamp.exists():
            body = self._timestamp.read_bytes()
        if body is None:
            raise tuf.DownloadHTTPError(f"{url} is not in the bundle", 404)
        return iter([body])


_CODE_OF = (
    (tuf.DownloadHTTPError, "E_MIX"),
    (tuf.DownloadLengthMismatchError, "E_SIZE"),
    (tuf.ExpiredMetadataError, "E_FREEZE"),
    (tuf.BadVersionNumberError, "E_ROLLBACK_META"),
    (tuf.LengthOrHashMismatchError, "E_MIX"),
    (securesystemslib.StorageError, "E_NOT_RELEASED"),  # the walk found no family to store
)


def _named(error: Exception) -> Untrusted:
    # A file is asked for because the one in the cache expired: then that is what is wrong.
    expired = isinstance(error.__context__, tuf.ExpiredMetadataError)
    if expired and isinstance(error, tuf.DownloadHTTPError):
        return Untrusted("E_FREEZE", f"{error.__context__}, and there is none newer")
    code = next((code for kind, code in _CODE_OF if isinstance(error, kind)), "E_SIG")
    return Untrusted(code, str(error))


def _read_cache(cache: Path, family: str) -> dict[str, Any]:
    """Return role -> document, as `tuf.ngclient` has just verified and stored them.

    The family is verified once more: what ngclient walks past it leaves in the cache unchecked.
    """
    names = (*roles.TOP_LEVEL_ROLES, family)
    files = {name: Metadata[Any].from_file(os.fspath(cache / f"{name}.json")) for name in names}
    signed = {name: file.signed for name, file in files.items()}
    listed = signed["snapshot"].meta.get(f"{family}.json")
    if listed is None or listed.version != signed[family].version:
        raise Untrusted("E_MIX", f"{family} is not the one that snapshot names")
    signed["targets"].verify_delegate(family, files[family].signed_bytes, files[family].signatures)
    for name in (*names, DIRECTOR):
        roles.key_material(_delegator(signed, name), name)
    return signed


def _delegator(signed: Mapping[str, Any], name: str) -> Any:
    return signed["root" if name in roles.TOP_LEVEL_ROLES else "targets"]


def _check_dates(signed: Mapping[str, Any], now: datetime) -> None:
    for name, document in signed.items():
        expired = f"{name} expired at {write_time(document.expires)}"
        require(document.expires > now, "E_FREEZE", expired)
    if signed["timestamp"].expires > now + TIMESTAMP_AHEAD_MAX:
        raise Untrusted("E_CLOCK", "timestamp is valid for longer than any publisher signs")


def _raise_floors(floors: Floors, signed: Mapping[str, Any]) -> Floors:
    versions = dict(floors.versions)
    for name, document in signed.items():
        role = _delegator(signed, name).get_delegated_role(name)
        keys = json.dumps([sorted(role.keyids), role.threshold]).encode()
        # The root's floor never resets: its chain of signatures is what allows new keys.
        fingerprint = "" if name == "root" else sha256(keys).hexdigest()[:16]
        version = document.version
        known, floor = versions.get(name, ("", 0))
        kept = known != fingerprint or version >= floor
        require(kept, "E_ROLLBACK_META", f"{name} version {version}, but {floor} was seen")
        versions[name] = (fingerprint, version)
    return replace(floors, versions=versions)
