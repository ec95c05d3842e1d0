"""Whoever took the server and its database writes any rollout; the publisher keeps its limits."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from sqlalchemy import delete, update

from service.db.rollout_tables import Cohort, Deployment, Rollout, Stage
from service.db.tables import Device, DeviceModel
from service.engine.approvals import plan_of
from service.signing import orders
from service.signing.record import Record
from tests.service import tally
from tests.service.phone import Phone
from tests.service.publishing import (
    approve,
    forge_rollout,
    limit,
    order_of,
    ordered,
    troubles,
    write,
)
from tests.service.test_audit import told
from tests.service.test_freshness import gauges, ready
from tests.service.world import BASE, World, digest
from trust.approval import approval, plan_digest

ANNE, BEN = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
UNAPPROVED, TOO_FAST = {("unapproved", "director")}, {("too_fast", "director")}
NEW = b"the third model"
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def nothing_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes by SQL alone counts nothing."""
    monkeypatch.setattr(tally, "check", lambda database: None)


def poll(phones: Sequence[Phone]) -> None:
    for phone in phones:
        phone.etag = ""
        phone.poll()


@pytest.mark.attack("A24")
def test_a_rollout_that_was_started_by_sql_gets_no_order_beyond_the_share(
    pinned: World, tmp_path: Path
) -> None:
    limit(pinned, tmp_path, BEN, server=False, approval_above_bp=2500)
    forge_rollout(pinned, pinned.fleet(20, digest(BASE)))
    (problem,) = pinned.work()
    assert problem["trouble"] == "unapproved"
    assert problem["detail"] == (
        "r2 of asr by rollout forged: nobody approved what it is now; without, 25 % of the "
        "devices is the most"
    )
    for _ in range(3):
        pinned.now += timedelta(seconds=20)
        assert pinned.work() == [problem]
    assert ordered(pinned) == 5
    assert ready(pinned) == {"status": "degraded", "reasons": ["unapproved"]}
    assert gauges(pinned)["fleetdiff_publisher_troubles"] == 1
    (entry,) = told(pinned, "publisher.blocked")
    assert (entry["result"], entry["actor"]) == ("denied", "publisher")
    assert entry["details"] == problem


@pytest.mark.attack("A24")
def test_many_small_rollouts_reach_no_more_than_one(pinned_sqlite: World, tmp_path: Path) -> None:
    world = pinned_sqlite
    limit(world, tmp_path, BEN, server=False, approval_above_bp=2500)
    phones = world.fleet(20, digest(BASE))
    for number in range(5):
        forge_rollout(world, phones[4 * number : 4 * number + 4], f"forged{number}")
        world.work()
    assert troubles(world.work()) == UNAPPROVED and ordered(world) == 5
    record = tmp_path / "record.db"
    world.publisher = replace(world.publisher, record=Record(record))  # started again
    assert troubles(world.work()) == UNAPPROVED and ordered(world) == 5


def self_approved(rollout: Rollout) -> Any:
    return [{"by": "ben", "plan": plan_digest(plan_of(rollout)), "keyid": None, "sig": None}]


def signed_by(signer: CryptoSigner, keyid: str | None = None, **other: Any) -> Any:
    def forged(rollout: Rollout) -> Any:
        signature = approval(plan_of(rollout) | other).sign(signer)
        return [{"by": "ben", "keyid": keyid or signature.keyid, "sig": signature.signature}]

    return forged


BEN_ID = BEN.public_key.keyid
FORGED: dict[str, Any] = {
    "a name": self_approved,
    "another key": signed_by(ANNE),
    "another key under the approver's name": signed_by(ANNE, BEN_ID),
    "another rollout": signed_by(BEN, rollout="r0"),
    "fewer devices": signed_by(BEN, devices=1),
    "another release": signed_by(BEN, release="r1"),
    "another gate": signed_by(BEN, gate={"alpha_halt": 0.1}),
    "other stages": signed_by(BEN, stages=[]),
    "the way back": signed_by(BEN, on_halt="revert"),
    "no signature": lambda _: [{"keyid": BEN_ID, "sig": ""}],
    "no hex": lambda _: [{"keyid": BEN_ID, "sig": "zz"}],
    "a number": lambda _: [{"keyid": BEN_ID, "sig": 5}],
    "no list": lambda _: {"keyid": BEN_ID},
    "no entries": lambda _: ["yes", 1],
    "true": lambda _: True,
}


