"""The client workflow of TUF, case by case, as its conformance suite and python-tuf test it.

The device's own path is under test: `trust.verify.refresh`, that is `tuf.ngclient` behind a
fetcher that serves a bundle, with floors and dates of its own on top. The repository is
`SignedWorld`. Where this client is stricter than the specification asks, the case says so.
"""

from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import MetaFile

from tests.unit.signed_world import (
    DAY,
    FAMILY,
    NOW,
    TOP,
    Device,
    SignedWorld,
    refuses,
    resign,
    signer,
)

Change = Callable[[SignedWorld], Any]
ROLES = (*TOP, FAMILY)


@pytest.fixture
def world() -> SignedWorld:
    return SignedWorld()


@pytest.fixture
def device(world: SignedWorld, tmp_path: Path) -> Device:
    return Device(tmp_path, world.pinned)


# Versions, hashes, lengths, dates and kinds of documents, for a device that has seen a good state


def set_meta(listing: str, file: str, **changes: Any) -> Change:
    """Let snapshot or timestamp say something else of the newest file."""

    def change(world: SignedWorld) -> None:
        world.sign_online()
        document = world.documents[listing]
        meta = document.snapshot_meta if listing == "timestamp" else document.meta[file]
        vars(meta).update(changes)
        world.put(listing, document)
        if listing == "snapshot":
            world.sign_timestamp()

    return change


def older(role: str) -> Change:
    """Serve the body of before where the new one belongs."""

    def change(world: SignedWorld) -> None:
        old = world.bodies[role]
        world.publish()
        resign(world, "targets")
        number = "" if role == "timestamp" else f"{world.documents[role].version}."
        world.files[f"{number}{role}.json"] = old

    return change


def unsigned(role: str) -> Change:
    return lambda world: resign(world, role, [])


def dated(role: str, expires: timedelta) -> Change:
    def change(world: SignedWorld) -> None:
        world.documents[role].expires = NOW + expires
        resign(world, role)

    return change


def another(role: str, of: str) -> Change:
    """Serve a document of another role."""

    def change(world: SignedWorld) -> None:
        resign(world, role)
        name = next(n for n in world.files if n.endswith(f"{role}.json") and "root" not in n)
        world.files[name] = world.bodies[of]

    return change


def rolled_back(role: str) -> Change:
    """Sign a lower version anew, as a thief of that role's key would, and list it truly."""

    def change(world: SignedWorld) -> None:
        world.documents[role].version -= 2
        resign(world, role)

    return change


def spec(version: str, role: str) -> Change:
    def change(world: SignedWorld) -> None:
        world.documents[role].spec_version = version
        resign(world, role)

    return change


def gone(listing: str, file: str) -> Change:
    def change(world: SignedWorld) -> None:
        del world.documents[listing].meta[file]
        resign(world, listing)

    return change


FAMILY_FILE = f"{FAMILY}.json"
WRONG: list[tuple[str, Change, str]] = [
    *((f"{role} unsigned", unsigned(role), "E_SIG") for role in ROLES),
    *((f"{role} expired", dated(role, -DAY), "E_FREEZE") for role in ROLES),
    *((f"{role} expires now", dated(role, 0 * DAY), "E_FREEZE") for role in ROLES),
    *((f"{role} of before", older(role), "E_MIX E_ROLLBACK_META") for role in ROLES[1:3]),
    *((f"{role} rolled back", rolled_back(role), "E_ROLLBACK_META") for role in ROLES[1:]),
    *((f"root for {r}", another(r, "root"), "E_SIG E_SIZE") for r in ROLES[1:]),
    *((f"timestamp for {r}", another(r, "timestamp"), "E_MIX") for r in ROLES[1:3]),
    ("snapshot for timestamp", another("timestamp", "snapshot"), "E_SIG"),
    ("targets for the family", another(FAMILY, "targets"), "E_SIZE"),
    *((f"{role} of a later TUF", spec("2.0.0", role), "E_SIG") for role in ("root", "timestamp")),
    ("snapshot's version", set_meta("timestamp", "", version=99), "E_MIX"),
    ("snapshot's hash", set_meta("timestamp", "", hashes={"sha256": "0" * 64}), "E_MIX"),
    ("snapshot's length", set_meta("timestamp", "", length=5), "E_SIZE E_MIX"),
    *(
        (f"{file}'s {what}", set_meta("snapshot", file, **{what: value}), "E_MIX E_SIZE")
        for file in ("targets.json", FAMILY_FILE)
        for what, value in (("version", 99), ("hashes", {"sha256": "0" * 64}), ("length", 5))
    ),
    ("targets vanish from snapshot", gone("snapshot", "targets.json"), "E_SIG"),
    ("the family vanishes from snapshot", gone("snapshot", FAMILY_FILE), "E_SIG"),
]


@pytest.fixture
def grown(world: SignedWorld, device: Device) -> SignedWorld:
    """A world at its third version, which the device has seen."""
    for _ in range(2):
        world.publish()
        resign(world, "targets")
    device.refresh(world.files)
    return world


