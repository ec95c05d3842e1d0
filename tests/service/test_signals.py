"""What devices tell without a reference: it may halt or warn, whoever says it, and no more."""

from typing import Any

import pytest

from service.db.rollout_tables import CanaryReport, Rollout
from service.fleet import sums
from tests.service.test_canary_attacks import EAGER, TWO, recompute, seen, switch
from tests.service.world import BASE, World, digest

QUIETLY = {"differ_utts": 2, "old_empty": 1, "new_empty": 1, "together": True}
EMPTY = QUIETLY | {"new_empty": 9}


def started(world: World, count: int, **gate: Any) -> tuple[str, list[Any], list[Any]]:
    world.publish_all()
    phones = world.fleet(count, digest(BASE))
    rollout = world.start_rollout("r2", "all", gate=EAGER | gate, stages=TWO)
    return rollout, phones, world.plans(phones)


def tell(world: World, phones: list[Any], plans: list[Any], *told: dict[str, Any]) -> None:
    """Let each device report that words are better, and besides what stands in its place."""
    for place, (phone, plan) in enumerate(zip(phones, plans, strict=True)):
        reply = phone.pair(plan, 20, 10, **told[place % len(told)])
        assert reply.json() == {"result": "counted"}, reply.text
    switch(world, phones, plans)
    world.tick()


def signals(world: World, rollout: str) -> dict[str, tuple[Any, ...]]:
    rows = seen(world, rollout)["health"]["signals"]
    return {r["signal"]: (r["state"], r["devices"], r["worse"], r["better"]) for r in rows}


def page_of(world: World) -> str:
    reply = world.client.get("/", auth=("", world.token))
    assert reply.status_code == 200
    return str(reply.text)


def test_a_model_that_hears_nothing_more_often_is_halted_however_good_its_words_are(
    world: World,
) -> None:
    rollout, phones, plans = started(world, 60)
    tell(world, phones, plans, EMPTY)
    found = seen(world, rollout)
    assert found["state"] == "halted"
    assert found["halt_reason"] == "signals: empty: worse on 60 of 60 devices, better on 0"
    assert signals(world, rollout)["empty"] == ("halt", 60, 60, 0)
    parts = {part["part"]: part["state"] for part in found["health"]["parts"]}
    assert parts["pooled"] == "safe", "by the words alone it would have gone on"
    assert recompute(world) == ["halt"]
    with world.app.state.database.reader() as session:
        assert sums.disagreements(session, rollout) == []


def test_a_model_that_is_slower_is_halted_if_both_were_heard_in_one_trial(
    world_sqlite: World,
) -> None:
    rollout, phones, plans = started(world_sqlite, 60)
    tell(world_sqlite, phones, plans, QUIETLY | {"old_ms": 1000, "new_ms": 1600})
    assert seen(world_sqlite, rollout)["halt_reason"].startswith("signals: latency: worse on 60 ")
    assert recompute(world_sqlite) == ["halt"]


@pytest.mark.parametrize("together", [{"together": False}, {"together": None}])
def test_times_of_two_days_say_nothing(world_sqlite: World, together: dict[str, Any]) -> None:
    rollout, phones, plans = started(world_sqlite, 60)
    tell(world_sqlite, phones, plans, QUIETLY | {"old_ms": 1, "new_ms": 9999} | together)
    assert signals(world_sqlite, rollout)["latency"] == ("quiet", 0, 0, 0)
    assert seen(world_sqlite, rollout)["stage"] == 2


def test_times_that_are_luck_halt_nothing(world_sqlite: World) -> None:
    rollout, phones, plans = started(world_sqlite, 60)
    slower, faster = ({"old_ms": a, "new_ms": b} for a, b in ((10, 30), (30, 10)))
    tell(world_sqlite, phones, plans, QUIETLY | slower, QUIETLY | faster)
    assert signals(world_sqlite, rollout)["latency"] == ("quiet", 60, 30, 30)
    assert seen(world_sqlite, rollout)["stage"] == 2


