"""The audit log: what is written down, and that no secret is."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from service.core import access
from service.core.errors import WrongState
from tests.service.test_access import introduce, invitation
from tests.service.world import BASE, MODEL, World, digest, outcomes, refused
from trust import sign
from trust.audit import Head, follow
from trust.roles import read_family


def log_of(world: World) -> list[dict[str, Any]]:
    """Return the whole log, having followed its chain."""
    entries: list[dict[str, Any]] = []
    while True:
        cursor = entries[-1]["seq"] if entries else 0
        page = world.ok("GET", "/v1/audit", params={"cursor": cursor, "limit": 100})
        entries += page["items"]
        if page["next"] is None:
            assert follow(Head(), entries) == Head(**page["head"])
            return entries


def told(world: World, action: str) -> list[dict[str, Any]]:
    return [entry for entry in log_of(world) if entry["action"] == action]


def test_whatever_people_and_devices_do_is_written_down(world: World) -> None:
    rollout = world.ready()
    phone = world.enroll("serial-1")
    phone.runs = digest(BASE)
    assert phone.offered()["release"] == "r2"
    world.ok("POST", "/v1/cohorts", json={"name": "mine", "model": MODEL, "devices": []})
    for _ in range(2):  # the second time changes nothing
        world.ok("PUT", f"/v1/cohorts/mine/devices/{phone.id}")
    for verb in ("pause", "resume", "halt"):
        world.ok("POST", f"/v1/rollouts/{rollout}/{verb}", json={"reason": f"to {verb}"})
    for _ in range(2):
        world.ok("PATCH", f"/v1/devices/{phone.id}", json={"tags": {"room": "hall"}})
    world.ok("PATCH", f"/v1/devices/{phone.id}", json={"status": "quarantined"})
    world.ok("PATCH", f"/v1/devices/{phone.id}", json={"status": "quarantined"})
    r2 = read_family(MODEL, world.family).releases["r2"]  # type: ignore[arg-type]
    world.sign_family(sign.target_of(MODEL, replace(r2, status="withdrawn")))
    found = [(entry["action"], entry["object"]) for entry in log_of(world)]
    for action, thing in (
        ("metadata.publish", "1.root.json"),
        ("metadata.publish", f"1.family-{MODEL}.json"),
        ("metadata.publish", "1.timestamp.json"),
        ("release.withdrawn", f"{MODEL}/r2"),
        ("orders.sign", "director"),
        ("cohort.create", "mine"),
        ("cohort.add", "mine"),
        ("rollout.create", rollout),
        ("rollout.start", rollout),
        ("rollout.pause", rollout),
        ("rollout.resume", rollout),
        ("rollout.halt", rollout),
        ("device.enroll", phone.id),
        ("device.tag", phone.id),
        ("device.quarantined", phone.id),
    ):
        assert found.count((action, thing)) == 1, (action, found)
    assert [action for action, _ in found].count("token.create") == 1
    assert [action for action, _ in found].count("invitation.create") == 1
    halt = told(world, "rollout.halt")[0]
    assert re.fullmatch(r"tester \(fd_[0-9a-f]{16}\)", halt["actor"])
    assert halt["details"]["reason"] == "to halt" and halt["result"] == "done"
    assert halt["ip"] == "testclient" and re.fullmatch("[0-9a-f]{16}", halt["request_id"])
    by = {entry["object"]: entry["actor"] for entry in told(world, "metadata.publish")}
    assert by["1.root.json"] == halt["actor"] and by["1.timestamp.json"] == "server"


def test_what_is_refused_is_written_down_and_who_tried(world_sqlite: World) -> None:
    world = world_sqlite
    reader = world.token_with("devices:read")
    phone = world.enroll("serial-1")
    refused(world.call("GET", "/v1/whoami", token=reader[:-43] + "A" * 43), 401)
    refused(world.call("POST", "/v1/models?x=1", token=reader, json={"name": "m"}), 403)
    refused(world.client.get("/v1/models/%00a\ud7ff"), 401)
    refused(introduce(world, "fe_" + "0" * 16 + "_" + "A" * 43), 401)
    refused(introduce(world, invitation(world)), 409)
    assert world.client.get("/", headers={"Authorization": "Basic eDp5"}).status_code == 401
    denied = [entry for entry in log_of(world) if entry["result"] == "denied"]
    assert [(e["action"], e["object"], e["details"]["why"]) for e in denied] == [
        ("GET", "/v1/whoami", "Unauthorized"),
        ("POST", "/v1/models", "Forbidden"),
        ("GET", "/v1/models/%00a%ED%9F%BF", "Unauthorized"),
        ("POST", "/device/v1/enroll", "Unauthorized"),
        ("POST", "/device/v1/enroll", "SerialTaken"),
        ("GET", "/", "Unauthorized"),
    ]
    assert denied[0]["details"]["tried"] == reader[:19] and denied[0]["actor"] == "anyone"
    assert denied[1]["actor"] == f"tester ({reader[:19]})"
    assert phone.request("GET", "/poll").status_code == 200


def test_no_secret_gets_into_the_log(world_sqlite: World) -> None:
    world = world_sqlite
    token, phone = invitation(world), world.enroll("serial-1")
    refused(introduce(world, token, model="other"), 401)
    refused(world.call("GET", "/device/v1/poll", token=world.token), 401)
    refused(world.call("GET", "/v1/devices", token=phone.credential), 401)
    everything = json.dumps(log_of(world))
    for secret in (token, phone.credential, world.token):
        assert secret[3:19] in everything and secret[-43:] not in everything


def test_what_is_rolled_back_is_not_in_the_log(world_sqlite: World) -> None:
    world, before = world_sqlite, log_of(world_sqlite)
    with pytest.raises(WrongState), world.app.state.database.writer() as session:
        access.create_token(session, "t", ["devices:read"], access.TOKEN_LIFETIME_MAX, world.now)
        raise WrongState("and then something went wrong")
    assert log_of(world) == before


def test_the_chain_is_one_line_however_many_write_at_once(world: World) -> None:
    def create(number: int) -> Any:
        return world.call("POST", "/v1/enrollment-tokens", json={"model": MODEL, "uses": number})

    def strange(_number: int) -> Any:
        return world.client.get("/v1/whoami")

    before = len(log_of(world))
    calls: list[Callable[[], Any]] = [partial(create, n) for n in range(1, 21)]
    calls += [partial(strange, n) for n in range(20)]
    assert outcomes(calls) == [201] * 20 + [401] * 20
    entries = log_of(world)[before:]
    assert sorted(e["details"].get("uses", 0) for e in entries) == [0] * 20 + list(range(1, 21))


def test_the_log_is_read_in_pages_from_either_end(world_sqlite: World) -> None:
    world = world_sqlite
    for name in "abcdef":
        world.ok("POST", "/v1/models", json={"name": name})
        invitation(world, model=name)
    first = world.ok("GET", "/v1/audit", params={"limit": 2})
    assert [e["seq"] for e in first["items"]] == [1, 2] and first["next"] == 2
    last = first["head"]["seq"]
    newest = {"limit": 2, "newest_first": True}
    page = world.ok("GET", "/v1/audit", params=newest)
    assert [e["seq"] for e in page["items"]] == [last, last - 1]
    page = world.ok("GET", "/v1/audit", params=newest | {"cursor": page["next"]})
    assert [e["seq"] for e in page["items"]] == [last - 2, last - 3]
    assert world.ok("GET", "/v1/audit", params={"cursor": last})["items"] == []
    for wrong in ({"limit": 501}, {"limit": 0}, {"cursor": -1}, {"cursor": "x"}):
        refused(world.call("GET", "/v1/audit", params=wrong), 422)
