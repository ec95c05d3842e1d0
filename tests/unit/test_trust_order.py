"""Orders: what a device obeys, what it refuses, and how strictly an order is read."""

import json
from dataclasses import replace
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
    an_order,
    digest,
    disobeys,
    envelope,
    order,
    release,
    signer,
)
from trust.errors import Untrusted
from trust.order import PAYLOAD_TYPE, order_payload
from trust.roles import Release
from trust.verify import Trusted, check_transition

R1, R2 = release("r1"), release("r2")


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path, b"")


@pytest.fixture
def trusted(device: Device) -> Trusted:
    return trusted_by(device, R1, R2)


def trusted_by(device: Device, *releases: Release) -> Trusted:
    world = SignedWorld(*releases)
    device.pinned = world.pinned
    return device.refresh(world.files)


@pytest.mark.attack("M19")
def test_m19_a_superseded_order_is_refused(device: Device, trusted: Trusted) -> None:
    device.obey(trusted, order(R2, seq=5))
    disobeys(device, trusted, order(R2, seq=4), "E_REPLAY")


@pytest.mark.attack("M20")
def test_m20_two_orders_with_one_number_are_refused_and_the_same_one_again_is_not(
    device: Device, trusted: Trusted
) -> None:
    device.obey(trusted, order(R2, seq=5))
    floors = device.floors
    device.obey(trusted, order(R2, seq=5))
    assert device.floors == floors
    disobeys(device, trusted, order(R1, seq=5), "E_REPLAY")


@pytest.mark.attack("M21")
@pytest.mark.parametrize("more", [{"device": "d2"}, {"device": ""}, {"model": "tts"}])
def test_m21_an_order_for_somebody_else_is_refused(
    device: Device, trusted: Trusted, more: dict[str, Any]
) -> None:
    disobeys(device, trusted, order(R2, **more), "E_AUD")


@pytest.mark.attack("M23")
@pytest.mark.parametrize("role", [*TOP, FAMILY, "mallory"])
def test_m23_an_order_signed_in_another_role_is_refused(
    device: Device, trusted: Trusted, role: str
) -> None:
    disobeys(device, trusted, order(R2, by=signer(role)), "E_SIG")
    posing = CryptoSigner(signer(role)._private_key)
    posing.public_key.keyid = signer("director").public_key.keyid
    disobeys(device, trusted, order(R2, by=posing), "E_SIG")


@pytest.mark.attack("M24")
def test_m24_another_payload_type_of_the_right_key_is_refused(
    device: Device, trusted: Trusted
) -> None:
    payload = order_payload(an_order(R2))
    for kind in ("application/vnd.fleetdiff.membership+json", "", PAYLOAD_TYPE + " "):
        disobeys(device, trusted, envelope(payload, signer("director"), kind), "E_SIG")
    relabelled = json.loads(envelope(payload, signer("director"), "text/plain"))
    relabelled["payloadType"] = PAYLOAD_TYPE
    disobeys(device, trusted, json.dumps(relabelled).encode(), "E_SIG")


@pytest.mark.attack("M25")
def test_m25_an_order_of_a_revoked_director_is_refused(device: Device) -> None:
    world = SignedWorld()
    device.pinned = world.pinned
    device.obey(device.refresh(world.files), order(R2))
    world.signers["director"] = [signer("director anew")]
    world.sign_targets()
    world.sign_online()
    trusted = device.refresh(world.files)
    disobeys(device, trusted, order(R2, seq=2), "E_SIG")
    device.obey(trusted, order(R2, by=signer("director anew"), seq=2))


@pytest.mark.attack("M19", "M25")
def test_a_number_far_ahead_by_a_stolen_director_counts_until_its_key_is_replaced(
    device: Device,
) -> None:
    """Otherwise one stolen key locks a device out for good: no publisher counts that far."""
    world = SignedWorld()
    device.pinned = world.pinned
    device.obey(device.refresh(world.files), order(R1, seq=(1 << 53) - 1))
    world.signers["director"].append(signer("director anew"))  # both: the old number still counts
    world.sign_targets()
    world.sign_online()
    honest = order(R2, by=signer("director anew"), seq=2)
    disobeys(device, device.refresh(world.files), honest, "E_REPLAY")
    world.signers["director"] = [signer("director anew")]
    world.sign_targets()
    world.sign_online()
    trusted = device.refresh(world.files)
    device.obey(trusted, honest)
    disobeys(device, trusted, order(R1, by=signer("director anew"), seq=1), "E_REPLAY")


def test_an_expired_order_and_one_that_lives_too_long_are_refused(
    device: Device, trusted: Trusted
) -> None:
    disobeys(device, trusted, order(R2, expires=NOW), "E_FREEZE")
    disobeys(device, trusted, order(R2, expires=NOW + 14 * DAY + timedelta(seconds=1)), "E_CLOCK")
    device.obey(trusted, order(R2, expires=NOW + 14 * DAY))


@pytest.mark.attack("M41")
@pytest.mark.parametrize("more", [{"root": 2}, {"timestamp": 2}, {"root": 2, "timestamp": 2}])
def test_m41_an_order_that_knows_of_metadata_that_is_withheld_is_refused(
    device: Device, trusted: Trusted, more: dict[str, Any]
) -> None:
    disobeys(device, trusted, order(R2, **more), "E_FREEZE")
    device.obey(trusted, order(R2))


@pytest.mark.attack("M17")
def test_m17_an_order_dated_far_ahead_does_not_move_the_time_floor(
    device: Device, trusted: Trusted
) -> None:
    device.obey(trusted, order(R2, issued=datetime(2079, 1, 1, tzinfo=UTC)))
    assert device.floors.time == NOW


