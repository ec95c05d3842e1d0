"""Attacks on a device's metadata by keys, thresholds and limits, by the ids of the attack list."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import DelegatedRole, MetaFile, Targets

from tests.unit.signed_world import (
    DAY,
    FAMILY,
    MODEL,
    NOW,
    TOP,
    Device,
    SignedWorld,
    refuses,
    release,
    signer,
    twin,
)
from trust.roles import TARGETS_PER_FAMILY_MAX


@pytest.fixture
def world() -> SignedWorld:
    return SignedWorld()


@pytest.fixture
def device(world: SignedWorld, tmp_path: Path) -> Device:
    return Device(tmp_path, world.pinned)


@pytest.mark.attack("M31")
def test_m31_roots_are_followed_over_three_versions(world: SignedWorld, device: Device) -> None:
    for number in (2, 3, 4):
        before = list(world.signers["root"])
        world.signers["root"] = [signer(f"root {number}")]
        world.sign_root([*before, *world.signers["root"]])
    assert device.refresh(world.files).versions["root"] == 4


@pytest.mark.attack("M32")
def test_m32_a_root_that_only_its_own_new_keys_signed_is_refused(
    world: SignedWorld, device: Device
) -> None:
    world.signers["root"] = [signer("mallory")]
    world.sign_root()
    refuses(device, world.files, "E_SIG")


@pytest.mark.attack("M32")
def test_m32_a_root_with_one_of_two_old_signatures_is_refused(tmp_path: Path) -> None:
    world = SignedWorld()
    world.signers["root"].append(signer("root b"))
    world.thresholds["root"] = 2
    del world.documents["root"]
    world.sign_root()
    world.sign_root([signer("root")])
    refuses(Device(tmp_path, world.pinned), world.files, "E_SIG")
    world.documents["root"].version -= 1
    world.sign_root()
    assert Device(tmp_path / "2", world.pinned).refresh(world.files).versions["root"] == 2


@pytest.mark.attack("M32")
@pytest.mark.parametrize("version", [1, 3])
def test_m32_a_root_that_skips_or_repeats_a_version_is_refused(
    world: SignedWorld, device: Device, version: int
) -> None:
    root = world.root()
    root.version = version
    body = world.put("root", root)
    world.files["2.root.json"] = body
    device.pinned = world.pinned if version == 3 else device.pinned
    refuses(device, world.files, "E_ROLLBACK_META")


@pytest.mark.attack("M33")
@pytest.mark.parametrize("by", [["family a"], ["mallory", "family a"], ["mallory"]])
def test_m33_a_family_with_one_of_two_signatures_is_refused(
    world: SignedWorld, device: Device, by: list[str]
) -> None:
    world.signers[FAMILY] = [signer("family a"), signer("family b")]
    world.thresholds[FAMILY] = 2
    world.sign_targets()
    world.put(FAMILY, world.family(), [signer(name) for name in by])
    world.sign_online()
    refuses(device, world.files, "E_SIG")
    world.publish()
    device.refresh(world.files)


@pytest.mark.attack("M33")
def test_m33_one_signature_twice_is_refused(world: SignedWorld, device: Device) -> None:
    document = json.loads(world.files["timestamp.json"])
    document["signatures"] *= 2
    refuses(device, {**world.files, "timestamp.json": json.dumps(document).encode()}, "E_SIG")


@pytest.mark.attack("M34")
@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp", "director", FAMILY])
def test_m34_one_key_under_two_ids_does_not_make_two(
    world: SignedWorld, device: Device, role: str
) -> None:
    world.signers[role] = [signer(role), twin(role)]
    world.thresholds[role] = 2
    if role in TOP:
        world.sign_root()
    world.sign_targets()
    world.publish()
    refuses(device, world.files, "E_SIG")


@pytest.mark.attack("M34")
def test_m34_a_twin_that_is_spelled_in_capitals_is_a_twin(
    world: SignedWorld, device: Device
) -> None:
    other = twin(FAMILY)
    other.public_key.keyval["public"] = other.public_key.keyval["public"].upper()
    world.signers[FAMILY] = [signer(FAMILY), other]
    world.thresholds[FAMILY] = 2
    world.sign_targets()
    world.publish()
    refuses(device, world.files, "E_SIG")


@pytest.mark.attack("M36")
def test_m36_a_family_that_signs_a_path_of_another_is_refused(
    world: SignedWorld, device: Device
) -> None:
    world.entries["tts/r1.model"] = world.entries.pop(f"{MODEL}/r1.model")
    world.publish()
    refuses(device, world.files, "E_NOT_RELEASED")


@pytest.mark.attack("M39")
def test_m39_a_version_pushed_far_ahead_is_left_behind_by_new_keys(
    world: SignedWorld, device: Device
) -> None:
    world.documents["timestamp"].version = 1 << 31
    world.put("timestamp", world.documents["timestamp"])
    device.refresh(world.files)
    world.documents["timestamp"].version = 1
    world.sign_timestamp()
    refuses(device, world.files, "E_ROLLBACK_META")
    world.signers["timestamp"] = [signer("timestamp anew")]
    world.sign_root()
    world.sign_timestamp()
    assert device.refresh(world.files).versions["timestamp"] == 3


@pytest.mark.attack("M40")
@pytest.mark.parametrize("seen", [False, True])
def test_m40_a_family_that_vanishes_from_the_snapshot_is_refused(
    world: SignedWorld, device: Device, seen: bool
) -> None:
    if seen:
        device.refresh(world.files)
    del world.documents["snapshot"].meta[f"{FAMILY}.json"]
    world.documents["snapshot"].version += 1
    world.put("snapshot", world.documents["snapshot"])
    world.sign_timestamp()
    refuses(device, world.files, "E_SIG", "E_NOT_RELEASED")


def test_a_snapshot_that_lies_about_the_length_of_its_files_is_refused(
    world: SignedWorld, device: Device
) -> None:
    listed = world.documents["snapshot"].meta
    listed[f"{FAMILY}.json"] = MetaFile(1, length=5)
    world.put("snapshot", world.documents["snapshot"])
    world.sign_timestamp()
    refuses(device, world.files, "E_SIZE", "E_MIX")


@pytest.mark.attack("M05")
@pytest.mark.parametrize(
    "body",
    [b"[" * 60_000, b'{"a":' * 20_000, b"", b"\xff", b"null", b"[]", b"5", b'"x"', b"{}"],
    ids=["nested lists", "nested objects", "empty", "bytes", "null", "list", "int", "str", "{}"],
)
@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json"])
def test_m05_a_body_that_is_no_document_is_refused(
    world: SignedWorld, device: Device, name: str, body: bytes
) -> None:
    refuses(device, {**world.files, name: body}, "E_SIG", "E_SIZE")


@pytest.mark.attack("M04")
def test_m04_an_endless_document_is_refused(world: SignedWorld, device: Device) -> None:
    for name in ("2.root.json", "timestamp.json"):
        refuses(device, {**world.files, name: b" " * 10_000_000}, "E_SIZE")


@pytest.mark.attack("M52")
def test_m52_a_65th_rotation_of_the_root_is_not_followed(
    world: SignedWorld, device: Device
) -> None:
    for _ in range(66):
        world.sign_root()
    assert device.refresh(world.files).versions["root"] == 65


@pytest.mark.attack("M52")
def test_m52_more_files_than_a_family_may_list_are_refused(
    world: SignedWorld, device: Device
) -> None:
    world.publish(*(release(f"r{n}") for n in range(1, TARGETS_PER_FAMILY_MAX + 2)))
    refuses(device, world.files, "E_SIZE")


@pytest.mark.attack("M52")
def test_m52_a_family_hidden_behind_nine_delegations_is_refused(
    world: SignedWorld, device: Device
) -> None:
    """Also after it was seen: what ngclient does not reach must not be read from the cache."""
    device.refresh(world.files)
    targets = world.targets()
    assert targets.delegations is not None and targets.delegations.roles is not None
    hidden = dict(targets.delegations.roles)
    before = {
        f"decoy-{n}": DelegatedRole(f"decoy-{n}", [], 1, False, [f"{MODEL}/*"]) for n in range(9)
    }
    targets.delegations.roles = {**before, **hidden}
    world.put("targets", targets)
    world.sign_online()
    refuses(device, world.files, "E_SIG")


def test_a_family_that_the_walk_passes_by_is_not_taken_from_the_cache(
    world: SignedWorld, device: Device
) -> None:
    """Top-level targets answers for the path, so ngclient never asks for the new family."""
    device.refresh(world.files)
    targets = world.targets()
    targets.targets = {f"{MODEL}/any.model": next(iter(world.entries.values()))}
    world.put("targets", targets)
    world.publish(release("r2", status="withdrawn"))
    refuses(device, world.files, "E_MIX")
    device.wipe_cache()
    refuses(device, world.files, "E_NOT_RELEASED")


def test_a_revoked_family_key_is_not_honoured_from_the_cache(
    world: SignedWorld, device: Device
) -> None:
    device.refresh(world.files)
    world.signers[FAMILY] = [signer("family anew")]
    targets = world.targets()
    targets.targets = {f"{MODEL}/any.model": next(iter(world.entries.values()))}
    world.put("targets", targets)
    world.sign_online()
    refuses(device, world.files, "E_SIG")


def test_targets_without_the_family_or_the_director_is_refused(
    world: SignedWorld, device: Device
) -> None:
    for name in ("director", FAMILY):
        targets = world.targets()
        assert targets.delegations is not None and targets.delegations.roles is not None
        del targets.delegations.roles[name]
        world.put("targets", targets)
        world.sign_online()
        refuses(device, world.files, "E_NOT_RELEASED", "E_SIG")
    world.put("targets", Targets(world.next_version("targets"), None, NOW + DAY))
    world.sign_online()
    refuses(device, world.files, "E_NOT_RELEASED", "E_SIG")


def test_a_role_that_names_a_missing_key_is_refused(world: SignedWorld, device: Device) -> None:
    root = world.root()
    root.roles["snapshot"].keyids.append("00" * 32)
    world.put("root", root)
    refuses(device, world.files, "E_SIG")


def test_a_timestamp_that_lives_too_long_is_refused(world: SignedWorld, device: Device) -> None:
    world.documents["timestamp"].expires = NOW + timedelta(days=11)
    world.put("timestamp", world.documents["timestamp"])
    refuses(device, world.files, "E_CLOCK")


@pytest.mark.attack("M45")
@pytest.mark.parametrize("size", [0, 100])
def test_m45_a_torn_cache_is_refused_or_healed_and_never_crashes(
    world: SignedWorld, device: Device, size: int
) -> None:
    device.refresh(world.files)
    for file in sorted(device.cache.rglob("*.json")):
        whole = file.read_bytes()
        file.write_bytes(whole[:size])
        assert device.refresh(world.files).family.version == 1
