"""The life of a rollout through the real API: stages, verdicts, halts, the way back."""

import json
import math

import pytest
from sqlalchemy import delete

from service.core.canary import Sums, decide, evidence
from service.core.policy import GATE_BOUNDS, gate_of
from service.db.rollout_tables import CohortMember, Rollout
from tests.service.phone import Phone
from tests.service.world import BASE, BETTER, MODEL, World, digest, refused

GATE = {"clip": 0.06, "hostile_count": 0, "hostile_share": 0, "sigma": 0.05, "pairs_expected": 10}
SMALL_GATE = GATE | {
    "alpha_halt": 0.2,
    "alpha_promote": 0.2,
    "pairs_halt_least": 6,
    "pairs_promote_least": 6,
}
FLEET = 30
NEARLY_ALL = [{"share_bp": 9999}, {"share_bp": 10000}]
STAGES = [{"share_bp": 6000}, {"share_bp": 10000}]


def prepare(world: World, devices: int) -> list[Phone]:
    """Publish the base, a better release and a canary set; enroll devices that run the base."""
    world.publish_all()
    return world.fleet(devices, digest(BASE))


@pytest.fixture
def fleet(world: World) -> list[Phone]:
    """Thirty devices, on either database."""
    return prepare(world, FLEET)


@pytest.fixture
def few(world_sqlite: World) -> list[Phone]:
    """A few devices, where no database can make a difference."""
    return prepare(world_sqlite, 10)


def spread(world: World, fleet: list[Phone], old: int, new: int) -> int:
    """Let every device that has an offer take it; returns how many did."""
    plans = []
    for phone in fleet:
        phone.etag = ""
        bundle = phone.poll()
        if bundle["plan"] or bundle["hold"] == "order_pending":
            plans.append(phone)
    world.tick()
    for phone in plans:
        phone.etag = ""
        phone.install(phone.poll()["plan"], old, new)
    return len(plans)


def test_a_good_release_spreads_stage_by_stage(world: World, fleet: list[Phone]) -> None:
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE, stages=STAGES)
    first = spread(world, fleet, old=20, new=10)
    assert 6 <= first < FLEET
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert seen["stages"][0]["confirmed"] == first and seen["stages"][1]["confirmed"] == 0
    assert seen["stages"][0]["old_wer_bp"] == 2000 and seen["stages"][0]["new_wer_bp"] == 1000
    world.tick()
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["stage"] == 2
    assert spread(world, fleet, old=20, new=10) == FLEET - first
    world.tick()
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert seen["state"] == "completed"
    assert {phone.runs for phone in fleet} == {digest(BETTER)}
    decisions = [
        d["decision"] for d in world.ok("GET", f"/v1/rollouts/{rollout}/decisions")["items"]
    ]
    assert decisions == ["start", "advance", "finish"]


def test_a_bad_release_is_halted_and_every_device_sent_back(
    world: World, fleet: list[Phone]
) -> None:
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE, stages=STAGES)
    first = spread(world, fleet, old=10, new=30)
    world.tick()
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert seen["state"] == "halted" and seen["halt_reason"].startswith("wer: ")
    assert seen["stages"][1]["confirmed"] == 0
    for phone in fleet:
        phone.etag = ""
        plan = phone.offered()
        if phone.runs == digest(BETTER):
            assert plan["direction"] == "back" and plan["sha256"] == digest(BASE)
            assert plan["pipelines"][0][0]["op"] == "undo"
            phone.runs = digest(BASE)
            phone.poll()
        else:
            assert plan == "no_rollout"
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert seen["stages"][0]["rolled_back"] == first


def test_a_device_that_switched_while_the_halt_was_under_way_is_counted_and_sent_back(
    world: World, fleet: list[Phone]
) -> None:
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE)
    phone = next(p for p in fleet if isinstance(p.offered(), dict))
    world.ok("POST", f"/v1/rollouts/{rollout}/halt")
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["stages"][0]["canceled"] >= 1
    phone.runs = digest(BETTER)
    assert phone.offered()["direction"] == "back"
    phone.runs = digest(BASE)
    phone.poll()
    stage = world.ok("GET", f"/v1/rollouts/{rollout}")["stages"][0]
    assert (stage["confirmed"], stage["rolled_back"]) == (1, 1)