@pytest.mark.attack("A24")
@pytest.mark.parametrize("kind", FORGED)
def test_an_approval_that_was_written_by_sql_is_none(
    pinned_sqlite: World, tmp_path: Path, kind: str
) -> None:
    world = pinned_sqlite
    limit(world, tmp_path, BEN, server=False, approval_above_bp=0)
    forge_rollout(world, world.fleet(3, digest(BASE)))
    with world.app.state.database.writer() as session:
        rollout = session.get_one(Rollout, "forged")
        rollout.approvals = FORGED[kind](rollout)
    assert troubles(world.work()) == UNAPPROVED and ordered(world) == 0


@pytest.mark.attack("A24")
def test_without_keys_a_self_approval_is_none_and_the_word_of_another_is_believed(
    pinned_sqlite: World, tmp_path: Path
) -> None:
    """As docs/security.md says: only keys hold against who writes to the database."""
    world = pinned_sqlite
    limit(world, tmp_path, server=False, approval_above_bp=0)
    forge_rollout(world, world.fleet(3, digest(BASE)))
    for maker, orders_given in (("ben", 0), ("anne", 3)):
        with world.app.state.database.writer() as session:
            rollout = session.get_one(Rollout, "forged")
            rollout.created_by = maker
            rollout.approvals = self_approved(rollout)
        world.work()
        assert ordered(world) == orders_given


CHANGES: dict[str, Any] = {
    "all at once": update(Stage).values(share_bp=10_000),
    "no soak": update(Stage).values(soak_s=0),
    "one stage less": delete(Stage).filter_by(number=1),
    "another gate": update(Rollout).values(gate={}),
    "another end": update(Rollout).values(on_halt="keep"),
    "more devices": update(Rollout).values(devices=1_000_000),
    "another cohort": update(Cohort).values(filter={"hardware": ["h2"]}),
    "another release": update(Rollout).values(release_id=1),
}


@pytest.mark.attack("A24")
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_the_approval_voids_it(
    pinned_sqlite: World, tmp_path: Path, change: str
) -> None:
    world, phones = approved(pinned_sqlite, tmp_path, 3)
    write(world, CHANGES[change])
    assert troubles(world.work()) == UNAPPROVED
    assert ordered(world) == 0 and all(order_of(world, phone) is None for phone in phones)


def approved(world: World, folder: Path, count: int) -> tuple[World, list[Phone]]:
    """Devices that wait for an order of a rollout that Ben approved with his key."""
    limit(world, folder, BEN, approval_above_bp=0)
    phones = world.fleet(count, digest(BASE))
    stages = [{"share_bp": 1000, "soak_s": 3600}, {"share_bp": 10_000}]
    rollout = world.start_rollout("r2", "all", stages=stages)
    token = world.token_with("rollouts:approve", "rollouts:read", name="ben")
    assert approve(world, rollout, token, BEN).json()["state"] == "running"
    write(world, update(Rollout).values(stage=2), update(Stage).values(state="running"))
    poll(phones)
    return world, phones


@pytest.mark.attack("A24")
def test_what_was_approved_in_stages_is_not_reached_at_once_whatever_stage_the_rows_say(
    pinned: World, tmp_path: Path
) -> None:
    world, _ = approved(pinned, tmp_path, 40)
    (problem,) = world.work()
    assert problem["trouble"] == "too_fast" and "opens at 2026-06-01 13:0" in problem["detail"]
    assert ordered(world) == 10  # a tenth of forty, and what a draw may add to it
    world.now += HOUR - timedelta(seconds=1)
    assert troubles(world.work()) == TOO_FAST and ordered(world) == 10
    world.now += timedelta(seconds=1)
    assert world.work() == [] and ordered(world) == 40


