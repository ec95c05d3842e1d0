"""Metadata attacks on a device, by the ids of the attack list (M07 ...)."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from tests.unit.signed_world import (
    DAY,
    FAMILY,
    NOW,
    TOP,
    Device,
    SignedWorld,
    order,
    refuses,
    release,
    signer,
)
from trust import sign
from trust.errors import Untrusted
from trust.floors import Floors
from trust.verify import check_transition


@pytest.fixture
def world() -> SignedWorld:
    return SignedWorld()


@pytest.fixture
def device(world: SignedWorld, tmp_path: Path) -> Device:
    return Device(tmp_path, world.pinned)


def test_a_bundle_an_order_and_a_transition_are_verified(
    world: SignedWorld, device: Device
) -> None:
    trusted = device.refresh(world.files)
    assert trusted.versions == dict.fromkeys((*TOP, FAMILY), 1)
    assert trusted.expires == NOW + 3 * DAY
    assert sorted(trusted.family.releases) == ["r1", "r2"]
    told = device.obey(trusted, order(release("r2")))
    running = release("r1").sha256
    chosen = check_transition(trusted, told, NOW, running_sha256=running, hardware="h1")
    assert chosen == release("r2")


def test_a_next_bundle_may_bring_only_what_changed(world: SignedWorld, device: Device) -> None:
    device.refresh(world.files)
    first = set(world.files.values())
    world.publish(release("r3"))
    changed = {name: body for name, body in world.files.items() if body not in first}
    assert len(changed) == 3
    assert "r3" in device.refresh(changed).family.releases


def test_an_order_that_was_obeyed_raises_the_floors(world: SignedWorld, device: Device) -> None:
    device.obey(device.refresh(world.files), order(release("r2"), seq=7))
    assert (device.floors.order_seq, device.floors.time) == (7, NOW)


@pytest.mark.attack("M07")
def test_m07_a_timestamp_of_a_foreign_key_is_refused(world: SignedWorld, device: Device) -> None:
    world.put("timestamp", world.documents["timestamp"], [signer("mallory")])
    refuses(device, world.files, "E_SIG")


@pytest.mark.attack("M07")
def test_m07_a_foreign_signature_under_the_right_key_id_is_refused(
    world: SignedWorld, device: Device
) -> None:
    mallory = CryptoSigner.generate_ed25519()
    mallory.public_key.keyid = signer("timestamp").public_key.keyid
    world.put("timestamp", world.documents["timestamp"], [mallory])
    refuses(device, world.files, "E_SIG")


@pytest.mark.parametrize("sig", [5, None, {}, "zz", "", "é"])
@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", f"1.{FAMILY}.json"])
def test_a_signature_that_is_no_signature_is_refused(
    world: SignedWorld, device: Device, name: str, sig: Any
) -> None:
    document = json.loads(world.files[name])
    document["signatures"][0]["sig"] = sig
    refuses(device, {**world.files, name: json.dumps(document).encode()}, "E_SIG", "E_MIX")


@pytest.mark.attack("M08")
def test_m08_an_old_snapshot_under_the_new_name_is_refused(
    world: SignedWorld, device: Device
) -> None:
    old = world.bodies["snapshot"]
    world.publish(release("r3"))
    refuses(device, {**world.files, "2.snapshot.json": old}, "E_MIX")


@pytest.mark.attack("M09")
def test_m09_an_old_family_with_a_new_snapshot_is_refused(
    world: SignedWorld, device: Device
) -> None:
    old = world.bodies[FAMILY]
    world.publish(release("r3"))
    refuses(device, {**world.files, f"2.{FAMILY}.json": old}, "E_MIX")


@pytest.mark.attack("M10", "M11")
@pytest.mark.parametrize("wiped", [False, True])
def test_m10_m11_an_older_state_is_refused_with_and_without_the_cache(
    world: SignedWorld, device: Device, wiped: bool
) -> None:
    old = dict(world.files)
    world.publish(release("r3"))
    device.refresh(world.files)
    if wiped:
        device.wipe_cache()
    refuses(device, old, "E_ROLLBACK_META")
    assert "r3" in device.refresh(world.files).family.releases


@pytest.mark.attack("M12")
def test_m12_a_device_that_lost_everything_is_a_new_device(
    world: SignedWorld, device: Device
) -> None:
    old = dict(world.files)
    world.publish(release("r3"))
    device.refresh(world.files)
    device.wipe_cache()
    device.floors = Floors()
    assert "r3" not in device.refresh(old).family.releases


@pytest.mark.attack("M13")
@pytest.mark.parametrize("role", [*TOP, FAMILY])
def test_m13_an_expired_document_of_any_role_is_refused(
    world: SignedWorld, device: Device, role: str
) -> None:
    world.documents[role].expires = NOW
    world.put(role, world.documents[role])
    if role in ("targets", FAMILY):
        world.sign_online()
    elif role == "snapshot":
        world.sign_timestamp()
    if role == "root":
        device.pinned = world.pinned
    refuses(device, world.files, "E_FREEZE")


@pytest.mark.attack("M14")
def test_m14_a_clock_set_back_does_not_revive_what_expired(
    world: SignedWorld, device: Device
) -> None:
    old = dict(world.files)
    world.now = later = NOW + 100 * DAY
    world.publish(release("r3"))
    fresh = order(release("r3"), issued=later, expires=later + DAY)
    device.obey(device.refresh(world.files, later), fresh, later)
    device.wipe_cache()
    device.floors = Floors(time=device.floors.time)  # the time floor alone
    refuses(device, old, "E_FREEZE", now=NOW - 730 * DAY)


@pytest.mark.attack("M15")
def test_m15_a_first_boot_in_1970_judges_by_the_time_of_the_build(
    device: Device, world: SignedWorld
) -> None:
    for name in (*TOP, FAMILY):
        world.documents[name].expires = datetime(2025, 12, 31, tzinfo=UTC)
    world.sign_root()
    for name in ("targets", FAMILY):
        world.put(name, world.documents[name])
    world.now = datetime(2025, 12, 1, tzinfo=UTC)
    world.sign_online()
    refuses(device, world.files, "E_FREEZE", now=datetime(1970, 1, 1, tzinfo=UTC))


@pytest.mark.attack("M15")
def test_m15_a_clock_of_1970_is_said_and_not_mistaken_for_an_attack_of_dates_to_come(
    device: Device, world: SignedWorld
) -> None:
    refuses(device, world.files, "E_CLOCK", now=datetime(1970, 1, 1, tzinfo=UTC))
    device.refresh(world.files)


@pytest.mark.attack("M16")
def test_m16_a_clock_of_2099_is_refused_and_once_repaired_all_is_well(
    world: SignedWorld, device: Device
) -> None:
    refuses(device, world.files, "E_FREEZE", now=datetime(2099, 1, 1, tzinfo=UTC))
    trusted = device.refresh(world.files)
    with pytest.raises(Untrusted, match="E_FREEZE"):
        device.obey(trusted, order(release("r2")), datetime(2099, 1, 1, tzinfo=UTC))
    device.obey(trusted, order(release("r2")))
    assert device.floors.time == NOW


@pytest.mark.attack("M18", "M49")
def test_m18_m49_nothing_new_for_ever_ends_in_a_freeze(world: SignedWorld, device: Device) -> None:
    refuses(device, {}, "E_MIX")  # a new device has nothing to fall back on
    device.refresh(world.files)
    device.refresh({})
    refuses(device, {}, "E_FREEZE", now=NOW + 3 * DAY)


@pytest.mark.attack("M49")
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", FAMILY])
def test_m49_a_bundle_without_one_document_is_refused(
    world: SignedWorld, device: Device, role: str
) -> None:
    withheld = {name: b for name, b in world.files.items() if not name.endswith(f"{role}.json")}
    assert len(withheld) == len(world.files) - 1
    refuses(device, withheld, "E_MIX")


@pytest.mark.attack("M29")
@pytest.mark.parametrize("wiped", [False, True])
def test_m29_stolen_online_keys_cannot_bring_an_old_family_back(
    world: SignedWorld, device: Device, wiped: bool
) -> None:
    old = world.documents[FAMILY], world.bodies[FAMILY]
    world.publish(release("r2", status="withdrawn"))
    device.refresh(world.files)
    world.documents[FAMILY], world.bodies[FAMILY] = old
    world.files[f"1.{FAMILY}.json"] = old[1]
    world.sign_online()
    if wiped:
        device.wipe_cache()
    refuses(device, world.files, "E_ROLLBACK_META")


@pytest.mark.attack("M30")
def test_m30_where_the_withdrawal_was_never_seen_the_old_family_lives_until_it_expires(
    world: SignedWorld, device: Device
) -> None:
    """The window of a thief of all online keys: a family's life, and not a second more."""
    life = sign.LIFETIME["family"]
    device.refresh(world.files)  # The next family, which withdraws r2, is hidden from it.
    for after in (life - timedelta(seconds=1), life):
        world.now = NOW + after
        world.sign_online()
        told = order(release("r2"), seq=2, issued=world.now, expires=world.now + DAY)
        if after < life:
            trusted = device.refresh(world.files, world.now)
            assert trusted.family.releases["r2"].status == "active"
            device.obey(trusted, told, world.now)
        else:
            refuses(device, world.files, "E_FREEZE", now=world.now)
