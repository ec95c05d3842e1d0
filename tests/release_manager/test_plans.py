"""Patches, floors and plans at the command line, against a real server."""

from datetime import timedelta
from pathlib import Path

import pytest

from service.core.access import SCOPES
from tests.release_manager.town import Town
from tests.service.world import digest


@pytest.fixture
def linked(both: Town, files: list[Path], tmp_path: Path) -> Town:
    """A town with r1, r2 and r3, a patch from r2 to r3 and none from r1; a device on each."""
    patch = tmp_path / "p.ndiff"
    assert both.anne.run("diff", "make", files[1], files[2], "-o", patch) == 0, both.anne.err
    both.publish("release", "publish", "asr", "r3", files[2], "--patch", patch)
    words = ["cohort", "create", "all", "--model", "asr", "--filter", "hardware=h1"]
    both.anne.json(*words)
    for number, file in enumerate(files[:2]):
        token = both.anne.json("device", "token", "--model", "asr")["token"]
        body = {"enrollment_token": token, "model": "asr", "serial": f"s{number}"}
        body |= {"hardware": "h1", "agent_version": "1"}
        reply = both.world.client.post("/device/v1/enroll", json=body).json()
        query = {"s": digest(file.read_bytes())}
        credential = reply["credential"]
        both.world.call("GET", "/device/v1/poll", token=credential, params=query)
    return both


def test_a_patch_is_withdrawn_with_a_reason_and_restored(linked: Town) -> None:
    anne = linked.anne
    assert anne.run("patch", "withdraw", "asr", "r2", "r3") == 2, "without a reason"
    done = anne.json("patch", "withdraw", "asr", "r2", "r3", "--reason", "fails on old chips")
    assert done["withdrawn"] == "fails on old chips"
    (listed,) = anne.json("patch", "list", "asr")["items"]
    assert (listed["from"], listed["to"], listed["withdrawn"]) == ("r2", "r3", "fails on old chips")
    assert anne.json("patch", "restore", "asr", "r2", "r3")["withdrawn"] == ""
    assert anne.run("patch", "restore", "asr", "r1", "r3") == 1
    assert "no patch from r1 to r3" in anne.err


def test_a_plan_is_explained_way_by_way(linked: Town) -> None:
    anne = linked.anne
    assert anne.run("release", "plan", "asr", "r3") == 2
    assert anne.run("release", "plan", "asr", "r3", "--from", "r2", "--on", "dev_1") == 2
    found = anne.json("release", "plan", "asr", "r3", "--from", "r2")
    ops = [[step["op"] for step in way["steps"]] for way in found["pipelines"]]
    assert ops == [["patch"], ["full"]] and found["excluded"] == []
    anne.run("patch", "withdraw", "asr", "r2", "r3", "--reason", "fails on old chips")
    assert anne.run("release", "plan", "asr", "r3", "--from", "r2") == 0
    lines = anne.out.splitlines()
    assert any(line.startswith("full r3") for line in lines)
    (excluded,) = [line for line in lines if line.startswith("patch r3")]
    assert "withdrawn" in excluded and "fails on old chips" in excluded


def test_a_plan_for_a_device_keeps_within_what_it_says_of_itself(linked: Town) -> None:
    devices = linked.anne.json("device", "list")["items"]
    on_r2 = next(d["id"] for d in devices if d["running_release"] == "r2")
    found = linked.anne.json("release", "plan", "asr", "r3", "--on", on_r2)
    assert found["from"] == "r2" and found["limits"]["hashed_hops"] == 0


def test_a_floor_is_set_with_a_reason_listed_and_lifted(linked: Town) -> None:
    anne = linked.anne
    assert anne.run("model", "floor", "asr", "--reason", "of what?") == 2
    assert anne.run("model", "floor", "asr", "r2") == 1 and "reason" in anne.err
    done = anne.json("model", "floor", "asr", "r2", "--reason", "it moves the cache")
    assert (done["release"], done["reason"]) == ("r2", "it moves the cache")
    assert anne.run("release", "plan", "asr", "r3", "--from", "r1") == 0
    assert "floor: r2 must run first: it moves the cache" in anne.out
    assert [f["release"] for f in anne.json("model", "floor", "asr")["items"]] == ["r2"]
    assert anne.json("model", "floor", "asr", "r2", "--lift")["items"] == []
    assert anne.run("model", "floor", "asr", "r2", "--lift") == 1