@pytest.mark.attack("A24")
def test_a_share_raised_to_all_at_once_takes_the_steps_of_the_limits_all_the_same(
    pinned_sqlite: World, tmp_path: Path
) -> None:
    world = pinned_sqlite
    numbers = {"first_share_bp": 1000, "step_share_bp": 2000, "soak_s": 3600}
    limit(world, tmp_path, server=False, **numbers)
    forge_rollout(world, world.fleet(40, digest(BASE)))
    for reached in (10, 23, 34, 40):
        for _ in range(2):
            world.work()
            assert ordered(world) == reached
        expected = TOO_FAST if reached < 40 else set()
        assert troubles(world.work()) == expected
        world.now += HOUR


@pytest.mark.attack("A24")
def test_devices_that_were_made_up_or_hidden_raise_no_share(
    pinned_sqlite: World, tmp_path: Path
) -> None:
    world = pinned_sqlite
    numbers = {"approval_above_bp": 2500, "fleet_devices_max": 8}
    limit(world, tmp_path, BEN, server=False, **numbers)
    forge_rollout(world, world.fleet(40, digest(BASE)))
    assert troubles(world.work()) == UNAPPROVED and ordered(world) == 2
    write(world, update(Device).values(status="quarantined"))
    assert troubles(world.work()) == UNAPPROVED and ordered(world) == 2


@pytest.mark.attack("A24")
def test_a_fleet_that_was_emptied_opens_no_step(pinned_sqlite: World, tmp_path: Path) -> None:
    world = pinned_sqlite
    limit(world, tmp_path, server=False, first_share_bp=1000, step_share_bp=100, soak_s=3600)
    forge_rollout(world, world.fleet(20, digest(BASE)))
    write(world, update(Device).values(status="quarantined"))
    assert troubles(world.work()) == TOO_FAST and ordered(world) == 1


def test_the_way_back_takes_neither_approval_nor_time(pinned_sqlite: World, tmp_path: Path) -> None:
    world, phones = approved(pinned_sqlite, tmp_path, 3)
    world.work()
    world.now += HOUR
    assert world.work() == [] and ordered(world) == 3
    for phone in phones:
        phone.etag, phone.runs = "", phone.offered()["sha256"]
    poll(phones)
    (rollout,) = world.ok("GET", "/v1/rollouts")["items"]
    world.ok("POST", f"/v1/rollouts/{rollout['id']}/halt")
    poll(phones)
    assert world.work() == []
    assert [phone.offered()["release"] for phone in phones] == ["r1"] * 3


@pytest.mark.attack("A24")
def test_a_device_that_this_publisher_sent_nowhere_comes_back_from_nowhere(
    pinned_sqlite: World, tmp_path: Path
) -> None:
    """Rows that say that it runs a later release make no way back of a way forward."""
    world = pinned_sqlite
    world.publish("r3", NEW, after="r2")
    limit(world, tmp_path, server=False, approval_above_bp=0)
    forge_rollout(world, world.fleet(3, digest(BASE)))
    write(world, update(DeviceModel).values(running_sha256=digest(NEW)))
    write(world, update(Deployment).values(direction="back"))
    assert troubles(world.work()) == UNAPPROVED and ordered(world) == 0


def test_an_order_is_renewed_though_no_further_device_is_reached(
    pinned_sqlite: World, tmp_path: Path
) -> None:
    world = pinned_sqlite
    limit(world, tmp_path, server=False, approval_above_bp=3400)
    phones = world.fleet(3, digest(BASE))
    forge_rollout(world, phones)
    assert troubles(world.work()) == UNAPPROVED and ordered(world) == 1
    world.now += timedelta(days=4)
    assert troubles(world.work()) == UNAPPROVED and ordered(world) == 1
    assert [order.seq for phone in phones if (order := order_of(world, phone))] == [2]


def test_what_may_not_be_reached_bars_nobody_else(
    pinned_sqlite: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = pinned_sqlite
    monkeypatch.setattr(orders, "ORDERS_PER_GOAL_MAX", 2)
    world.publish("r3", NEW)
    limit(world, tmp_path, server=False, approval_above_bp=2000)
    phones = world.fleet(10, digest(BASE))
    forge_rollout(world, phones[:6])
    forge_rollout(world, phones[6:8], "honest", to="r3")
    world.work()
    assert troubles(world.work()) == UNAPPROVED and ordered(world) == 4
