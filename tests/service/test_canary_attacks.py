"""Whoever lies to the canary: what a share of the devices can do, and what it cannot."""

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from service.core import policy
from service.db.rollout_tables import Decision, Rollout
from service.engine import tick
from tests.service.phone import Phone
from tests.service.world import BASE, World, digest, patch_between

ALL = [{"share_bp": 10_000}]
TWO = [{"share_bp": 9999}, {"share_bp": 10_000}]
DAY = timedelta(days=1)
EAGER = {"hostile_share": 0, "pairs_promote_least": 20, "clip": 0.1, "alpha_promote": 0.2}


def answer(world: World, phones: Sequence[Phone], told: Sequence[tuple[int, int]]) -> list[Any]:
    """Let each device report (old, new) through HTTP; returns the plans."""
    plans = world.plans(phones)
    for phone, plan, (old, new) in zip(phones, plans, told, strict=True):
        reply = phone.pair(plan, old, new)
        assert reply.status_code == 202, reply.text
    return plans


def switch(world: World, phones: Sequence[Phone], plans: Sequence[Any]) -> None:
    """Let each device take the release, which its next poll proves."""
    for phone, plan in zip(phones, plans, strict=True):
        phone.runs = plan["sha256"]
    world.plans(phones)


def seen(world: World, rollout: str) -> Any:
    return world.ok("GET", f"/v1/rollouts/{rollout}")


def recompute(world: World) -> list[str]:
    """Check that every verdict follows from its row alone; returns the verdicts."""
    found = []
    with world.app.state.database.reader() as session:
        for row in session.query(Decision).filter_by(actor="tick").order_by(Decision.at):
            decision = policy.decide(policy.recall(row.evidence["seen"]))
            assert (decision.kind, f"{decision.reason}: {decision.because}") == (
                row.decision,
                row.reason,
            )
            found.append(row.decision)
    return found


@pytest.mark.attack("T01")
@pytest.mark.parametrize("percent", [1, 5, 10])
def test_liars_who_say_that_all_is_bad_halt_nothing(world_sqlite: World, percent: int) -> None:
    world, dice = world_sqlite, random.Random(percent)
    rollout = world.ready()
    phones = world.fleet(200, digest(BASE))
    told = [(10, dice.choice((9, 10, 11))) for _ in phones]
    told[: 2 * percent] = [(0, 100)] * (2 * percent)
    dice.shuffle(told)
    for part in (slice(0, 60), slice(60, 200)):
        answer(world, phones[part], told[part])
        world.tick()
        assert seen(world, rollout)["state"] == "running"
    assert seen(world, rollout)["health"]["pairs"] == 200


@pytest.mark.attack("T02")
@pytest.mark.parametrize("percent", [1, 5, 10])
def test_liars_who_say_that_all_is_well_save_nothing(world_sqlite: World, percent: int) -> None:
    world, dice = world_sqlite, random.Random(percent)
    rollout = world.ready()
    phones = world.fleet(200, digest(BASE))
    told = [(10, dice.choice((11, 12, 13))) for _ in phones]
    told[: 2 * percent] = [(100, 0)] * (2 * percent)
    dice.shuffle(told)
    answer(world, phones, told)
    world.tick()
    found = seen(world, rollout)
    assert found["state"] == "halted" and found["halt_reason"].startswith("wer: ")
    assert recompute(world) == ["halt"]


