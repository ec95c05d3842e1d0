"""What a device may ask and say: polls, downloads, events."""

import base64
import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from service.core import access
from service.db.session import THREADS_MAX
from tests.service.world import (
    BASE,
    BETTER,
    MODEL,
    START,
    Phone,
    World,
    digest,
    outcomes,
    refused,
)
from trust.floors import Floors
from trust.verify import check_order, refresh

LIFE = "offered downloading applied activated".split()


def state_of(world: World, phone: Phone) -> str:
    found = world.ok("GET", f"/v1/devices/{phone.id}")["deployments"]
    return str(found[0]["state"]) if found else ""


def offered(world: World, serial: str = "serial-1") -> tuple[Phone, Any]:
    phone = world.enroll(serial, runs=digest(BASE))
    plan = phone.offered()
    assert plan["release"] == "r2"
    return phone, plan


def test_a_server_without_publications_says_so_to_a_device_that_polls(unpublished: World) -> None:
    world = unpublished
    world.ok("POST", "/v1/models", json={"name": MODEL})
    phone = world.enroll("serial-1", runs=digest(BASE))
    world.tick()
    bundle = phone.poll()
    assert bundle == {
        "metadata": {},
        "order": None,
        "hold": "nothing_published",
        "plan": None,
    }
    assert phone.poll() is None
    world.found_roles()
    assert phone.poll() is None, "signed offline, not yet by the publisher: nothing changed"
    world.tick()
    bundle = phone.poll()
    assert bundle["hold"] == "no_rollout" and "timestamp.json" in bundle["metadata"]


def test_an_order_comes_only_signed_and_its_bundle_verifies(
    unpublished: World, tmp_path: Any
) -> None:
    world = unpublished
    world.now = datetime.now(UTC)  # the TUF client looks at the real clock, too
    world.token = world.token_with(*access.SCOPES)
    world.found().ready()
    phone = world.enroll("serial-1", runs=digest(BASE))
    first = phone.poll()
    assert (first["hold"], first["order"], first["plan"]) == ("order_pending", None, None)
    world.tick()
    second = phone.poll()
    assert second["hold"] is None
    root = world.call("GET", "/v1/metadata/1.root.json").content
    files = {name: text.encode() for name, text in second["metadata"].items()}
    trusted, floors = refresh(tmp_path / "cache", root, files, MODEL, world.now, Floors())
    envelope = json.dumps(second["order"]).encode()
    order, _ = check_order(
        trusted, envelope, device_id=phone.id, model=MODEL, now=world.now, floors=floors
    )
    assert (order.release, order.sha256, order.hold) == ("r2", digest(BETTER), False)
    assert order.deployment == second["plan"]["deployment"]
    said = json.loads(base64.b64decode(second["order"]["payload"]))
    assert said["aud"] == {"device": phone.id}


