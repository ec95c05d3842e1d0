"""However much one device has to say, it takes a bounded place."""

import hashlib
from typing import Any

import pytest
from sqlalchemy import func, select

from service.db.rollout_tables import CanaryReport, Event
from service.fleet import reports
from tests.service.phone import Phone
from tests.service.world import BASE, World, digest


def count(world: World, table: Any) -> int:
    with world.app.state.database.reader() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def again(phone: Phone, plan: Any, attempt: int) -> Any:
    canary = plan["canary"]
    name = f"{plan['release']}|{phone.id}|{canary['set']}|{canary['shard']}|{attempt}"
    named = hashlib.sha256(name.encode()).hexdigest()[:32]
    return phone.pair(plan, 10, 90, attempt=attempt, report_id=named)


@pytest.mark.attack("T04")
def test_reports_that_count_nothing_are_kept_up_to_a_few(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "REPORTS_KEPT_MAX", 3)
    world.ready()
    phone = world.enroll("s1", runs=digest(BASE))
    plan = phone.offered()
    said = [again(phone, plan, attempt) for attempt in range(1, 7)]
    assert [reply.json()["result"] for reply in said] == ["counted"] + ["repeat"] * 5
    assert all(reply.status_code == 202 for reply in said) and count(world, CanaryReport) == 3


@pytest.mark.attack("T04")
def test_of_what_a_device_says_it_does_the_newest_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "EVENTS_KEPT_MAX", 3)
    loud, quiet = (world.enroll(name, runs=digest(BASE)) for name in ("s1", "s2"))
    quiet.say("note", reason="hello")
    for _ in range(6):
        loud.say("note", reason="hello")
    loud.seq = 2  # and what comes again is known all the same
    assert loud.say("note").json() == {"acknowledged": 6}
    assert [event["seq"] for event in world.ok("GET", f"/v1/devices/{loud.id}")["events"]] == [
        6,
        5,
        4,
    ]
    assert count(world, Event) == 4
