"""A poll as agents ask it is answered in front of the routes, in their words and by their rules."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from service.api import poll as layer
from service.db.tables import Device
from tests.service.memory import asking, statements
from tests.service.phone import Phone
from tests.service.world import BASE, BETTER, World, digest, refused

ORDER = ("root", "t", "s")
STATEMENTS_MAX = 8  # of a poll that is granted a place, two BEGIN among them


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices that the layer answered."""
    found, given = [], layer.reply_to

    def noted(state: Any, session: Any, device: Any, *more: Any) -> Any:
        found.append(device.id)
        return given(state, session, device, *more)

    monkeypatch.setattr(layer, "reply_to", noted)
    return found


def by_route(phone: Phone, etag: str = "") -> Any:
    """Ask the same in an order that no agent asks in."""
    query = {"s": phone.runs, "t": "1", "root": "1"}
    return phone.request("GET", "/poll", params=query, headers={"If-None-Match": etag})


STORIES: dict[str, Callable[[World, Phone], Any]] = {
    "nothing to do": lambda _, p: setattr(p, "runs", digest(BETTER)),
    "waits for its order": lambda _, p: asking(p),
    "has its order": lambda _, p: p.offered(),
    "quarantined": lambda w, p: w.ok(
        "PATCH", f"/v1/devices/{p.id}", json={"status": "quarantined"}
    ),
    "runs unknown bytes": lambda _, p: setattr(p, "runs", "0" * 64),
    "to be sent back": lambda w, p: sent_back(w, p),
    "documents are over": lambda w, _: setattr(w, "now", w.now + timedelta(days=400)),
}


def sent_back(world: World, phone: Phone) -> None:
    plan = phone.offered()
    phone.say("activated", plan["deployment"])
    phone.runs, phone.etag = plan["sha256"], ""
    phone.poll()
    world.ok("POST", f"/v1/rollouts/{plan['rollout']}/halt", json={"reason": "test"})
    assert phone.offered()["direction"] == "back"


@pytest.mark.parametrize("what", STORIES)
def test_the_layer_says_what_the_route_says(world: World, answered: list[str], what: str) -> None:
    world.ready(on_halt="revert")
    phone = world.enroll("serial-1", runs=digest(BASE))
    STORIES[what](world, phone)
    asking(phone)
    answered.clear()
    routed = by_route(phone)
    assert routed.status_code == 200 and not answered
    phone.etag = ""
    direct = asking(phone)
    assert answered == [phone.id]
    assert (direct.status_code, direct.json()) == (200, routed.json())
    assert direct.headers.keys() == routed.headers.keys()
    same = ("etag", "content-type", "content-length", "cache-control")
    assert [direct.headers[name] for name in same] == [routed.headers[name] for name in same]
    unchanged = [asking(phone, **{"If-None-Match": direct.headers["etag"]})]
    unchanged.append(by_route(phone, direct.headers["etag"]))
    assert [reply.status_code for reply in unchanged] == [304, 304]
    assert unchanged[0].headers.keys() == unchanged[1].headers.keys()


def test_a_poll_that_is_granted_a_place_asks_the_database_little(
    world: World, answered: list[str]
) -> None:
    world.ready()
    phones = [world.enroll(f"serial-{n}", runs=digest(BASE)) for n in range(3)]
    for phone in phones:  # what runs on it is noted, and what is the same for all is read
        world.ok("PATCH", f"/v1/devices/{phone.id}", json={"status": "quarantined"})
        asking(phone)
        world.ok("PATCH", f"/v1/devices/{phone.id}", json={"status": "active"})
    asking(phones[0])
    with statements(world) as seen:
        assert asking(phones[1]).json()["hold"] == "order_pending"
    assert len(answered) == 5
    asked = [one for one in seen if "pg_" not in one]
    assert len(asked) <= STATEMENTS_MAX, asked
    writes = [one.split()[0] for one in asked if one.split()[0] in ("INSERT", "UPDATE", "DELETE")]
    assert sorted(writes) == ["INSERT", "UPDATE", "UPDATE"]


@pytest.mark.attack("A02", "A10")
def test_a_stranger_gets_as_far_as_no_transaction_that_writes(
    world_sqlite: World, answered: list[str]
) -> None:
    world = world_sqlite
    phone = world.enroll("serial-1")
    for credential in (f"fc_{phone.id}_{'A' * 43}", f"fc_{'0' * 16}_{'A' * 43}", "fc_", "fc__"):
        phone.credential = credential
        with statements(world) as seen:
            refused(asking(phone), 401, "unauthorized")
        written = [one for one in seen if one == "BEGIN IMMEDIATE"]
        assert len(written) == 1, "to write down that it tried"
    assert not answered


@pytest.mark.attack("A02")
def test_a_device_that_was_revoked_in_between_is_refused_by_the_transaction(
    world_sqlite: World, answered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_sqlite
    phone = world.enroll("serial-1")
    given = layer.admit

    def admit(*more: Any) -> None:
        given(*more)
        with world.app.state.database.writer() as session:
            session.get_one(Device, phone.id).status = "revoked"

    monkeypatch.setattr(layer, "admit", admit)
    refused(asking(phone), 401, "unauthorized")
    assert not answered


def test_what_the_database_refuses_is_tried_once_more_by_the_route(
    world_sqlite: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_more: Any) -> None:
        raise OperationalError("", {}, Exception("database is locked"))

    world_sqlite.ready()
    phone = world_sqlite.enroll("serial-1", runs=digest(BASE))
    monkeypatch.setattr(layer, "reply_to", locked)
    assert asking(phone).json()["hold"] == "order_pending"


def test_a_new_credential_that_is_used_takes_the_old_ones_place(
    world: World, answered: list[str]
) -> None:
    phone = world.enroll("serial-1")
    old = phone.credential
    world.now += timedelta(days=31)
    world.token = world.token_with("devices:read", "audit:read")
    phone.credential = asking(phone).headers["next-credential"]
    assert asking(phone).status_code == 200 and answered == [phone.id] * 2
    renewed = world.ok("GET", "/v1/audit", params={"newest_first": True})["items"][0]
    assert (renewed["action"], renewed["actor"]) == ("device.renew", f"device {phone.id}")
    assert renewed["ip"] == "testclient" and renewed["request_id"]
    phone.credential = old
    refused(asking(phone), 401, "unauthorized")