def test_bases_are_proposed_by_what_devices_run(linked: Town) -> None:
    rows = linked.anne.json("diff", "bases", "--model", "asr")["items"]
    found = {row["release"]: (row["devices"], row["base"]) for row in rows}
    assert found == {"r1": (1, True), "r2": (1, True)}
    assert linked.anne.run("diff", "bases") == 2, "of which model?"


def test_a_rollout_that_lacks_patches_says_from_where_and_starts_when_that_is_accepted(
    linked: Town,
) -> None:
    anne = linked.anne
    words = ["rollout", "start", "asr", "r3", "--cohort", "all", "--stages", "100%"]
    assert anne.run(*words) == 1
    assert "devices on r1 (1 of 2 looked at, 50 %) have no way to r3" in anne.err
    assert "--accept-full-downloads" in anne.err and "fleetdiff rollout resume" in anne.err
    draft = anne.err.split("rollout resume ")[1].split()[0]
    assert anne.run("rollout", "resume", draft) == 1
    assert anne.json("rollout", "resume", draft, "--accept-full-downloads")["state"] == "running"
    anne.json("rollout", "halt", draft, "--reason", "again")
    assert anne.json(*words, "--accept-full-downloads")["state"] == "running"


def test_a_device_and_a_rollout_are_explained_in_a_line_for_each_rule(linked: Town) -> None:
    anne = linked.anne
    devices = anne.json("device", "list")["items"]
    on_r2 = next(d["id"] for d in devices if d["running_release"] == "r2")
    started = anne.json(
        *("rollout", "start", "asr", "r3", "--cohort", "all", "--accept-full-downloads"),
        *("--stages", "100%"),
    )
    assert anne.run("device", "explain", on_r2) == 0
    assert "the device is in cohort all" in anne.out and "there is no timestamp yet" in anne.out
    anne.run("rollout", "pause", started["id"])
    found = anne.json("device", "explain", on_r2, "--rollout", started["id"])
    assert (found["answer"], found["stopped_by"]["rule"]) == ("paused", "state")
    assert anne.run("device", "explain", on_r2, "--rollout", "nothing") == 1
    for kind, identity in (("device", on_r2), ("rollout", started["id"])):
        assert anne.json(kind, "retry", identity) == {"retried": 0}
    assert anne.run("rollout", "explain", started["id"]) == 0
    assert "paused" in anne.out and "the rollout is paused" in anne.out
    told = anne.json("rollout", "explain", started["id"])
    assert told["devices"]["without_outcome"] == 2 == told["sampled"]


def test_what_nothing_needs_is_listed_and_collected(linked: Town) -> None:
    anne, body = linked.anne, b"an orphan"
    linked.world.upload(body)
    told = anne.json("gc", "run")
    assert told["candidates"] == {"artifacts": 1, "bytes": len(body)}
    assert told["deleting"]["artifacts"] == 0, "not before the time of grace is over"
    assert anne.run("gc", "plan") == 0
    (listed,) = anne.out.splitlines()[1:]
    assert listed.startswith(digest(body)) and "stored" in listed
    assert all(r["needed"] or r["sha256"] == digest(body) for r in anne.json("gc", "plan")["items"])


def test_what_could_not_be_deleted_fails_the_run_that_comes_after(linked: Town) -> None:
    anne, world = linked.anne, linked.world
    world.upload(b"an orphan")
    for later in (timedelta(0), timedelta(days=7), timedelta(minutes=15)):
        world.now += later
        world.token = world.token_with(*SCOPES)
        told = world.ok("POST", "/v1/artifacts/collect")  # and no beat
    assert told["undeleted"]["artifacts"] == 1
    assert anne.run("gc", "run") == 1
    assert "undeleted" in anne.out
