"""How people steer plans: withdrawn patches, floors, what is missing before a rollout starts."""

from typing import Any

import pytest

from tests.service.line import edge, explained, file, ops, patch, release, started
from tests.service.publishing import ALL
from tests.service.world import MODEL, World, digest, refused
from trust import sign
from trust.roles import PatchTarget, patch_path


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
    assert [(r["running"], r["floor"], r["reason"]) for r in told] == [
        (["r1"], "r2", "it moves the cache")
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


def test_a_device_whose_polls_bring_nothing_new_hears_of_a_floor_and_of_its_end(
    line: World,
) -> None:
    phone = line.enroll("s1", runs=digest(file(1)))
    started(line)
    assert phone.offered()["release"] == "r3"
    assert phone.poll() is None, "nothing changed"
    path = f"/v1/models/{MODEL}/floors/r2"
    line.ok("PUT", path, json={"reason": "a"})
    assert phone.poll()["hold"] == "floor"
    assert phone.poll() is None
    assert line.call("DELETE", path).status_code == 204
    assert phone.poll()["plan"]["release"] == "r3"


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
    assert "devices on r2 (3 of 3 looked at, 100 %) have no way to r4" in problem["detail"]
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
