"""Whatever may change the answer to a poll is looked at in the database, at once."""

from collections.abc import Callable
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import update

from service.app import flush_seen
from service.core.access import SCOPES
from service.db import changes
from service.db.rollout_tables import Rollout
from service.db.session import Database
from service.db.tables import Device
from service.settings import Settings
from tests.service.memory import Memory, settle, updated
from tests.service.phone import Phone
from tests.service.programs import START_S_MAX, eventually
from tests.service.world import BASE, BETTER, World, digest, refused


def change_by_hand(world: World, phone: Phone, **values: Any) -> None:
    with world.app.state.database.writer() as session:
        session.execute(update(Device).filter_by(id=phone.id).values(values))


def deployment_of(world: World, phone: Phone) -> str:
    found = world.ok("GET", f"/v1/devices/{phone.id}")["deployments"]
    return str(found[0]["id"])


CHANGES: dict[str, Callable[[World, Phone, str], object]] = {
    "revoked": lambda w, p, _: w.ok("PATCH", f"/v1/devices/{p.id}", json={"status": "revoked"}),
    "quarantined": lambda w, p, _: w.ok(
        "PATCH", f"/v1/devices/{p.id}", json={"status": "quarantined"}
    ),
    "tagged": lambda w, p, _: w.ok("PATCH", f"/v1/devices/{p.id}", json={"tags": {"a": "b"}}),
    "paused": lambda w, _, r: w.ok("POST", f"/v1/rollouts/{r}/pause"),
    "halted": lambda w, _, r: w.ok("POST", f"/v1/rollouts/{r}/halt", json={"reason": "test"}),
    "published": lambda w, _, __: w.publish("r3", b"the best model" * 100, after="r2"),
    "by hand": lambda w, p, _: change_by_hand(w, p, hardware="other"),
    "an event": lambda w, p, _: p.say("downloading", deployment_of(w, p)),
}


@pytest.mark.attack("A02", "M11")
@pytest.mark.parametrize("what", CHANGES)
def test_whatever_may_change_an_answer_is_looked_at_at_once(
    world: World, memory: Memory, what: str
) -> None:
    rollout = world.ready()
    phone = world.enroll("serial-1", runs=digest(BASE))
    assert phone.offered()["release"] == "r2"
    ask = settle(phone)
    assert memory.took(ask)
    CHANGES[what](world, phone, rollout)
    before = memory.answers
    reply = ask()
    assert memory.answers == before, "it came from memory"
    expected = {"revoked": 401, "tagged": 304, "by hand": 200, "an event": 304}.get(what, 200)
    if what == "by hand":  # the release is for any hardware
        expected = 304
    assert reply.status_code == expected


def test_what_the_server_does_every_few_seconds_leaves_memory_alone(
    world: World, memory: Memory
) -> None:
    rollout = world.ready(stages=[{"share_bp": 9_999}, {"share_bp": 10_000}])
    world.enroll("serial-2", runs=digest(BASE)).offered()
    ask = settle(world.enroll("serial-3", runs=digest(BETTER)))
    for _ in range(3):
        with world.app.state.database.writer() as session:
            session.get_one(Rollout, rollout).waiting_for = "other words"
        world.tick()
        flush_seen(world.app.state)
        assert memory.took(ask)


def test_another_device_of_the_model_stays_in_memory(world: World, memory: Memory) -> None:
    one = updated(world)
    other = world.enroll("serial-2", runs=digest(BETTER))
    asks = [settle(phone) for phone in (one, other)]
    assert [memory.took(ask) for ask in asks] == [True, True]
    world.ok("PATCH", f"/v1/devices/{one.id}", json={"status": "quarantined"})
    assert [memory.took(ask) for ask in asks] == [False, True]


def test_an_answer_ends_with_the_order_the_documents_and_the_credential(
    world: World, memory: Memory
) -> None:
    world.ready()
    phone = world.enroll("serial-1", runs=digest(BASE))
    phone.offered()
    ask = settle(phone)
    assert memory.took(ask)
    start = world.now
    for days, hold in ((7, "order_pending"), (31, "metadata_expired")):
        world.now = start + timedelta(days=days) - timedelta(seconds=1)
        world.token = world.token_with(*SCOPES)
        ask()
        world.now += timedelta(seconds=1)
        reply = ask()
        assert reply.status_code == 200 and reply.json()["hold"] == hold
    assert reply.headers["next-credential"]


def test_places_in_a_stage_are_asked_for_anew_each_time(world: World, memory: Memory) -> None:
    world.publish_all()
    rollout = world.start_rollout("r2", "all", stages=[{"share_bp": 10_000, "in_flight_max": 1}])
    first, second = (world.enroll(f"serial-{n}", runs=digest(BASE)) for n in (1, 2))
    assert first.offered()["rollout"] == rollout
    ask = settle(second)
    assert not memory.took(ask)
    first.say("refused", deployment_of(world, first), reason="E_TEST")
    assert ask().json()["hold"] == "order_pending"


def test_what_another_process_changes_is_heard_of(world: World, memory: Memory) -> None:
    phone = updated(world)
    ask = settle(phone)
    assert memory.took(ask)
    elsewhere = Database(world.app.state.settings.database)
    with elsewhere.writer() as session:
        session.get_one(Device, phone.id).status = "revoked"
    elsewhere.close()
    entries = world.app.state.database.entries
    eventually(lambda: entries.find(phone.id) is None, "the entry is gone")
    refused(ask(), 401)


def test_a_watch_that_is_told_to_stop_waits_for_no_news(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "WATCH_S", 10 * START_S_MAX)
    database, stop = Database(settings.database), changes.Stop()
    watching = Thread(target=database.watch, args=(stop,), daemon=True)
    watching.start()
    eventually(lambda: database.entries._heard_until_s, "it has begun")
    stop.set()
    watching.join(START_S_MAX)
    assert not watching.is_alive()
    database.close()