def test_transcripts_that_differ_warn_and_hold_nothing_up(world_sqlite: World) -> None:
    rollout, phones, plans = started(world_sqlite, 60)
    tell(world_sqlite, phones, plans, QUIETLY | {"differ_utts": 20})
    assert signals(world_sqlite, rollout) == {
        "differ": ("warn", 60, 60, 0),
        "empty": ("quiet", 60, 0, 0),
        "latency": ("quiet", 60, 0, 0),
    }
    assert seen(world_sqlite, rollout)["stage"] == 2
    assert recompute(world_sqlite) == ["advance"]
    page = page_of(world_sqlite)
    assert "Without a reference" in page and "<b>warn</b>" in page


def test_an_agent_that_tells_nothing_of_them_counts_for_its_words_alone(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    rollout, phones, plans = started(world, 60)
    tell(world, phones, plans, {})
    nothing = ("quiet", 0, 0, 0)
    assert signals(world, rollout) == dict.fromkeys(("differ", "empty", "latency"), nothing)
    found = seen(world, rollout)
    assert (found["stage"], found["health"]["pairs"]) == (2, 60)
    with world.app.state.database.reader() as session:
        kept = {scope for _, scope in sums.by_scope(session, rollout)}
        assert not any(scope.startswith("signal:") for scope in kept)
        assert sums.disagreements(session, rollout) == []
    assert "Without a reference" not in page_of(world)


def test_the_control_arm_says_nothing_of_a_model_that_it_did_not_compare(
    world_sqlite: World,
) -> None:
    rollout, phones, plans = started(world_sqlite, 60, control_share=0.4)
    tell(world_sqlite, phones, plans, QUIETLY)
    canaries = sum(plan["canary"]["arm"] == "canary" for plan in plans)
    assert 20 < canaries < 60
    assert signals(world_sqlite, rollout)["empty"][1] == canaries


@pytest.mark.attack("T01")
def test_liars_within_the_budget_halt_nothing_by_signals(world_sqlite: World) -> None:
    rollout, phones, plans = started(world_sqlite, 60)
    liars = [EMPTY | {"old_ms": 1, "new_ms": 9999}] * 3
    tell(world_sqlite, phones, plans, *liars, *[QUIETLY] * 57)
    assert signals(world_sqlite, rollout)["empty"] == ("quiet", 60, 3, 0)
    assert seen(world_sqlite, rollout)["stage"] == 2


def test_who_is_heard_twice_counts_once(world_sqlite: World) -> None:
    rollout, phones, plans = started(world_sqlite, 4)
    for _ in range(3):
        for phone, plan in zip(phones, plans, strict=True):
            phone.pair(plan, 20, 10, **EMPTY)
    assert signals(world_sqlite, rollout)["empty"] == ("quiet", 4, 4, 0)


def test_a_rollout_whose_gate_was_fixed_before_there_were_signals_hears_none(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    rollout, phones, plans = started(world, 60)
    with world.app.state.database.writer() as session:
        row = session.get_one(Rollout, rollout)
        new = ("alpha_signals", "signal_share", "latency_ratio")
        row.gate = {name: value for name, value in row.gate.items() if name not in new}
    tell(world, phones, plans, EMPTY)
    found = seen(world, rollout)
    assert (found["stage"], found["health"]["signals"]) == (2, [])


def test_what_was_told_is_kept_and_what_it_added(world_sqlite: World) -> None:
    rollout, phones, plans = started(world_sqlite, 1)
    tell(world_sqlite, phones, plans, EMPTY | {"old_ms": 30, "new_ms": 10})
    with world_sqlite.app.state.database.reader() as session:
        row = session.query(CanaryReport).filter_by(rollout_id=rollout).one()
        assert (row.differ_utts, row.old_empty, row.new_empty, row.together) == (2, 1, 9, True)
        assert (row.differ_d, row.empty_d, row.latency_d) == (0, 100_000, -100_000)