@pytest.mark.parametrize(("change", "codes"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_what_is_wrong_is_refused_and_what_comes_after_it_is_not(
    grown: SignedWorld, device: Device, change: Change, codes: str
) -> None:
    kept, files = deepcopy(grown.documents), dict(grown.files)
    change(grown)
    refuses(device, grown.files, *codes.split())
    device.wipe_cache()  # as the agent does, for it may be what is wrong
    for role in ROLES[1:]:
        kept[role].version = max(kept[role].version, grown.documents[role].version)
    grown.documents, grown.files = kept, files
    resign(grown, "targets")
    grown.publish()
    device.refresh(grown.files)


# What is right


def again(world: SignedWorld, device: Device) -> None:
    device.refresh(world.files)
    device.refresh({})


def expired_in_between(world: SignedWorld, device: Device) -> None:
    """Only the last root of a chain must be alive."""
    for expires in (-DAY, -300 * DAY, DAY):
        world.documents["root"].expires = NOW + expires
        resign(world, "root")


def back_after_a_year(world: SignedWorld, device: Device) -> None:
    """What is stored may all be expired: it does not stop what is new."""
    world.now = NOW + 300 * DAY
    resign(world, "targets")
    world.publish()
    device.refresh(world.files, world.now)


def unknown_members(world: SignedWorld, device: Device) -> None:
    for role in ROLES:
        world.documents[role].unrecognized_fields["x-unknown"] = {"more": [1, "two"]}
        resign(world, role)


def spare_keys(world: SignedWorld, device: Device) -> None:
    stranger = signer("stranger").public_key
    world.documents["root"].keys[stranger.keyid] = stranger
    resign(world, "root")


def longest_chain(world: SignedWorld, device: Device) -> None:
    for _ in range(64):
        resign(world, "root")


def no_cache(world: SignedWorld, device: Device) -> None:
    device.wipe_cache()


def empty_cache(world: SignedWorld, device: Device) -> None:
    for file in device.cache.rglob("*.json"):
        file.write_bytes(b"")


def another_family(world: SignedWorld, device: Device) -> None:
    """Of which the device is sent nothing, and needs nothing."""
    world.documents["snapshot"].meta["family-tts.json"] = MetaFile(7)
    resign(world, "snapshot")


def same_number_again(world: SignedWorld, device: Device) -> None:
    """Of a timestamp with a number that was seen, nothing is looked at."""
    world.documents["timestamp"].snapshot_meta.version = 99
    world.put("timestamp", world.documents["timestamp"])


RIGHT: list[tuple[str, Callable[[SignedWorld, Device], None]]] = [
    ("nothing new", lambda world, device: None),
    ("the same twice and nothing once", again),
    *((f"a new {role}", partial(lambda r, w, d: resign(w, r), role)) for role in ROLES),
    ("a newer TUF of the same major", lambda w, d: spec("1.0.99", "timestamp")(w)),
    ("roots that expired in between", expired_in_between),
    ("all that is stored is expired", back_after_a_year),
    ("members nobody knows", unknown_members),
    ("keys that no role uses", spare_keys),
    ("64 roots", longest_chain),
    ("no cache", no_cache),
    ("a cache of empty files", empty_cache),
    ("another timestamp of the same number", same_number_again),
    ("no hashes in snapshot", lambda w, d: set_meta("snapshot", FAMILY_FILE, hashes=None)(w)),
    ("no lengths in snapshot", lambda w, d: set_meta("snapshot", FAMILY_FILE, length=None)(w)),
    ("no hash in timestamp", lambda w, d: set_meta("timestamp", "", hashes=None, length=None)(w)),
    ("another family", another_family),
]


@pytest.mark.parametrize("change", [r[1] for r in RIGHT], ids=[r[0] for r in RIGHT])
def test_what_is_right_is_trusted(
    grown: SignedWorld, device: Device, change: Callable[[SignedWorld, Device], None]
) -> None:
    change(grown, device)
    trusted = device.refresh(grown.files, grown.now)
    assert trusted.versions == {role: grown.documents[role].version for role in ROLES}


@pytest.mark.parametrize("role", ROLES[1:])
def test_a_role_pushed_far_ahead_recovers_by_new_keys(
    grown: SignedWorld, device: Device, role: str
) -> None:
    """Stricter than TUF: new keys of the role itself, where a new snapshot key would do there."""
    before = grown.documents[role].version
    grown.documents[role].version = 1 << 31
    resign(grown, role)
    device.refresh(grown.files)
    grown.documents[role].version = before
    resign(grown, role)
    refuses(device, grown.files, "E_ROLLBACK_META")
    for rotated in (role, "snapshot", "timestamp"):
        grown.signers[rotated] = [signer(f"{rotated} anew")]
    grown.sign_root()
    if role != "targets":
        grown.sign_targets()
    resign(grown, role)
    grown.sign_online()
    assert device.refresh(grown.files).versions[role] == grown.documents[role].version < 1 << 31
