"""Plans through the real app: what devices say feeds them, people steer and understand them."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from service.core import plans
from tests.service.phone import Phone
from tests.service.publishing import ALL
from tests.service.world import MODEL, World, digest, patch_between, refused
from trust import sign
from trust.roles import PatchTarget, patch_path, read_family

KB = 1000


@cache
def file(number: int) -> bytes:
    """The model file of a release: 200 kB that differ from the one before in a few places."""
    if number == 1:
        return random.Random(1).randbytes(200 * KB)
    before = bytearray(file(number - 1))
    for place in random.Random(number).sample(range(len(before)), 50):
        before[place] ^= 255
    return bytes(before)


@cache
def patch(source: int, target: int) -> bytes:
    return patch_between(file(source), file(target))


def release(world: World, number: int, *bases: int, back: bool = False) -> None:
    """Publish a release with patches from earlier ones, to which one may go back or not."""
    name, body = f"r{number}", file(number)
    world.upload(body)
    made = world.release(name, body)
    entries = [sign.target_of(MODEL, made)]
    for base in bases:
        if back and world.family:
            before = read_family(MODEL, world.family).releases[f"r{base}"]
            edges = (*before.rollback_from, name)
            entries.append(sign.target_of(MODEL, replace(before, rollback_from=edges)))
        world.upload(patch(base, number))
        path, blob = patch_path(MODEL, f"r{base}", name), patch(base, number)
        edge = PatchTarget(path, digest(blob), len(blob), digest(file(base)), made.sha256, "sparse")
        entries.append(sign.target_of(MODEL, edge))
    world.sign_family(*entries)
    world.tick()


@pytest.fixture
def line(world: World) -> World:
    """r1 > r2 > r3, a patch for each hop, and a cohort of all devices."""
    release(world, 1)
    release(world, 2, 1)
    release(world, 3, 2)
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    return world


def started(world: World, name: str = "r3") -> str:
    return world.start_rollout(name, "all", stages=ALL)


def ops(plan: Any) -> list[list[str]]:
    return [[step["op"] for step in way] for way in plan["pipelines"]]


def explained(world: World, **query: Any) -> Any:
    return world.ok("GET", f"/v1/models/{MODEL}/plan", params=query)


def arrive(phone: Phone, plan: Any, way: str) -> None:
    """Do as an agent does that went this way."""
    phone.say("applied", plan["deployment"], detail=way)
    phone.runs, phone.etag = plan["sha256"], ""
    phone.poll()


def edge(world: World, source: int, target: int) -> Any:
    items = world.ok("GET", f"/v1/models/{MODEL}/patches")["items"]
    return next(p for p in items if (p["from"], p["to"]) == (f"r{source}", f"r{target}"))


def way_of(*hops: tuple[int, int], op: str = "patch") -> str:
    return " ".join([op, *(digest(patch(*hop))[:16] for hop in hops)])


def hops_of(world: World, phone: Phone) -> tuple[int, int]:
    with world.app.state.database.reader() as session:
        row = session.get_one(plans.DeviceModel, phone.id)
        return row.hops, row.hashed_hops


# --- what devices say


def test_a_patch_is_listed_with_what_applying_it_takes_and_how_it_does(line: World) -> None:
    found = edge(line, 1, 2)
    assert found["memory_bytes"] > 0 and found["kind"] == "sparse"
    assert (found["ok_count"], found["fail_count"], found["withdrawn"]) == (0, 0, "")


def test_a_plan_keeps_within_the_memory_and_the_room_that_a_device_says_it_has(
    line: World,
) -> None:
    phone = line.enroll("s1", runs=digest(file(1)))
    started(line)
    assert ops(phone.offered()) == [["patch", "patch"], ["full"]]
    for memory, room in ((1, 1 << 30), (1 << 30, 200 * KB)):
        said = {"memory_bytes": memory, "room_bytes": room}
        assert phone.request("POST", "/capacity", json=said).status_code == 202
        phone.etag = ""
        assert ops(phone.poll()["plan"]) == [["full"]], said
        why = explained(line, device=phone.id, to="r3")["excluded"][0]["excluded"]
        assert list(why) == ["memory_bytes" if memory == 1 else "room_bytes"]


@pytest.mark.attack("A20")
@pytest.mark.parametrize(
    "said",
    [
        {},
        {"memory_bytes": 1},
        {"memory_bytes": -1, "room_bytes": 1},
        {"memory_bytes": 1 << 60, "room_bytes": 1},
        {"memory_bytes": "1", "room_bytes": 1},
        {"memory_bytes": 1, "room_bytes": 1, "attributes": {"region": "us"}},
    ],
)
def test_a_capacity_that_makes_no_sense_changes_nothing(
    world_sqlite: World, said: dict[str, Any]
) -> None:
    phone = world_sqlite.enroll("s1")
    before = world_sqlite.rows()
    refused(phone.request("POST", "/capacity", json=said), 422)
    assert world_sqlite.rows() == before
    assert world_sqlite.client.post("/device/v1/capacity", json=said).status_code == 401


def test_the_network_class_is_an_attribute_and_weighs_the_bytes(line: World) -> None:
    dear = line.enroll("s1", runs=digest(file(1)), attributes={"network": "metered"})
    other = line.enroll("s2", runs=digest(file(1)), attributes={"network": "by pigeon"})
    for phone in (dear, other):
        phone.poll()
    ways = [explained(line, device=p.id, to="r3")["pipelines"][0] for p in (dear, other)]
    assert ways[0]["cost_ms"] > ways[1]["cost_ms"] and ways[0]["bytes"] == ways[1]["bytes"]


def test_a_device_counts_the_hops_since_its_last_full_file(line: World) -> None:
    phone = line.enroll("s1", runs=digest(file(1)))
    started(line)
    arrive(phone, phone.offered(), way_of((1, 2), (2, 3)))
    assert hops_of(line, phone) == (2, 0)
    assert [edge(line, *hop)["ok_count"] for hop in ((1, 2), (2, 3))] == [1, 1]
    other = line.enroll("s2", runs=digest(file(1)))
    arrive(other, other.offered(), "full")
    assert hops_of(line, other) == (0, 0)
    assert edge(line, 1, 2)["ok_count"] == 1


def test_a_device_that_does_not_say_how_is_taken_to_have_made_a_hashed_hop(line: World) -> None:
    phone = line.enroll("s1", runs=digest(file(1)))
    started(line)
    arrive(phone, phone.offered(), "by magic")
    assert hops_of(line, phone) == (1, 1)


@pytest.mark.attack("T09")
def test_a_device_sways_a_patch_once_per_deployment_and_only_one_of_its_own_way(
    line: World,
) -> None:
    phone = line.enroll("s1", runs=digest(file(1)))
    started(line)
    deployment = phone.offered()["deployment"]
    for way in (way_of((2, 3)), way_of((1, 2)), way_of((2, 3), (1, 2)), "patch", "full", "?"):
        phone.say("note", deployment, reason="E_PATCH", detail=way)
    phone.say("note", deployment, reason="E_SPACE", detail=way_of((1, 2), (2, 3)))
    counts = [edge(line, *hop)["fail_count"] for hop in ((1, 2), (2, 3))]
    assert counts == [0, 0], "none of these is a way from r1 to r3 that a patch is to blame for"
    other = line.enroll("s2", runs=digest(file(1)))
    deployment = other.offered()["deployment"]
    for _ in range(5):
        other.say("note", deployment, reason="E_PATCH", detail=way_of((1, 2), (2, 3)))
    assert [edge(line, *hop)["fail_count"] for hop in ((1, 2), (2, 3))] == [1, 1]


@pytest.mark.attack("T09")
def test_what_a_device_in_quarantine_says_counts_for_nothing(line: World) -> None:
    phone = line.enroll("s1", runs=digest(file(1)))
    started(line)
    deployment = phone.offered()["deployment"]
    line.ok("PATCH", f"/v1/devices/{phone.id}", json={"status": "quarantined"})
    phone.say("note", deployment, reason="E_PATCH", detail=way_of((1, 2), (2, 3)))
    assert edge(line, 1, 2)["fail_count"] == 0


def test_a_patch_that_fails_in_the_field_is_avoided(line: World) -> None:
    release(line, 4, 3, 2)
    phones = line.fleet(30, digest(file(3)))
    started(line, "r4")
    for phone in phones:
        deployment = phone.offered()["deployment"]
        phone.say("note", deployment, reason="E_PATCH", detail=way_of((3, 4)))
    assert edge(line, 3, 4)["fail_count"] == 30
    ways = explained(line, **{"from": "r3", "to": "r4"})
    assert (
        ways["pipelines"][0]["cost_ms"]
        > explained(line, **{"from": "r2", "to": "r4"})["pipelines"][0]["cost_ms"]
    ), "a device on r2 goes straight, past what fails"


def test_an_agent_that_undoes_patches_is_sent_back_by_them_and_no_other(line: World) -> None:
    release(line, 4, 3, back=True)
    phones = line.fleet(2, digest(file(3)))
    phones[0].request(
        "POST",
        "/capacity",
        json={"memory_bytes": 1 << 30, "room_bytes": 1 << 30, "goes_back": True},
    )
    rollout = started(line, "r4")
    for phone in phones:
        arrive(phone, phone.offered(), way_of((3, 4)))
    line.ok("POST", f"/v1/rollouts/{rollout}/halt")
    plans_back = []
    expected = ([["undo"], ["back"], ["full"]], [["undo"], ["full"]])
    for phone, ways in zip(phones, expected, strict=True):
        phone.etag = ""
        plans_back.append(phone.offered())
        assert (plans_back[-1]["direction"], ops(plans_back[-1])) == ("back", ways)
        found = explained(line, device=phone.id, to="r3")["pipelines"]
        assert [[step["op"] for step in way["steps"]] for way in found] == ways
    arrive(phones[0], plans_back[0], way_of((3, 4), op="back"))
    assert hops_of(line, phones[0]) == (2, 0)
    arrive(phones[1], plans_back[1], "")
    assert hops_of(line, phones[1]) == (1, 0), "from its spare slot: no hop more"


# --- what people do


def test_a_withdrawn_patch_is_used_no_more_and_restored_it_is(line: World) -> None:
    phone = line.enroll("s1", runs=digest(file(2)))
    started(line)
    assert ops(phone.offered()) == [["patch"], ["full"]]
    path = f"/v1/models/{MODEL}/patches/r2/r3"
    refused(line.call("POST", f"{path}/withdraw", json={}), 422, "invalid-request")
    refused(line.call("POST", f"{path}/withdraw", json={"reason": " "}), 422, "invalid-request")
    line.ok("POST", f"{path}/withdraw", json={"reason": "breaks chips of 2019"})
    phone.etag = ""
    assert ops(phone.poll()["plan"]) == [["full"]]
    found = explained(line, device=phone.id, to="r3")
    assert [w["steps"][0]["op"] for w in found["pipelines"]] == ["full"]
    named = digest(patch(2, 3))[:12]
    assert found["excluded"][0]["excluded"] == {"withdrawn": f"{named}: breaks chips of 2019"}
    assert edge(line, 2, 3)["withdrawn"] == "breaks chips of 2019"
    line.ok("POST", f"{path}/restore")
    phone.etag = ""
    assert ops(phone.poll()["plan"]) == [["patch"], ["full"]]
    actions = [e["action"] for e in line.ok("GET", "/v1/audit")["items"]]
    assert {"patch.withdraw", "patch.restore"} <= set(actions)


def test_a_withdrawal_outlives_the_next_family(line: World) -> None:
    line.ok("POST", f"/v1/models/{MODEL}/patches/r2/r3/withdraw", json={"reason": "bad"})
    release(line, 4, 3)
    assert edge(line, 2, 3)["withdrawn"] == "bad" and edge(line, 3, 4)["withdrawn"] == ""


def test_below_a_floor_no_later_release_is_offered_until_the_floor_runs(line: World) -> None:
    phone = line.enroll("s1", runs=digest(file(1)))
    refused(line.call("PUT", f"/v1/models/{MODEL}/floors/r2", json={}), 422, "invalid-request")
    line.ok("PUT", f"/v1/models/{MODEL}/floors/r2", json={"reason": "it moves the cache"})
    rollout = started(line)
    assert phone.offered() == "floor"
    found = explained(line, device=phone.id, to="r3")
    assert found["pipelines"] == []
    for way in found["excluded"]:
        assert way["excluded"]["floor"] == "r2 must run first: it moves the cache"
    told = line.ok("GET", "/v1/patches/missing", params={"rollout": rollout})["below_floor"]
    assert [(r["release"], r["floor"], r["reason"]) for r in told] == [
        ("r1", "r2", "it moves the cache")
    ]
    phone.runs = digest(file(2))
    assert ops(phone.offered()) == [["patch"], ["full"]], "r2 runs: its poll proves it"


def test_the_floor_itself_is_offered_and_a_lifted_one_holds_nobody(line: World) -> None:
    phone = line.enroll("s1", runs=digest(file(1)))
    floors = f"/v1/models/{MODEL}/floors"
    line.ok("PUT", f"{floors}/r2", json={"reason": "a"})
    line.ok("PUT", f"{floors}/r2", json={"reason": "b"})
    assert [(f["release"], f["reason"]) for f in line.ok("GET", floors)["items"]] == [("r2", "b")]
    rollout = started(line, "r2")
    assert phone.offered()["release"] == "r2"
    line.ok("POST", f"/v1/rollouts/{rollout}/halt")
    started(line)
    phone.etag = ""
    assert phone.offered() == "floor"
    assert line.call("DELETE", f"{floors}/r2").status_code == 204
    refused(line.call("DELETE", f"{floors}/r2"), 404)
    phone.etag = ""
    assert phone.offered()["release"] == "r3"


def test_bytes_that_nobody_knows_have_passed_no_floor(line: World) -> None:
    phone = line.enroll("s1", runs="9" * 64)
    line.ok("PUT", f"/v1/models/{MODEL}/floors/r2", json={"reason": "a"})
    started(line)
    assert phone.offered() == "floor"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "patches/r1/r3/withdraw", 404),
        ("POST", "patches/r1/r9/restore", 404),
        ("PUT", "floors/r9", 404),
        ("GET", "plan?to=r3", 422),
        ("GET", "plan?to=r3&from=r1&device=x", 422),
        ("GET", "plan?to=r9&from=r1", 404),
        ("GET", "plan?to=r3&from=r9", 404),
        ("GET", "plan?to=r3&device=nobody", 404),
        ("GET", "plan?to=r3&from=r1&network=5g", 422),
        ("GET", "plan?to=r3&from=r1&hashed_hops=6", 422),
    ],
)
def test_what_does_not_exist_is_refused(
    world_sqlite: World, method: str, path: str, status: int
) -> None:
    for number in (1, 2, 3):
        release(world_sqlite, number)
    body = {"json": {"reason": "x"}} if method != "GET" else {}
    refused(world_sqlite.call(method, f"/v1/models/{MODEL}/{path}", **body), status)
    refused(
        world_sqlite.call(method, f"/v1/models/nothing/{path}", **body),
        404 if status == 404 else status,
    )


def test_a_reader_withdraws_nothing_and_sets_no_floor(line: World) -> None:
    reader, body = line.token_with("rollouts:read", "releases:write"), {"reason": "x"}
    for method, path in [
        ("POST", "patches/r1/r2/withdraw"),
        ("POST", "patches/r1/r2/restore"),
        ("PUT", "floors/r2"),
        ("DELETE", "floors/r2"),
    ]:
        refused(line.call(method, f"/v1/models/{MODEL}/{path}", token=reader, json=body), 403)


# --- what is missing


def missing(world: World, rollout: str, **query: Any) -> dict[str, int]:
    found = world.ok("GET", "/v1/patches/missing", params={"rollout": rollout, **query})
    return {row["release"]: row["devices"] for row in found["missing"]}


def draft(world: World, name: str) -> str:
    body = {"model": MODEL, "release": name, "cohort": "all", "stages": ALL}
    return str(world.ok("POST", "/v1/rollouts", json=body)["id"])


def test_a_rollout_does_not_start_while_patches_are_missing_unless_that_is_accepted(
    line: World,
) -> None:
    release(line, 4)
    line.fleet(3, digest(file(2)))
    rollout = draft(line, "r4")
    before = line.rows()
    problem = refused(line.call("POST", f"/v1/rollouts/{rollout}/start"), 409, "patches-missing")
    assert "devices on r2 (3 of them, 100 %) have no way to r4" in problem["detail"]
    assert line.rows() == before and missing(line, rollout) == {"r2": 3}
    line.ok("POST", f"/v1/rollouts/{rollout}/start?accept_full_downloads=true")
    first = line.ok("GET", f"/v1/rollouts/{rollout}/decisions")["items"][0]
    assert first["reason"].startswith("full downloads accepted: devices on r2")


def test_a_patch_that_comes_later_lets_it_start(line: World) -> None:
    release(line, 4)
    line.fleet(3, digest(file(2)))
    rollout = draft(line, "r4")
    blob = patch(3, 4)
    line.upload(blob)
    path = patch_path(MODEL, "r3", "r4")
    made = PatchTarget(path, digest(blob), len(blob), digest(file(3)), digest(file(4)), "sparse")
    line.sign_family(sign.target_of(MODEL, made))
    assert missing(line, rollout) == {}, "r2 > r3 > r4"
    line.ok("POST", f"/v1/rollouts/{rollout}/start")


def test_few_devices_and_unknown_bytes_and_later_releases_keep_no_rollout_waiting(
    line: World,
) -> None:
    release(line, 4)
    line.ok("POST", f"/v1/models/{MODEL}/patches/r1/r2/withdraw", json={"reason": "x"})
    for number, serial in ((2, "a"), (1, "b"), (4, "c")):
        phone = line.enroll(serial, runs=digest(file(number)))
        phone.poll()
    line.enroll("d", runs="9" * 64).poll()
    line.enroll("e").poll()
    rollout = draft(line, "r3")
    assert missing(line, rollout) == {"r1": 1}
    assert missing(line, rollout, over_bp=2000) == {}, "one of five is not more than a fifth"
    assert missing(line, rollout, over_bp=1999) == {"r1": 1}
    refused(line.call("GET", "/v1/patches/missing?rollout=none"), 404)


def test_where_the_full_file_is_tiny_no_patch_is_missing(world: World) -> None:
    world.publish("r1", b"a" * 900)
    world.publish("r2", b"b" * 900)
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    world.fleet(2, digest(b"a" * 900))
    assert missing(world, started(world, "r2")) == {}


def test_the_bases_of_the_next_release_are_what_devices_run_not_the_version_before(
    line: World,
) -> None:
    release(line, 4)
    for number, count in ((1, 1), (2, 2), (3, 4), (4, 1)):
        for device in range(count):
            line.enroll(f"{number}-{device}", runs=digest(file(number))).poll()
    line.enroll("lost", runs="9" * 64).poll()
    rows = line.ok("GET", f"/v1/models/{MODEL}/bases")["items"]
    found = {row["release"]: (row["devices"], row["base"], row["by_way_of"]) for row in rows}
    assert found == {
        "r3": (4, True, None),
        "r2": (2, False, "r3"),
        "r1": (1, False, "r3"),
        "r4": (1, True, None),
        None: (1, False, None),
    }
    refused(line.call("GET", "/v1/models/nothing/bases"), 404)


def test_a_plan_backwards_says_that_the_family_signs_no_way_there(line: World) -> None:
    found = explained(line, **{"from": "r3", "to": "r1"})
    assert found["pipelines"] == []
    assert "signs no way back from r3 to r1" in found["excluded"][0]["excluded"]["downgrade"]
