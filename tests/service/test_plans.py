"""Plans through the real app: what devices say feeds them, and it counts for little."""

from typing import Any

import pytest

from tests.service.line import (
    KB,
    arrive,
    edge,
    explained,
    file,
    hops_of,
    ops,
    release,
    started,
    way_of,
)
from tests.service.world import World, digest, refused


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