def test_refusals_of_a_few_devices_halt_before_the_word_error_rate_can(
    world_sqlite: World, few: list[Phone]
) -> None:
    world, fleet = world_sqlite, few
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE, stages=NEARLY_ALL)
    seen = 0
    for phone in fleet:
        plan = phone.offered()
        if isinstance(plan, dict):
            assert phone.pair(plan, 10, 60, gate="refused").status_code == 202
            phone.say("refused", plan["deployment"], reason="E_CANARY")
            seen += 1
        if seen == 5:
            break
    world.tick()
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert seen["state"] == "halted" and seen["halt_reason"].startswith("failures: ")


@pytest.mark.attack("T14")
def test_no_data_is_never_good(world_sqlite: World, few: list[Phone]) -> None:
    world, fleet = world_sqlite, few
    gate = SMALL_GATE | {"undecided_s": 3600}
    rollout = world.start_rollout("r2", "all", gate=gate, stages=NEARLY_ALL)
    for phone in fleet:
        plan = phone.offered()
        if isinstance(plan, dict):
            phone.runs = plan["sha256"]
            phone.poll()
    world.tick(60)
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["stage"] == 1
    world.tick(3600)
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert seen["state"] == "paused" and seen["reasons"] == ["gate_undecided"]
    world.ok("POST", f"/v1/rollouts/{rollout}/resume", json={"reason": "looked at it"})
    world.tick()
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["stage"] == 2


def test_a_device_that_goes_back_silently_counts_as_failed(
    world_sqlite: World, few: list[Phone]
) -> None:
    world, fleet = world_sqlite, few
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE, stages=NEARLY_ALL)
    phone = next(p for p in fleet if isinstance(p.offered(), dict))
    phone.etag = ""
    plan = phone.poll()["plan"]
    phone.say("activated", plan["deployment"])
    phone.etag = ""
    phone.poll()  # still the old bytes
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert seen["stages"][0]["failed"] == 1 and seen["stages"][0]["confirmed"] == 0


def test_silence_after_an_offer_has_a_deadline(world_sqlite: World, few: list[Phone]) -> None:
    world, fleet = world_sqlite, few
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE, stages=NEARLY_ALL)
    next(p for p in fleet if isinstance(p.offered(), dict))
    world.tick(world.app.state.settings.deployment_timeout_s + 10)
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["stages"][0]["failed"] >= 1


def test_a_pause_withdraws_what_is_on_its_way_and_a_resume_offers_it_again(
    world_sqlite: World, few: list[Phone]
) -> None:
    world, fleet = world_sqlite, few
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE, stages=NEARLY_ALL)
    phone = next(p for p in fleet if isinstance(p.offered(), dict))
    world.ok("POST", f"/v1/rollouts/{rollout}/pause")
    assert phone.poll()["hold"] == "paused"
    world.ok("POST", f"/v1/rollouts/{rollout}/resume")
    assert phone.offered()["release"] == "r2"


def test_a_cap_in_flight_is_exact(world: World) -> None:
    fleet = prepare(world, 10)
    stages = [{"share_bp": 10000, "in_flight_max": 3}]
    world.start_rollout("r2", "all", gate=SMALL_GATE, stages=stages)
    answers = [phone.offered() for phone in fleet]
    assert sum(isinstance(a, dict) for a in answers) == 3
    assert answers.count("stage_full") == 7
    phone = fleet[[isinstance(a, dict) for a in answers].index(True)]
    phone.runs = digest(BETTER)
    phone.poll()
    for waiting in fleet:
        waiting.etag = ""
    assert sum(isinstance(p.offered(), dict) for p in fleet if p is not phone) == 3