def test_a_poll_is_not_modified_until_something_changed_and_says_when_to_come_back(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    rollout = world.ready()
    phone = world.enroll("serial-1", runs=digest(BASE))
    poll = partial(phone.request, "GET", "/poll", params={"s": phone.runs, "root": 1})
    first = poll()
    assert 1 <= int(first.headers["poll-after"]) <= 4, "an order is on its way"
    assert "1.root.json" not in first.json()["metadata"]
    assert "poll" not in str(first.json().keys()).lower()
    tag = first.headers["etag"]
    again = poll(headers={"If-None-Match": tag})
    assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == tag
    assert int(again.headers["poll-after"]) >= 1
    for changed in (f"W/{tag}", tag.strip('"'), "*", '"other"', ""):
        assert poll(headers={"If-None-Match": changed}).status_code == 200
    world.tick()
    ready = poll(headers={"If-None-Match": tag})
    assert ready.status_code == 200 and ready.json()["plan"]
    world.ok("POST", f"/v1/rollouts/{rollout}/pause")
    paused = poll(headers={"If-None-Match": ready.headers["etag"]})
    assert paused.json()["hold"] == "paused" and paused.json()["order"] is None
    assert 48 <= int(paused.headers["poll-after"]) <= 72, "60 s, give or take a fifth"
    assert paused.headers["cache-control"] == "no-store"


def test_senseless_polls_are_refused_and_note_nothing(world_sqlite: World) -> None:
    world = world_sqlite
    phone = world.enroll("serial-1", runs=digest(BASE))
    before = world.rows()
    for query in ("s=abc", f"s={digest(BASE).upper()}", "root=-1", "root=x", f"root={1 << 40}"):
        refused(phone.request("GET", f"/poll?{query}"), 422, "invalid-request")
    refused(phone.request("GET", "/poll?s=%00"), 422, "invalid-request")
    assert world.rows() == before


def test_unknown_bytes_get_the_full_file_and_known_ones_a_patch(world_sqlite: World) -> None:
    world = world_sqlite
    world.ready()
    _, plan = offered(world)
    ways = [[(step["op"], step["sha256"]) for step in way] for way in plan["pipelines"]]
    full = [("full", digest(BETTER))]
    assert ways == [full], "a patch of 13 bytes and a hop cost more than this small file"
    lost = world.enroll("serial-2", runs=digest(b"nobody knows these bytes"))
    plan = lost.offered()
    assert [[step["op"] for step in way] for way in plan["pipelines"]] == [["full"]]
    assert plan["bytes"] == len(BETTER) and plan["canary"]["shard"]
    empty = world.enroll("serial-3").offered()
    assert empty["pipelines"][0][0]["sha256"] == digest(BETTER)
    shown = world.ok("GET", f"/v1/devices/{lost.id}")
    assert shown["running_release"] is None and shown["running_sha256"] == lost.runs


def test_a_quarantined_device_is_heard_and_held_and_a_revoked_one_is_neither(
    world: World,
) -> None:
    world.ready()
    phone, plan = offered(world)
    path = f"/v1/devices/{phone.id}"
    world.ok("PATCH", path, json={"status": "quarantined"})
    bundle = phone.poll()
    assert (bundle["hold"], bundle["plan"], bundle["order"]) == ("quarantined", None, None)
    assert phone.say("note").status_code == 200
    world.ok("PATCH", path, json={"status": "active"})
    assert phone.offered()["deployment"] == plan["deployment"]
    world.ok("PATCH", path, json={"status": "revoked"})
    refused(phone.request("GET", "/poll"), 401, "unauthorized")
    assert state_of(world, phone) == "canceled"
    orders = world.rows()["device_model"]
    world.tick(30 * 86400)
    assert world.rows()["device_model"] == orders, "the publisher signs nothing for it any more"


def test_events_are_stored_once_and_only_ever_forward(world: World) -> None:
    world.ready()
    phone, plan = offered(world)
    name = plan["deployment"]
    for kind in LIFE[1:]:
        assert phone.say(kind, name, bytes=10).json() == {"acknowledged": phone.seq}
        assert state_of(world, phone) == kind
    before = world.rows()
    phone.seq = 0
    for kind in ("failed", "refused"):  # the same numbers again, with another story
        assert phone.say(kind, name).json() == {"acknowledged": 3}
    assert world.rows() == before
    phone.seq = 3
    phone.say("downloading", name)  # later, but back: told, not followed
    assert state_of(world, phone) == "activated"
    phone.say("failed", name, reason="E_HASH")
    assert state_of(world, phone) == "failed"
    for kind in ("activated", "applied", "refused", "rolled_back", "committed"):
        phone.say(kind, name)
        assert state_of(world, phone) == "failed", "an outcome is final"
    shown = world.ok("GET", f"/v1/devices/{phone.id}")
    assert shown["deployments"][0]["reason"] == "E_HASH"
    assert [e["seq"] for e in shown["events"]] == list(range(10, 0, -1))


def test_a_batch_may_come_in_any_order_and_a_device_speaks_for_itself_only(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    rollout = world.ready()
    phone, plan = offered(world)
    other, _ = offered(world, "serial-2")
    at = world.now.isoformat()
    batch = [
        {"seq": seq, "kind": kind, "deployment": plan["deployment"], "at": at, "bytes": 7}
        for seq, kind in ((3, "activated"), (1, "downloading"), (2, "applied"), (2, "failed"))
    ]
    assert other.request("POST", "/events", json={"events": batch}).json() == {"acknowledged": 3}
    assert state_of(world, phone) == "offered" and state_of(world, other) == "offered"
    assert phone.request("POST", "/events", json={"events": batch}).json() == {"acknowledged": 3}
    assert state_of(world, phone) == "activated"
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["bytes_sent"] == 21
    phone.seq = 3
    assert phone.say("failed", "ab" * 8).status_code == 200, "of no deployment at all"
    assert state_of(world, phone) == "activated"
    shown = world.ok("GET", f"/v1/devices/{phone.id}")["events"]
    assert [e["kind"] for e in shown] == ["failed", "activated", "applied", "downloading"]


def test_senseless_events_are_refused_whole(world_sqlite: World) -> None:
    world = world_sqlite
    phone = world.enroll("serial-1")
    good = {"seq": 1, "kind": "note", "at": "2026-06-01T12:00:00Z"}
    before = world.rows()
    wrong: list[dict[str, Any]] = [
        {"seq": 0},
        {"seq": -1},
        {"seq": True},
        {"seq": "1"},
        {"seq": 1.5},
        {"seq": 1 << 54},
        {"kind": "confirmed"},
        {"kind": None},
        {"deployment": "../x"},
        {"deployment": "a" * 65},
        {"at": "yesterday"},
        {"at": 1_780_000_000},
        {"at": True},
        {"at": "0001-01-01T00:00:00+23:59"},
        {"at": "9999-12-31T23:59:59-23:59"},
        {"reason": "a\nb"},
        {"reason": "x" * 65},
        {"detail": "x" * 501},
        {"detail": "\x00"},
        {"bytes": -1},
        {"bytes": 1 << 54},
        {"bytes": "7"},
        {"device_id": "other"},
    ]
    for change in wrong:
        events = [good | {"seq": 2}, good | change]
        reply = phone.request("POST", "/events", json={"events": events})
        pointer = refused(reply, 422, "invalid-request")["errors"][0]["pointer"]
        assert pointer == f"/body/events/1/{next(iter(change))}"
    for batch in ([], [good] * 101, None, {}):
        refused(phone.request("POST", "/events", json={"events": batch}), 422, "invalid-request")
    assert world.rows() == before
    hundred = [good | {"seq": n} for n in range(1, 101)]
    reply = phone.request("POST", "/events", json={"events": hundred})
    assert reply.json() == {"acknowledged": 100}


def test_while_nobody_signs_the_devices_ask_less_and_less(world: World) -> None:
    """A publisher that is away must not make a fleet ask every other second until it is back."""
    phone = world.enroll("serial-1", runs=digest(BASE))
    world.ready()
    for waited_s, least, most in ((0, 1, 4), (30, 24, 36), (3600, 48, 72)):
        world.now = START + timedelta(seconds=waited_s)
        reply = phone.request("GET", "/poll", params={"s": phone.runs})
        assert reply.json()["hold"] == "order_pending"
        assert least <= int(reply.headers["poll-after"]) <= most, "as long again, 60 s at most"
    assert phone.offered()["release"] == "r2"


def test_no_claim_of_bytes_overflows_a_sum(world_sqlite: World) -> None:
    world = world_sqlite
    rollout = world.ready()
    for number in range(2):
        phone, plan = offered(world, f"serial-{number}")
        for _ in range(2):
            assert phone.say("note", plan["deployment"], bytes=1 << 53).status_code == 200
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["bytes_sent"] == 2 << 40


def test_events_of_one_device_at_once_are_stored_once(world: World) -> None:
    world.ready()
    phone, plan = offered(world)
    at = world.now.isoformat()
    events = [
        {"seq": n, "kind": "note", "deployment": plan["deployment"], "at": at, "bytes": 10}
        for n in range(1, 11)
    ]
    calls = [partial(phone.request, "POST", "/events", json={"events": events})] * 8
    assert outcomes(calls) == [200] * 8
    assert len(world.rows()["event"]) == 10
    shown = world.ok("GET", f"/v1/devices/{phone.id}")
    assert shown["deployments"][0]["bytes_sent"] == 100
    polls = [partial(phone.request, "GET", "/poll", params={"s": digest(BETTER)})] * 8
    assert outcomes(polls) == [200] * 8
    assert state_of(world, phone) == "confirmed"
    seen = world.ok("GET", "/v1/rollouts")["items"][0]["stages"]
    assert [stage["confirmed"] for stage in seen] == [1]


def test_more_devices_than_connections_are_all_answered_at_once(world_sqlite: World) -> None:
    world_sqlite.publish("r1", BASE)
    phones = world_sqlite.fleet(THREADS_MAX + 25, digest(BASE))
    query = {"s": digest(BASE)}
    for _ in range(2):
        calls = [partial(phone.request, "GET", "/poll", params=query) for phone in phones]
        assert outcomes(calls) == [200] * len(phones)