@pytest.mark.attack("T10")
def test_a_storm_of_failures_of_a_few_devices_is_counted_by_device_and_sends_nobody_back(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    world.publish_all()
    rollout = world.start_rollout("r2", "all", gate=EAGER, stages=TWO)
    phones = world.fleet(60, digest(BASE))
    plans = answer(world, phones, [(20, 10)] * 60)
    for phone, plan in zip(phones[:8], plans, strict=False):
        for _ in range(5):
            phone.say("refused", plan["deployment"], reason="E_CANARY")
            phone.say("failed", plan["deployment"], reason="E_CANARY")
    switch(world, phones[8:], plans[8:])
    world.tick()
    found = seen(world, rollout)
    assert (found["health"]["failures"], found["health"]["failure_devices"]) == (8, 60)
    assert (found["state"], found["reasons"]) == ("paused", ["failure_rate"])
    assert found["stages"][0]["confirmed"] == 52 and found["stages"][0]["rolled_back"] == 0
    world.ok("POST", f"/v1/rollouts/{rollout}/resume", json={"reason": "eight of one shelf"})
    world.tick()
    assert seen(world, rollout)["stage"] == 2
    items = world.ok("GET", f"/v1/rollouts/{rollout}/decisions")["items"]
    assert [d["decision"] for d in items] == ["start", "pause", "resume", "advance"]
    assert items[1]["reason"].endswith("too few to halt, too many to go on")
    assert items[2]["actor"] == "tester" and items[2]["reason"] == "eight of one shelf"
    assert recompute(world) == ["pause", "advance"]


@pytest.mark.attack("T11")
def test_a_little_worse_every_day_is_measured_against_where_it_began(world_sqlite: World) -> None:
    """Each step is within the margin of the one before, and people let it pass when asked."""
    world, verdicts = world_sqlite, []
    models = [f"model {number}".encode() * 100 for number in range(6)]
    world.publish("r0", models[0])
    world.publish_canary(ref_words=10_000)
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": "asr", "filter": {}})
    phones = world.fleet(100, digest(models[0]))
    errors = [round(4000 * 1.015**step) for step in range(6)]
    gate = {"hostile_count": 0, "hostile_share": 0, "clip": 0.035, "sigma": 0.01}
    gate |= {
        "alpha_promote": 0.2,
        "pairs_promote_least": 20,
        "pairs_expected": 20,
        "undecided_s": 3600,
    }
    for step in range(1, 6):
        patch = patch_between(models[step - 1], models[step])
        world.publish(f"r{step}", models[step], after=f"r{step - 1}", patch=patch)
        rollout = world.start_rollout(f"r{step}", "all", gate=gate, stages=ALL)
        plans = world.plans(phones)
        for phone, plan in zip(phones, plans, strict=True):
            assert (plan["canary"]["base"] is None) == (step == 1)
            base = {"base": {"sub": errors[0], "del": 0, "ins": 0}} if step > 1 else {}
            told = {"ref_words": 10_000, **base}
            assert phone.pair(plan, errors[step - 1], errors[step], **told).status_code == 202
        switch(world, phones, plans)
        world.tick()
        found = seen(world, rollout)
        parts = {part["part"]: part["state"] for part in found["health"]["parts"]}
        verdicts.append((parts["pooled"], parts.get("chain"), found["state"]))
        if found["state"] == "running":  # somebody looks at this one step, which is a small one
            world.tick(3600)
            world.ok("POST", f"/v1/rollouts/{rollout}/resume", json={"reason": "looks fine"})
            world.tick()
    assert verdicts == [
        ("safe", None, "completed"),
        ("safe", "safe", "completed"),
        ("safe", "safe", "completed"),
        ("safe", "wait", "running"),
        ("safe", "halt", "halted"),
    ]
    assert "against the base of the chain" in found["halt_reason"]
    assert recompute(world) == ["finish"] * 3 + ["pause", "finish", "halt"]


@pytest.mark.attack("T13")
@pytest.mark.parametrize("worse", [False, True])
def test_a_poisoned_control_group_makes_nothing_look_good(world_sqlite: World, worse: bool) -> None:
    """A pair is compared on its own device, never with the other arm, which can only hold up."""
    world = world_sqlite
    world.publish_all()
    phones = world.fleet(120, digest(BASE))
    gate = EAGER | {"control_share": 0.4}
    rollout = world.start_rollout("r2", "all", gate=gate, stages=TWO)
    told = []
    for plan in world.plans(phones):
        is_control = plan["canary"]["arm"] == "control"
        told.append((10, 40) if is_control else (10, 20) if worse else (20, 10))
    switch(world, phones, answer(world, phones, told))
    world.tick()
    found = seen(world, rollout)
    parts = {part["part"]: part["state"] for part in found["health"]["parts"]}
    assert parts["placebo"] == "moved"
    if worse:
        assert found["state"] == "halted" and found["halt_reason"].startswith("wer: ")
    else:
        assert parts["pooled"] == "safe" and (found["state"], found["stage"]) == ("running", 1)
        assert "heard the old model twice" in found["health"]["waiting_for"]


# Classes, and what a decision costs


def test_a_class_that_is_damaged_halts_what_all_devices_together_would_promote(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    world.publish_all()
    gate = EAGER | {"hostile_count": 0, "class_pairs_promote_least": 10, "pairs_halt_least": 10}
    phones = world.fleet(160, digest(BASE), hardware=("h1", "h2", "h3", "h4"))
    rare = world.fleet(2, digest(BASE), prefix="rare", hardware=("h9",))
    rollout = world.start_rollout("r2", "all", gate=gate, stages=TWO)
    world.tick()
    told = [(20, 30) if number % 4 == 3 else (20, 10) for number in range(160)]
    answer(world, [*phones, *rare], [*told, (20, 10), (20, 60)])
    states = {part["part"]: part["state"] for part in seen(world, rollout)["health"]["parts"]}
    assert states == {
        "pooled": "safe",
        **{f"class h{number}": "safe" for number in (1, 2, 3)},
        "class h4": "halt",
        "placebo": "still",
        "class h9": "thin",
    }
    world.tick()
    found = seen(world, rollout)
    assert found["state"] == "halted" and "40 devices of class h4" in found["halt_reason"]
    assert recompute(world) == ["halt"]


def test_a_decision_reads_the_same_few_rows_however_many_reports_there_are(world: World) -> None:
    world.publish_all()
    rollout = world.start_rollout("r2", "all", stages=TWO)
    told: list[list[str]] = []
    for number in (5, 40):
        answer(world, world.fleet(number, digest(BASE), prefix=f"d{number}"), [(10, 10)] * number)
        told.append(decided(world, rollout))
    assert told[0] == told[1] and len(told[0]) < 8
    read = " ".join(told[1])
    assert "canary_sums" in read
    assert not any(f"FROM {table}" in read for table in ("canary_report", "device", "deployment"))


def decided(world: World, rollout_id: str) -> list[str]:
    """Return the statements of one observation and decision, after the first."""
    statements: list[str] = []
    database = world.app.state.database
    tick.tick(database, world.now, DAY)
    with database.writer() as session:
        rollout = session.get_one(Rollout, rollout_id)
        engine = session.get_bind().engine

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            statements.append(statement)

        event.listen(engine, "before_cursor_execute", note)
        tick.step(session, rollout, world.now, DAY)
        session.flush()
        event.remove(engine, "before_cursor_execute", note)
    return [statement for statement in statements if not statement.startswith("UPDATE")]