def test_an_old_order_does_not_take_the_time_floor_back(device: Device, trusted: Trusted) -> None:
    device.obey(trusted, order(R2))
    device.obey(trusted, order(R2, seq=2, issued=NOW - 90 * DAY))
    assert device.floors.time == NOW


def transition(trusted: Trusted, to: Release, running: str, **more: Any) -> Release:
    hardware = more.pop("hardware", "h1")
    now = more.pop("now", NOW)
    needs = {name: more.pop(name) for name in ("agent", "formats") if name in more}
    told = an_order(to, **more)
    return check_transition(trusted, told, now, running_sha256=running, hardware=hardware, **needs)


@pytest.mark.attack("M26")
def test_m26_a_downgrade_without_an_edge_is_refused(trusted: Trusted) -> None:
    with pytest.raises(Untrusted, match="E_DOWNGRADE"):
        transition(trusted, R1, running=R2.sha256)


@pytest.mark.attack("M27")
def test_m27_a_downgrade_along_a_signed_edge_is_allowed_and_only_from_there(
    device: Device,
) -> None:
    back = replace(R1, rollback_from=("r2",))
    trusted = trusted_by(device, back, R2, release("r3"))
    assert transition(trusted, back, running=R2.sha256) == back
    with pytest.raises(Untrusted, match="E_DOWNGRADE"):
        transition(trusted, back, running=release("r3").sha256)


@pytest.mark.attack("M27")
def test_m27_a_way_back_ends_when_it_was_signed_to_end(device: Device) -> None:
    until = int((NOW + DAY).timestamp())
    back = replace(R1, rollback_from=("r2",), rollback_until=until)
    trusted = trusted_by(device, back, R2)
    last = NOW + DAY - timedelta(seconds=1)
    assert transition(trusted, back, running=R2.sha256, now=last) == back
    with pytest.raises(Untrusted, match="E_DOWNGRADE"):
        transition(trusted, back, running=R2.sha256, now=NOW + DAY)
    assert transition(trusted, R2, running=back.sha256, now=NOW + DAY) == R2


@pytest.mark.attack("M27")
def test_m27_an_edge_that_the_next_family_no_longer_signs_is_gone(
    device: Device,
) -> None:
    """The end of a way back is the next version of the family, at the latest its expiry."""
    world = SignedWorld(replace(R1, rollback_from=("r2",)), R2)
    device.pinned = world.pinned
    device.refresh(world.files)
    world.publish(R1)
    with pytest.raises(Untrusted, match="E_DOWNGRADE"):
        transition(device.refresh(world.files), R1, running=R2.sha256)


@pytest.mark.attack("M28")
def test_m28_a_withdrawn_a_retired_and_a_removed_release_are_refused(device: Device) -> None:
    for status in ("withdrawn", "retired"):
        trusted = trusted_by(device, R1, replace(R2, status=status))
        device.wipe_cache()
        with pytest.raises(Untrusted, match="E_WITHDRAWN"):
            transition(trusted, R2, running=R1.sha256)
    with pytest.raises(Untrusted, match="E_NOT_RELEASED"):
        transition(trusted, release("r3"), running=R1.sha256)


@pytest.mark.attack("M36")
def test_m36_a_release_of_another_family_is_refused(device: Device, trusted: Trusted) -> None:
    elsewhere = an_order(R2, model="tts")
    disobeys(device, trusted, envelope(order_payload(elsewhere), signer("director")), "E_AUD")


@pytest.mark.attack("M38")
def test_m38_a_release_for_other_hardware_is_refused(device: Device) -> None:
    made_for = replace(R2, hardware=("h2", "h3"))
    trusted = trusted_by(device, R1, made_for)
    with pytest.raises(Untrusted, match="E_INCOMPAT"):
        transition(trusted, made_for, running=R1.sha256)
    assert transition(trusted, made_for, running=R1.sha256, hardware="h3") == made_for


@pytest.mark.attack("M38")
def test_m38_a_release_in_a_format_that_the_engine_does_not_read_is_refused(
    trusted: Trusted,
) -> None:
    with pytest.raises(Untrusted, match="E_INCOMPAT"):
        transition(trusted, R2, running=R1.sha256, formats=("gguf", "onnx"))
    assert transition(trusted, R2, running=R1.sha256, formats=("gguf", R2.format)) == R2


@pytest.mark.attack("M38")
def test_m38_a_release_for_a_newer_agent_is_refused(device: Device) -> None:
    newer = replace(R2, min_agent="1.10.0")
    trusted = trusted_by(device, R1, newer)
    for agent in ("1.9.99", "0.1.0", "1.10", "dev", ""):
        with pytest.raises(Untrusted, match=r"E_INCOMPAT.*asks for agent 1\.10\.0"):
            transition(trusted, newer, running=R1.sha256, agent=agent)
    assert transition(trusted, newer, running=R1.sha256, agent="1.10.0") == newer


@pytest.mark.attack("M50")
def test_m50_an_order_that_differs_from_the_family_is_refused(trusted: Trusted) -> None:
    with pytest.raises(Untrusted, match="E_EQUIVOCATION"):
        transition(trusted, R2, running=R1.sha256, sha256=digest("other bytes"))


def test_bytes_that_nobody_released_may_become_any_release(trusted: Trusted) -> None:
    assert transition(trusted, R1, running=digest("made by hand")) == R1
    assert transition(trusted, R1, running="") == R1