def test_an_unchanged_poll_is_not_modified_and_a_change_is_seen(
    world_sqlite: World, few: list[Phone]
) -> None:
    world, fleet = world_sqlite, few
    phone = fleet[0]
    phone.etag = ""
    assert phone.poll()["hold"] == "no_rollout"
    assert phone.poll() is None
    world.start_rollout("r2", "all", stages=[{"share_bp": 10000}])
    assert phone.offered()["release"] == "r2"


def test_a_senseless_rollout_is_refused_with_a_problem(world_sqlite: World) -> None:
    world = world_sqlite
    world.publish_all()
    other = {"name": "theirs", "model": "other", "devices": []}
    world.ok("POST", "/v1/models", json={"name": "other"})
    world.ok("POST", "/v1/cohorts", json=other)
    before = world.rows()
    body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": [{"share_bp": 10000}]}
    stages = [[], [5000], [5000, 5000, 10000], [10000, 5000], [0, 10000], [10001], [True], ["1"]]
    gates: list[object] = [
        {"alpha": 0.1},
        {"alpha_halt": 0.9},
        {"alpha_halt": 0},
        {"alpha_halt": 1e-300},
        {"clip": 0},
        {"clip": 1e9},
        {"sigma": 1e-300},
        {"pairs_expected": 10**20},
        {"hostile_share": -1},
        {"failures_fine": 0.5, "failures_bad": 0.1},
        {"clip": "0.1"},
        {"clip": True},
        {"clip": None},
        [],
    ]
    table: list[tuple[dict[str, object], int]] = [
        ({"release": "r9"}, 404),
        ({"cohort": "nobody"}, 404),
        ({"cohort": "theirs"}, 422),
        ({"model": "other"}, 404),
        ({"on_halt": "explode"}, 422),
        ({"surprise": 1}, 422),
        *(({"stages": [{"share_bp": bp} for bp in shares]}, 422) for shares in stages),
        ({"stages": [{"share_bp": 10000, "in_flight_max": 0}]}, 422),
        *(({"gate": gate}, 422) for gate in gates),
    ]
    for change, why in table:
        refused(world.call("POST", "/v1/rollouts", json=body | change), why)
    for constant in ("NaN", "Infinity", "1e999"):
        raw = json.dumps(body)[:-1] + f', "gate": {{"margin_rel": {constant}}}}}'
        headers = {"Content-Type": "application/json"}
        refused(world.call("POST", "/v1/rollouts", content=raw, headers=headers), 422)
    assert world.rows() == before


def test_every_gate_that_is_accepted_can_be_computed() -> None:
    seen = [Sums(), Sums(1, 3000, 9_000_000, 0, 0, 0), Sums(40, -9000, 2_700_000, 900, 81_000, 0)]
    seen.append(Sums(10**6, 10**9, 10**13, 10**10, 10**14, 10**13))
    ends = [{name: end} for name, pair in GATE_BOUNDS.items() for end in pair]
    pairs = [{"failures_fine": 0.0001, "failures_bad": 0.9999}]
    gates = [end for end in ends if not end.keys() & {"failures_fine", "failures_bad"}] + pairs
    for document in gates:
        for sums in seen:
            gate = gate_of(document)
            found = evidence(gate, sums, 3, 10)
            assert not any(math.isnan(value) for value in vars(found).values()), document
            decide(gate, sums)


def test_what_is_still_under_way_when_a_rollout_is_completed_is_called_off(world: World) -> None:
    fleet = prepare(world, FLEET)
    names = [phone.id for phone in fleet]
    world.ok("POST", "/v1/cohorts", json={"name": "few", "model": MODEL, "devices": names})
    rollout = world.start_rollout("r2", "few", gate=SMALL_GATE, stages=[{"share_bp": 10_000}])
    assert fleet[0].offered()["release"] == "r2"
    with world.app.state.database.writer() as session:
        session.execute(delete(CohortMember).filter_by(device_id=fleet[0].id))
    spread(world, fleet[1:], old=20, new=10)
    world.tick()
    found = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert found["state"] == "completed"
    assert (found["stages"][0]["offered"], found["stages"][0]["canceled"]) == (0, 1)
    with world.app.state.database.reader() as session:
        assert session.get_one(Rollout, rollout).current_stage.in_flight == 0
