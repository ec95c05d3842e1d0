"""The sums by arm and scope: exact whoever writes at once, and proved by adding up again."""

import itertools
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import update

from service.__main__ import main
from service.core import canary
from service.core.canary import Gate
from service.db.rollout_tables import CanaryReport, CanarySums
from service.fleet import sums
from service.fleet.sums import COLUMNS
from tests.service.phone import Phone
from tests.service.test_reports import report_id
from tests.service.world import BASE, BETTER, World, digest, patch_between

BEST = b"the best model" * 100
Kept = dict[tuple[str, str], tuple[int, ...]]
DAY_S = 86400


def kept(world: World, rollout: str) -> Kept:
    """Return the sums as they lie in the table, slots added up, batches too."""
    found: Kept = {}
    with world.app.state.database.reader() as session:
        for row in session.query(CanarySums).filter_by(rollout_id=rollout):
            values = tuple(getattr(row, name) for name in COLUMNS)
            before = found.get((row.arm, row.scope), (0,) * len(COLUMNS))
            found[row.arm, row.scope] = tuple(map(sum, zip(before, values, strict=True)))
    return found


def disagreements(world: World, rollout: str) -> list[str]:
    with world.app.state.database.reader() as session:
        return sums.disagreements(session, rollout)


def defined(pairs: list[tuple[int, int]], words: int = 100) -> tuple[int, ...]:
    """Return the sums of (old errors, new errors) by the definition."""
    rows = []
    for old, new in pairs:
        d, b = canary.contribution(Gate(), old, new, words)
        rows.append((1, d, d * d, b, b * b, d * b, old, new, words))
    return tuple(map(sum, zip(*rows, strict=True)))


def chained(world: World, **gate: Any) -> str:
    """Start a rollout of r3, two patches after r1."""
    world.publish_all()
    world.publish("r3", BEST, after="r2", patch=patch_between(BETTER, BEST))
    return world.start_rollout("r3", "all", stages=[{"share_bp": 10_000}], gate=gate)


def counts(errors: int) -> dict[str, int]:
    return {"sub": errors, "del": 0, "ins": 0}


@pytest.mark.attack("T04", "T05", "T06", "T07")
def test_eight_writers_and_shuffled_replays_leave_exact_sums_of_every_scope(world: World) -> None:
    rollout = chained(world, control_share=0.3)
    dice = random.Random(7)
    phones = world.fleet(48, digest(BETTER), hardware=("h1", "h2", "h3"))
    expected: dict[tuple[str, str], list[tuple[int, int]]] = {}
    calls: list[Callable[[], Any]] = []
    for place, (phone, plan) in enumerate(zip(phones, world.plans(phones), strict=True)):
        arm, base = plan["canary"]["arm"], plan["canary"]["base"]
        assert base == digest(BASE), "the base of the chain, not the model before"
        old, new, first = (dice.randrange(40) for _ in range(3))
        more = {"base": counts(first)} if place % 2 else {}
        scopes = {"all": old, "stage:1": old}
        if arm == "canary":
            scopes |= {f"hw:h{place % 3 + 1}": old} | ({"chain": first} if place % 2 else {})
        for scope, before in scopes.items():
            expected.setdefault((arm, scope), []).append((before, new))
        calls += [partial(phone.pair, plan, old, new, **more)] * 2
        second = {"attempt": 2, "report_id": report_id(phone, plan, 2)}
        calls.append(partial(phone.pair, plan, 0, 90, **second))
    once = {id(call): call for call in calls}.values()  # one of each, so that the first counts
    firsts, later = [], []
    for call in once:
        (later if call.keywords.get("attempt") else firsts).append(call)
    dice.shuffle(firsts)
    told = at_once(firsts)
    assert set(told) == {"counted"} and told["counted"] == 48
    mixed = [*calls, *later]
    dice.shuffle(mixed)
    assert set(at_once(mixed)) == {"duplicate", "repeat"}
    found = kept(world, rollout)
    batch = {key: found.pop(key) for key in list(found) if key[1].startswith("batch:")}
    assert found == {key: defined(pairs) for key, pairs in expected.items()}
    assert {arm for arm, _ in batch} == {"canary", "control"}, "and the batch is everybody"
    assert sum(values[0] for values in batch.values()) == 48
    assert disagreements(world, rollout) == []
    with world.app.state.database.reader() as session:
        slots = {row.slot for row in session.query(CanarySums)}
    assert (slots == {0}) == world.app.state.database.is_sqlite
    assert slots <= set(range(sums.SLOTS))


