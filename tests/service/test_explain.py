"""`explain` names the rule that stops a device, in the words of the poll that it rehearses."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select

from service.core.access import SCOPES
from service.db.rollout_tables import Budget, Deployment, Rollout, Stage
from service.db.tables import Device, DeviceModel
from tests.service.phone import Phone
from tests.service.world import BASE, BETTER, MODEL, World, digest, refused

STAGES = [{"share_bp": 5000, "in_flight_max": 2}, {"share_bp": 10_000}]


def told(world: World, phone: Phone, rollout: str | None = None) -> Any:
    query = {"rollout": rollout} if rollout else {}
    return world.ok("GET", f"/v1/devices/{phone.id}/explain", params=query)


def stop(world: World, phone: Phone, rollout: str | None = None) -> tuple[str, str, str]:
    found = told(world, phone, rollout)
    assert found["answer"] == found["stopped_by"]["hold"]
    return found["answer"], found["stopped_by"]["rule"], found["stopped_by"]["compared"]


def asked(world: World, serial: str = "s1", **more: Any) -> Phone:
    phone = world.enroll(serial, runs=digest(BASE), **more)
    phone.poll()
    return phone


def test_every_rule_is_listed_in_its_order_up_to_the_one_that_stops_the_device(
    world: World,
) -> None:
    rollout = world.ready(stages=[{"share_bp": 10_000, "in_flight_max": 1}])
    first, second = asked(world), asked(world, "s2")
    assert stop(world, first) == ("order_pending", "order", "not signed yet")
    found = told(world, second)
    assert found["stopped_by"]["rule"] == "in_flight" and found["running_release"] == "r1"
    assert [rule["rule"] for rule in found["rules"]] == (
        "standing release attempt state status direction hardware agent floor metadata cohort "
        "stage in_flight"
    ).split()
    assert [rule["passes"] for rule in found["rules"]] == [True] * 12 + [False]
    assert found["rules"][-1] == {
        "rule": "in_flight",
        "compared": "1 may be on their way at once",
        "hold": "stage_full",
        "rollout": rollout,
        "until": None,
        "passes": False,
    }
    world.tick()
    found = told(world, first)
    assert (found["answer"], found["stopped_by"]) == ("offer", None)


def test_a_device_under_way_is_said_to_be_and_what_it_told_of_trouble_last(world: World) -> None:
    rollout = world.ready()
    phone = asked(world)
    assert told(world, phone)["under_way"] is None, "it waits for its order"
    plan = phone.offered()
    phone.say("downloading", plan["deployment"])
    seen = told(world, phone)
    assert (seen["answer"], seen["under_way"]["state"]) == ("offer", "downloading")
    assert (seen["under_way"]["id"], seen["under_way"]["trouble"]) == (plan["deployment"], None)
    phone.say("note", reason="E_SLOW", detail="100 bytes in a second")
    phone.say("note", reason="agent", detail="1.2")
    trouble = told(world, phone, rollout)["under_way"]["trouble"]
    assert (trouble["reason"], trouble["detail"]) == ("E_SLOW", "100 bytes in a second")


def test_explaining_changes_nothing_and_takes_no_place(world: World) -> None:
    rollout = world.ready(stages=[{"share_bp": 10_000, "in_flight_max": 1}])
    phone = world.enroll("s1", runs=digest(BASE))
    before = world.rows()
    for _ in range(3):
        assert told(world, phone)["stopped_by"]["rule"] == "order", "it would get the one place"
        world.ok("GET", f"/v1/rollouts/{rollout}/explain")
    assert world.rows() == before
    assert phone.offered()["release"] == "r2"


def test_explaining_waits_for_no_writer_and_keeps_none_waiting(world: World) -> None:
    stages = [{"share_bp": 9999}, {"share_bp": 10_000}]
    world.publish_all()
    new, again, there, back = (asked(world, f"s{number}") for number in range(4))
    rollout = world.start_rollout("r2", "all", stages=stages, per_minute_max=5, bytes_max=1 << 30)
    for phone in (again, there, back):
        phone.etag = ""
    again.say("failed", again.offered()["deployment"], reason="E_HTTP")
    back.install(back.offered(), 5, 5)
    there.say("activated", there.offered()["deployment"])
    world.tick(3601)
    paths = [f"/v1/devices/{phone.id}/explain" for phone in (new, again, there, back)]
    paths.append(f"/v1/rollouts/{rollout}/explain")
    world.ok("GET", paths[0])  # that the token was used is noted once in a minute
    with world.app.state.database.writer() as session, ThreadPoolExecutor() as others:
        for table in (Device, DeviceModel, Deployment, Rollout, Stage, Budget):
            session.execute(select(table).with_for_update()).all()
        asking = [others.submit(world.ok, "GET", path) for path in paths]
        answers = [each.result(timeout=10) for each in asking]
    rules = [[rule["rule"] for rule in found["rules"]] for found in answers[:-1]]
    assert {"per_minute", "bytes"} <= set(rules[0]) & set(rules[1])
    assert answers[1]["rules"][2]["compared"] == "its attempt is failed: E_HTTP"
    assert [found["answer"] for found in answers[2:-1]] == ["backoff", "up_to_date"]
    assert answers[1]["under_way"] is None, "it was not offered again, only supposed to be"


@pytest.mark.parametrize(
    ("enrolled", "expected"),
    [
        ({"hardware": "h9"}, ("not_in_cohort", "cohort", "the device is not in cohort h1 only")),
        ({"attributes": {}}, ("order_pending", "order", "not signed yet")),
    ],
)
def test_the_words_name_what_was_compared(
    world_sqlite: World, enrolled: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    world = world_sqlite
    world.publish_all()
    chosen = {"name": "h1-only", "model": MODEL, "filter": {"hardware": ["h1"]}}
    world.ok("POST", "/v1/cohorts", json=chosen)
    world.start_rollout("r2", "h1-only", stages=[{"share_bp": 10_000}])
    found = stop(world, asked(world, **enrolled))
    assert found == (*expected[:2], expected[2].replace("h1 only", "h1-only"))


def test_a_device_outside_of_the_share_is_told_its_bucket(world_sqlite: World) -> None:
    world = world_sqlite
    world.ready(stages=[{"share_bp": 1}, {"share_bp": 10_000}])
    answer, rule, compared = stop(world, asked(world))
    assert (answer, rule) == ("not_in_stage", "stage")
    assert compared.startswith("bucket ") and compared.endswith("stage 1 takes those below 1")


def test_one_rollout_can_be_asked_about_and_says_why_it_was_not_reached(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    first = world.ready()
    phone = asked(world)
    world.ok("POST", "/v1/cohorts", json={"name": "also", "model": MODEL, "filter": {}})
    second = world.start_rollout("r2", "also", stages=[{"share_bp": 10_000}])
    assert stop(world, phone, second)[:2] == ("other_first", "turn")
    assert stop(world, phone, first)[:2] == ("order_pending", "order")
    world.ok("POST", f"/v1/rollouts/{second}/halt")
    assert stop(world, phone, second) == ("no_rollout", "state", "the rollout is halted")
    world.ok("POST", f"/v1/rollouts/{first}/pause")
    assert stop(world, phone, first) == ("paused", "state", "the rollout is paused")
    world.ok("PATCH", f"/v1/devices/{phone.id}", json={"status": "revoked"})
    assert stop(world, phone, first) == ("revoked", "standing", "the device is revoked")
    refused(world.call("GET", f"/v1/devices/{phone.id}/explain?rollout=nothing"), 404)
    refused(world.call("GET", "/v1/devices/nothing/explain"), 404)


def test_where_nothing_is_published_that_is_the_answer(unpublished: World) -> None:
    world = unpublished
    world.ok("POST", "/v1/models", json={"name": MODEL})
    phone = asked(world)
    assert stop(world, phone)[0] == "nothing_published"
    phone.etag = ""
    assert phone.poll()["hold"] == "nothing_published"


def test_a_rollout_is_explained_by_outcomes_counted_and_reasons_sampled(world: World) -> None:
    rollout = world.ready(stages=[{"share_bp": 10_000, "in_flight_max": 2}])
    phones = world.fleet(8, digest(BASE))
    done = phones[0]
    done.install(done.offered(), 5, 5)
    world.ok("PATCH", f"/v1/devices/{phones[7].id}", json={"status": "quarantined"})
    failed = phones[1].offered()["deployment"]
    phones[1].say("failed", failed, reason="E_HASH")
    for phone in phones[2:4]:
        phone.poll()
    found = world.ok("GET", f"/v1/rollouts/{rollout}/explain")
    counted = {"cohort": 7, "on_the_release": 1, "without_outcome": 5, "on_their_way": 2}
    assert found["devices"] == counted | {"confirmed": 1, "failed": 1}
    held = {(one["answer"], one["rule"]): one["devices"] for one in found["held"]}
    assert held == {("stage_full", "in_flight"): 3, ("order_pending", "order"): 2}
    assert found["sampled"] == 5
    assert found["next"]["kind"] == "hold" and "1 device reported" in found["next"]["because"]


def test_who_enrolled_after_the_start_and_is_not_meant_is_not_counted(world: World) -> None:
    rollout = world.ready(include_new=False, gate={"pairs_promote_least": 1})
    (phone,) = world.fleet(1, digest(BASE))
    world.now += timedelta(hours=1)
    world.fleet(2, digest(BASE), prefix="late")
    world.fleet(1, digest(BETTER), prefix="there")
    found = world.ok("GET", f"/v1/rollouts/{rollout}/explain")
    counted = {"cohort": 1, "on_the_release": 0, "without_outcome": 1, "on_their_way": 1}
    assert found["devices"] == counted and found["sampled"] == 1
    assert [one["for_example"] for one in found["held"]] == [phone.id]
    (stage,) = world.ok("GET", f"/v1/rollouts/{rollout}")["stages"]
    assert stage["devices"] == 1


def test_a_draft_says_which_patches_are_missing_and_that_it_takes_a_person(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    world.publish("r1", BASE)
    world.publish("r2", BETTER * 200)
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    phone = asked(world)
    body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": [{"share_bp": 10_000}]}
    rollout = world.ok("POST", "/v1/rollouts", json=body)["id"]
    found = world.ok("GET", f"/v1/rollouts/{rollout}/explain")
    assert found["waiting_for"] == "a person starts it" and found["next"] is None
    assert [row["release"] for row in found["patches_missing"]] == ["r1"]
    expected = {"answer": "no_rollout", "rule": "state", "devices": 1, "for_example": phone.id}
    assert found["held"] == [expected | {"compared": "the rollout is draft"}]


class Story:
    """Devices, people and time at random; before every poll it is explained what it will say."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.draw = world, random.Random(seed)
        self.agreed: set[str] = set()
        world.publish_all()
        self.rollouts = [world.start_rollout("r2", "all", stages=STAGES)]
        self.phones = [world.enroll(f"serial-{n}", runs=digest(BASE)) for n in range(6)]
        self.changes: list[Callable[[], object]] = [
            *(partial(self.verb, word) for word in "pause resume resume halt start".split()),
            *(partial(self.device, status=word) for word in ("quarantined", "active", "active")),
            partial(self.floor, "PUT", json={"reason": "a"}),
            partial(self.floor, "DELETE"),
            world.tick,
            world.tick,
            self.later,
            self.another,
        ]

    def poll(self, phone: Phone) -> None:
        if self.draw.random() < 0.2:  # only bytes that were seen can be explained
            phone.runs = self.draw.choice([digest(BASE), digest(BETTER), "", "9" * 64])
            self.ask(phone)
        expected = told(self.world, phone)
        asked = self.ask(phone)
        assert (asked["hold"] or "offer") == expected["answer"], expected
        last = expected["rules"][-1]
        if asked["plan"]:
            assert (last["rollout"], last["rule"]) == (asked["plan"]["rollout"], "order")
        for rollout in self.rollouts:
            rules = told(self.world, phone, rollout)["rules"]
            assert [r for r in rules if r["rollout"] == rollout][-1:] or not rules[-1]["passes"]
        self.agreed.add(expected["answer"])
        if asked["plan"] and self.draw.random() < 0.3:
            said = self.draw.choice(["applied", "activated", "failed", "refused"])
            phone.say(said, asked["plan"]["deployment"])
        if asked["plan"] and self.draw.random() < 0.3:
            phone.runs = asked["plan"]["sha256"]
            self.ask(phone)

    def ask(self, phone: Phone) -> Any:
        phone.etag = ""
        return phone.poll()

    def verb(self, name: str) -> None:
        path = f"/v1/rollouts/{self.draw.choice(self.rollouts)}/{name}"
        self.world.call("POST", path, json={"reason": "test"})

    def device(self, **change: object) -> None:
        self.world.call("PATCH", f"/v1/devices/{self.draw.choice(self.phones).id}", json=change)

    def floor(self, method: str, **more: Any) -> None:
        release = self.draw.choice(["r1", "r2"])
        self.world.call(method, f"/v1/models/{MODEL}/floors/{release}", **more)

    def later(self) -> None:
        self.world.now += timedelta(hours=self.draw.choice([1, 24, 24 * 6]))
        self.world.token = self.world.token_with(*SCOPES)

    def another(self) -> None:
        made = {"model": MODEL, "release": "r2", "cohort": "all", "stages": STAGES}
        made |= self.draw.choice([{}, {"per_minute_max": 1}, {"conditions": {"idle": True}}])
        self.rollouts.append(self.world.ok("POST", "/v1/rollouts", json=made)["id"])
        self.verb("start")


def test_explain_and_poll_always_agree(world: World) -> None:
    story = Story(world, 1)
    for _ in range(40):
        for phone in story.draw.choices(story.phones, k=3):
            story.poll(phone)
        story.draw.choice(story.changes)()
    assert len(story.agreed) >= 4, "the story met more than one rule"
