"""A pause carries a set of reasons, and ends when the last of them does."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from service.core import policy
from service.db.rollout_tables import CanarySums, Rollout
from service.engine import rollouts, tick
from tests.service.line import file, patch, started
from tests.service.phone import Phone
from tests.service.publishing import ALL, write
from tests.service.test_rollouts import SMALL_GATE
from tests.service.world import BASE, BETTER, World, digest, refused

HALF_A_DAY = timedelta(hours=12).total_seconds() + 1


def at(rollout: str, verb: str = "") -> str:
    return f"/v1/rollouts/{rollout}{verb}"


def shown(world: World, rollout: str) -> Any:
    return world.ok("GET", at(rollout))


def held(world: World, rollout: str) -> tuple[str, list[str]]:
    found = shown(world, rollout)
    return found["state"], found["reasons"]


def log(world: World, rollout: str) -> list[tuple[str, str]]:
    items = world.ok("GET", at(rollout, "/decisions"))["items"]
    return [(item["decision"], item["actor"]) for item in items]


def spend(world: World) -> tuple[str, list[Phone]]:
    """Start a rollout whose budget is enough for one device, which spends it."""
    rollout = world.ready(bytes_max=2 * len(BETTER) - 1)
    phones = world.fleet(2, digest(BASE))
    plan = phones[0].offered()
    phones[0].say("applied", plan["deployment"], bytes=len(BETTER))
    phones[0].runs, phones[0].etag = plan["sha256"], ""
    phones[0].poll()
    return rollout, phones


def test_a_budget_that_is_spent_pauses_until_it_is_raised(world: World) -> None:
    rollout, phones = spend(world)
    assert phones[1].offered() == "budget"
    world.tick()
    assert phones[1].offered() == "paused" and held(world, rollout) == ("paused", ["budget"])
    said = shown(world, rollout)["health"]["waiting_for"]
    assert said == "somebody raises its byte budget"
    found = world.ok("GET", at(rollout, "/explain"))
    assert found["next"] == {"kind": "hold", "because": said}
    problem = refused(world.call("POST", at(rollout, "/resume")), 409, "still-held")
    assert problem["reasons"] == ["budget"] and f"{len(BETTER) - 1} bytes" in problem["detail"]
    world.ok("PATCH", at(rollout), json={"bytes_max": 2 * len(BETTER)})
    world.tick()
    assert held(world, rollout) == ("running", [])
    assert phones[1].offered()["release"] == "r2"
    by = [("start", "tester"), ("pause", "tick"), ("change", "tester"), ("resume", "tick")]
    assert log(world, rollout) == by


def test_a_budget_that_is_enough_for_the_full_file_alone_is_spent_where_patches_come_first(
    line: World,
) -> None:
    patches = len(patch(1, 2)) + len(patch(2, 3))
    each = patches + len(file(3))  # kept for a device: if the patches fail, it fetches the file
    rollout = line.start_rollout("r3", "all", stages=ALL, bytes_max=each + patches - 1)
    phones = line.fleet(2, digest(file(1)))
    line.enroll("s1", runs=digest(b"nothing that is known")).poll()
    plan = phones[0].offered()
    phones[0].say("applied", plan["deployment"], bytes=patches)
    phones[0].runs, phones[0].etag = plan["sha256"], ""
    phones[0].poll()
    assert phones[1].offered() == "budget"
    line.tick()
    assert held(line, rollout) == ("paused", ["budget"])
    problem = refused(line.call("POST", at(rollout, "/resume")), 409, "still-held")
    assert f"{each - 1} bytes" in problem["detail"] and f"takes {each}" in problem["detail"]
    line.ok("PATCH", at(rollout), json={"bytes_max": each + patches})
    line.tick()
    assert phones[1].offered()["release"] == "r3"


def test_what_a_person_paused_runs_again_only_when_both_the_person_and_the_budget_say_so(
    world: World,
) -> None:
    rollout, _phones = spend(world)
    world.tick()
    world.ok("POST", at(rollout, "/pause"), json={"reason": "the lift is out of order"})
    assert held(world, rollout) == ("paused", ["budget", "operator"])
    before = world.rows()["rollout"]
    problem = refused(world.call("POST", at(rollout, "/resume")), 409, "still-held")
    assert problem["reasons"] == ["budget"] and world.rows()["rollout"] == before
    world.ok("PATCH", at(rollout), json={"bytes_max": None})
    world.tick()
    assert held(world, rollout) == ("paused", ["operator"])
    world.tick(86400)
    assert held(world, rollout) == ("paused", ["operator"]), "no time ends what takes a person"
    world.ok("POST", at(rollout, "/resume"))
    assert held(world, rollout) == ("running", [])


def test_bytes_that_nobody_counted_get_no_maximum_later(world_sqlite: World) -> None:
    world = world_sqlite
    rollout = world.ready(per_minute_max=5)
    refused(world.call("PATCH", at(rollout), json={"bytes_max": 5}), 422, "invalid-request")
    assert world.ok("PATCH", at(rollout), json={"per_minute_max": 7})["budget"] == {
        "per_minute_max": 7,
        "bytes_max": None,
        "bytes_committed": 0,
    }


@pytest.mark.parametrize(
    "wrong", [{}, {"bytes_max": 0}, {"bytes_max": "9"}, {"stages": []}, {"per_minute_max": -1}]
)
def test_a_change_that_makes_no_sense_is_refused(world_sqlite: World, wrong: Any) -> None:
    rollout = world_sqlite.ready(bytes_max=5)
    refused(world_sqlite.call("PATCH", at(rollout), json=wrong), 422)


def test_a_change_takes_the_rollout_as_it_was_seen_and_one_that_has_not_ended(
    world_sqlite: World,
) -> None:
    world, more = world_sqlite, {"bytes_max": 9}
    rollout = world.ready(bytes_max=5)
    seen = {"If-Match": world.call("GET", at(rollout)).headers["etag"]}
    world.ok("PATCH", at(rollout), json=more, headers=seen)
    refused(world.call("PATCH", at(rollout), json=more, headers=seen), 412, "not-as-seen")
    world.ok("POST", at(rollout, "/halt"))
    refused(world.call("PATCH", at(rollout), json=more), 409, "wrong-state")
    refused(world.call("PATCH", at("nowhere"), json=more), 404)
    reader = world.token_with("rollouts:read", "rollouts:halt")
    refused(world.call("PATCH", at(rollout), reader, json=more), 403)


def test_no_update_begins_that_would_outlast_what_people_signed(world: World) -> None:
    rollout = world.ready(gate={"undecided_s": 90 * 86400})
    (phone,) = world.fleet(1, digest(BASE))
    world.tick(timedelta(days=29).total_seconds() + 10)
    assert held(world, rollout) == ("paused", ["metadata_expiring"])
    phone.etag = ""
    assert phone.poll()["hold"] == "paused"
    problem = refused(world.call("POST", at(rollout, "/resume")), 409, "still-held")
    assert problem["reasons"] == ["metadata_expiring"]
    world.sign_family()
    world.tick()
    assert held(world, rollout) == ("running", [])


def test_an_operators_pause_learns_that_signatures_run_out_and_forgets_it_when_they_do_not(
    world: World,
) -> None:
    rollout = world.ready()
    world.ok("POST", at(rollout, "/pause"))
    world.tick(timedelta(days=29).total_seconds() + 10)
    assert held(world, rollout) == ("paused", ["metadata_expiring", "operator"])
    assert shown(world, rollout)["health"]["waiting_for"] == (
        "people sign again what runs out, and a person resumes it"
    )
    refused(world.call("POST", at(rollout, "/resume")), 409, "still-held")
    world.sign_family()
    world.tick()
    assert held(world, rollout) == ("paused", ["operator"])


def test_a_budget_that_is_raised_makes_no_failure_a_thing_of_the_past(world: World) -> None:
    rollout, phones = spend(world)
    world.tick()
    with world.app.state.database.writer() as session:
        row = session.get_one(Rollout, rollout)
        rollouts.pause_for(session, row, {"budget", "failure_rate"}, "", "tick", world.now)
    world.ok("PATCH", at(rollout), json={"bytes_max": 9 * len(BETTER)})
    world.tick()
    assert held(world, rollout) == ("paused", ["failure_rate"])
    with world.app.state.database.reader() as session:
        assert session.get_one(Rollout, rollout).finished_before == 0
    world.ok("POST", at(rollout, "/resume"))
    with world.app.state.database.reader() as session:
        assert session.get_one(Rollout, rollout).finished_before == 1
    assert phones[1].offered()["release"] == "r2"


def test_a_pause_that_gains_and_loses_reasons_lasts_from_its_first_to_its_last(
    world: World,
) -> None:
    world.publish_all()
    stages = [{"share_bp": 9999, "soak_s": 86400}, {"share_bp": 10_000}]
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE, stages=stages)
    for phone in world.fleet(10, digest(BASE)):
        phone.install(phone.offered(), 20, 10)
    world.ok("POST", at(rollout, "/pause"))
    world.now += timedelta(hours=20)
    world.ok("POST", at(rollout, "/pause"), json={"reason": "still"})
    world.now += timedelta(hours=20)
    world.ok("POST", at(rollout, "/resume"))
    world.tick(3600)
    found = shown(world, rollout)
    assert found["stage"] == 1 and found["health"]["waiting_for"].startswith("safe; soaking")


def test_sums_that_disagree_are_added_to_what_holds_a_rollout_already(world: World) -> None:
    rollout = world.ready()
    (phone,) = world.fleet(1, digest(BASE))
    phone.pair(phone.offered(), 20, 10)
    world.ok("POST", at(rollout, "/pause"))
    write(world, update(CanarySums).values(n=CanarySums.n + 1))
    assert tick.verify(world.app.state.database, rollout, world.now)
    assert held(world, rollout) == ("paused", ["operator", "sums_disagree"])


@pytest.mark.parametrize("cause", ["pause", "resume"])
def test_a_tick_that_dies_between_seeing_and_doing_leaves_all_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    rollout, _phones = spend(world)
    if cause == "resume":
        world.tick()
        world.ok("PATCH", at(rollout), json={"bytes_max": 9 * len(BETTER)})
    before, decide = world.rows(), policy.decide

    def killed(seen: policy.Observation) -> policy.Decision:
        assert decide(seen).kind == cause
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(policy, "decide", killed)
        with pytest.raises(KeyboardInterrupt):
            world.tick(0)
    assert world.rows() == before
    world.tick(0)
    expected = ("paused", ["budget"]) if cause == "pause" else ("running", [])
    assert held(world, rollout) == expected


def test_of_two_ticks_at_once_one_pauses(world: World) -> None:
    rollout, _phones = spend(world)
    day = timedelta(days=1)
    with world.app.state.database.reader() as session:
        stale = session.get_one(Rollout, rollout)
        session.expunge(stale)
    tick.tick(world.app.state.database, world.now, day)
    with world.app.state.database.writer() as session:
        tick.step(session, session.get_one(Rollout, rollout), world.now, day)
    assert log(world, rollout) == [("start", "tester"), ("pause", "tick")]


def test_the_status_page_says_why_in_words(world_sqlite: World) -> None:
    rollout, _phones = spend(world_sqlite)
    world_sqlite.tick()
    page = world_sqlite.client.get("/", auth=("me", world_sqlite.token)).text
    assert "Paused because its byte budget is spent." in page
    assert f"rollout-{rollout}" in page


def test_a_rollout_of_a_line_that_is_paused_is_started_no_second_time(line: World) -> None:
    rollout = started(line)
    line.ok("POST", at(rollout, "/pause"))
    refused(line.call("POST", at(rollout, "/start")), 409, "wrong-state")