def at_once(calls: list[Callable[[], Any]]) -> Counter[str]:
    """Call everything from eight threads; returns how often each result was told."""
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda call: call(), calls))
    assert {reply.status_code for reply in replies} == {202}, [r.text for r in replies]
    return Counter(reply.json()["result"] for reply in replies)


def test_the_server_draws_who_runs_the_placebo_and_only_the_placebo_of_those_counts(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    rollout = world.ready(gate={"control_share": 0.5})
    phones = world.fleet(30, digest(BASE))
    plans = world.plans(phones)
    arms = Counter(plan["canary"]["arm"] for plan in plans)
    assert min(arms["control"], arms["canary"]) > 3
    for phone, plan in zip(phones, plans, strict=True):
        control = plan["canary"]["arm"] == "control"
        other = {"new_model": plan["sha256"] if control else digest(BASE)}
        reply = phone.pair(plan, 10, 30, **other)
        if control:  # an agent that knows of no placebo
            assert reply.json() == {"result": "repeat"}
        else:
            assert reply.status_code == 422, "nobody chooses to be in the other arm"
    assert kept(world, rollout) == {}
    for phone, plan in zip(phones, plans, strict=True):
        again = {"attempt": 2, "report_id": report_id(phone, plan, 2)}
        assert phone.pair(plan, 10, 10, **again).json() == {"result": "counted"}
    found = kept(world, rollout)
    assert found["control", "all"][0] == arms["control"]
    assert found["canary", "all"][0] == arms["canary"]
    assert ("control", "hw:h1") not in found and disagreements(world, rollout) == []


def test_the_base_of_a_chain_is_where_its_patches_begin(world_sqlite: World) -> None:
    world = world_sqlite
    chained(world)
    world.publish("r4", b"a full release, without a patch")
    old = world.plans(world.fleet(1, digest(BASE), prefix="old"))[0]
    assert old["canary"]["base"] is None, "whoever runs the base has nothing else to compare"
    assert world.plans(world.fleet(1, digest(BETTER)))[0]["canary"]["base"] == digest(BASE)
    world.ok("POST", f"/v1/rollouts/{old['rollout']}/halt", json={"reason": "next"})
    world.start_rollout("r4", "all", stages=[{"share_bp": 10_000}])
    whole = world.plans(world.fleet(1, digest(BEST), prefix="new"))[0]
    assert whole["release"] == "r4" and whole["canary"]["base"] is None


# Adding up again


def reported(world: World, count: int = 12) -> str:
    rollout = world.ready()
    phones = world.fleet(count, digest(BASE))
    for old, (phone, plan) in enumerate(zip(phones, world.plans(phones), strict=True)):
        assert phone.pair(plan, old, 10).json() == {"result": "counted"}
        phone.runs = plan["sha256"]
        phone.poll()  # silence would be a failure after a day
    return rollout


WRONG = {
    "a sum": update(CanarySums).where(CanarySums.scope == "hw:h1").values(sd=CanarySums.sd + 1),
    "a count": update(CanarySums).where(CanarySums.scope == "all").values(n=CanarySums.n - 1),
    "a pair": update(CanaryReport).where(CanaryReport.old_sub == 3).values(d=7),
    "a pair that no longer counts": update(CanaryReport)
    .where(CanaryReport.old_sub == 3)
    .values(counted=False),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_somebody_changed_in_the_database_pauses_the_rollout_at_night(
    world: World, what: str
) -> None:
    rollout = reported(world)
    world.tick(DAY_S)
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["state"] == "running", "nothing is wrong"
    with world.app.state.database.writer() as session:
        session.execute(WRONG[what])
    world.tick(60)
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["state"] == "running", "not looked at yet"
    assert "fleetdiff_sums_disagree 0" in world.call("GET", "/metrics").text
    world.tick(DAY_S)
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert (seen["state"], seen["reasons"]) == ("paused", ["sums_disagree"])
    last = world.ok("GET", f"/v1/rollouts/{rollout}/decisions")["items"][-1]
    assert (last["decision"], last["actor"]) == ("pause", "tick")
    assert "add up to" in last["evidence"]["disagreements"][0]
    assert "fleetdiff_sums_disagree 1" in world.call("GET", "/metrics").text


def test_the_command_adds_up_again_and_its_exit_code_tells(
    world_sqlite: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = world_sqlite
    rollout = reported(world)
    monkeypatch.setenv("FLEETDIFF_DATABASE", world.app.state.settings.database)
    monkeypatch.setenv("FLEETDIFF_ARTIFACTS", world.app.state.settings.artifacts)
    assert main(["verify-sums"]) == 0
    assert "exactly" in capsys.readouterr().err
    with world.app.state.database.writer() as session:
        session.execute(WRONG["a sum"])
    assert main(["verify-sums"]) == 1
    told = capsys.readouterr()
    assert told.out.startswith(f"{rollout} canary hw:h1: ") and "1 of 1 rollouts" in told.err
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["state"] == "paused"


# Who is believed


@pytest.mark.attack("T08")
def test_devices_of_one_token_have_no_more_of_the_word_than_their_share(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    rollout = world.ready()
    honest = world.fleet(120, digest(BASE), prefix="honest")
    sybils = world.fleet(40, digest(BASE), prefix="sybil")
    told = [answers(world, group, new) for group, new in ((sybils, 90), (honest, 10))]
    assert told[0] == {"counted": 3, "capped": 37}, "the fastest do not speak for the fleet"
    assert told[1] == {"counted": 120}
    assert 'outcome="capped"} 37' in world.call("GET", "/metrics").text
    found = kept(world, rollout)
    assert sorted(v[0] for (_, s), v in found.items() if s.startswith("batch:")) == [3, 120]
    assert disagreements(world, rollout) == []


def answers(world: World, phones: list[Phone], new: int) -> Counter[str]:
    plans = world.plans(phones)
    both = zip(phones, plans, strict=True)
    return Counter(phone.pair(plan, 10, new).json()["result"] for phone, plan in both)


def test_a_fleet_of_one_token_is_capped_by_nobody(world_sqlite: World) -> None:
    world = world_sqlite
    world.ready()
    assert answers(world, world.fleet(30, digest(BASE)), 10) == {"counted": 30}


@pytest.mark.attack("T13")
def test_what_a_device_says_of_the_old_model_must_be_what_it_said_when_that_was_new(
    world_sqlite: World,
) -> None:
    """With the old model made worse than it is, a worse one would look better."""
    world = world_sqlite
    world.ready(on_halt="keep")
    liars, honest = (world.fleet(8, digest(BASE), prefix=name) for name in ("liar", "honest"))
    phones = [*liars, *honest]
    assert answers(world, phones, 10) == {"counted": 16}
    rollout = world.ok("GET", "/v1/rollouts")["items"][0]["id"]
    world.ok("POST", f"/v1/rollouts/{rollout}/halt", json={"reason": "next"})
    world.publish("r3", BEST, after="r2", patch=patch_between(BETTER, BEST))
    after = world.start_rollout("r3", "all", stages=[{"share_bp": 10_000}])
    for phone in phones:
        phone.runs = digest(BETTER)
    told: Counter[str] = Counter()
    for phone, plan in zip(phones, world.plans(phones), strict=True):
        old = 60 if phone in liars else 11
        told[phone.pair(plan, old, 30).json()["result"]] += 1
    assert told == {"contradicts": 8, "counted": 8}
    assert kept(world, after)["canary", "all"] == defined([(11, 30)] * 8)
    assert list(itertools.chain(disagreements(world, after), disagreements(world, rollout))) == []
