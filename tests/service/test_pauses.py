"""A pause carries a set of reasons, and ends when the last of them does."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from service.core import policy
from service.db.rollout_tables import CanarySums, Rollout
from service.fleet import rollouts, tick
from service.fleet.reports import note_seen
from tests.service.line import edge, release, started
from tests.service.phone import Phone
from tests.service.publishing import write
from tests.service.test_rollouts import NEARLY_ALL, SMALL_GATE
from tests.service.world import BASE, BETTER, MODEL, World, digest, refused

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


def two_stages(world: World, **more: Any) -> str:
    """Publish r1 > r2 > r3, let the first stage of r3 be safe, and a patch turn out bad."""
    for number, bases in ((1, ()), (2, (1,)), (3, (2,))):
        release(world, number, *bases)
    world.publish_canary()
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    edge_of = edge(world, 1, 2)
    runs = world.ok("GET", f"/v1/models/{MODEL}/releases")["items"][0]["sha256"]
    phones = world.fleet(12, runs)
    stages = [{"share_bp": 9999, "soak_s": 3600}, {"share_bp": 10_000}]
    rollout = world.start_rollout("r3", "all", gate=SMALL_GATE, stages=stages, **more)
    for phone in phones[:10]:
        phone.install(phone.offered(), 20, 10)
    world.ok(
        "POST",
        f"/v1/models/{MODEL}/patches/{edge_of['from']}/{edge_of['to']}/withdraw",
        json={"reason": "crashes"},
    )
    world.tick(3600)
    return rollout


def test_no_stage_opens_whose_patches_are_missing_until_they_are_published(world: World) -> None:
    rollout = two_stages(world)
    assert held(world, rollout) == ("paused", ["patches_missing"])
    assert shown(world, rollout)["stage"] == 1
    problem = refused(world.call("POST", at(rollout, "/resume")), 409, "still-held")
    assert problem["reasons"] == ["patches_missing"] and "r1 (2 of them" in problem["detail"]
    world.ok("POST", f"/v1/models/{MODEL}/patches/r1/r2/restore")
    world.tick()
    assert held(world, rollout) == ("running", [])
    world.tick()
    assert shown(world, rollout)["stage"] == 2


def test_whoever_accepts_full_downloads_resumes_without_the_patches(world_sqlite: World) -> None:
    world = world_sqlite
    rollout = two_stages(world)
    world.ok("POST", at(rollout, "/resume"), params={"accept_full_downloads": True})
    world.tick()
    assert (held(world, rollout), shown(world, rollout)["stage"]) == (("running", []), 2)


def test_whoever_accepted_them_at_the_start_is_not_asked_again(world_sqlite: World) -> None:
    rollout = two_stages(world_sqlite, full_downloads=True)
    assert shown(world_sqlite, rollout)["stage"] == 2


def test_devices_under_way_that_are_not_heard_of_pause_before_they_are_blamed(
    world: World,
) -> None:
    rollout = world.ready()
    phones = world.fleet(6, digest(BASE))
    assert {phone.offered()["release"] for phone in phones} == {"r2"}
    world.tick(HALF_A_DAY)
    assert held(world, rollout) == ("running", []), "when they were seen is not written yet"
    seen_at = {phone.id: world.now - timedelta(seconds=HALF_A_DAY) for phone in phones}
    heard(world, seen_at)
    world.tick()
    assert held(world, rollout) == ("paused", ["silence"])
    said = world.ok("GET", at(rollout, "/decisions"))["items"][-1]["reason"]
    assert said.startswith("silence: 6 of 6 devices under way were not heard of for long")
    world.tick(86400)
    assert shown(world, rollout)["stages"][0]["failed"] == 0
    world.ok("POST", at(rollout, "/resume"), json={"reason": "the link is back"})
    world.tick()
    assert held(world, rollout) == ("running", []), "they have their full time again"
    heard(world, {phone.id: world.now for phone in phones})
    world.tick(HALF_A_DAY - 60)
    assert held(world, rollout) == ("running", []), "heard of within it"
    world.tick(120)
    assert held(world, rollout) == ("paused", ["silence"])


def heard(world: World, seen_at: dict[str, Any]) -> None:
    with world.app.state.database.writer() as session:
        note_seen(session, seen_at)


def fail(world: World, phones: list[Phone]) -> None:
    for phone, plan in zip(phones, world.plans(phones), strict=True):
        phone.say("refused", plan["deployment"], reason="E_CANARY")


def test_failures_that_a_person_has_seen_are_the_new_zero(world: World) -> None:
    world.publish_all()
    gate = SMALL_GATE | {"hostile_count": 3}
    rollout = world.start_rollout("r2", "all", gate=gate, stages=NEARLY_ALL)
    phones = world.fleet(20, digest(BASE))
    fail(world, phones[:5])
    world.tick()
    assert held(world, rollout) == ("paused", ["failure_rate"])
    world.ok("POST", at(rollout, "/resume"), json={"reason": "one shelf without power"})
    world.tick()
    found = shown(world, rollout)
    assert found["state"] == "running"
    assert (found["health"]["failures"], found["health"]["failure_devices"]) == (0, 0)
    assert found["stages"][0]["refused"] == 5
    fail(world, phones[5:10])
    world.tick()
    assert held(world, rollout) == ("paused", ["failure_rate"]), "as many again"
    assert shown(world, rollout)["health"]["failures"] == 5


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
