"""The life of a rollout through the real API: stages, verdicts, halts, the way back."""

import pytest

from tests.service.world import MODEL, Phone, World, digest

BASE, BETTER = b"the base model" * 100, b"the better model" * 100
GATE = {"clip": 0.06, "hostile_count": 0, "hostile_share": 0, "sigma": 0.05, "pairs_expected": 10}
SMALL_GATE = GATE | {"alpha_halt": 0.2, "alpha_promote": 0.2, "pairs_halt_least": 6, "pairs_promote_least": 6}


@pytest.fixture
def fleet(world: World) -> list[Phone]:
    """Forty devices that run the base, a better release, and a canary set."""
    world.publish("r1", BASE)
    world.publish_canary()
    world.publish("r2", BETTER, after="r1", patch=b"a small patch")
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    return world.fleet(40, digest(BASE))


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
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE)
    first = spread(world, fleet, old=20, new=10)
    assert 10 <= first <= 32
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert seen["stages"][0]["confirmed"] == first and seen["stages"][1]["confirmed"] == 0
    assert seen["stages"][0]["old_wer_bp"] == 2000 and seen["stages"][0]["new_wer_bp"] == 1000
    world.tick()
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["stage"] == 2
    assert spread(world, fleet, old=20, new=10) == 40 - first
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
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE)
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


def test_refusals_of_a_few_devices_halt_before_the_word_error_rate_can(
    world: World, fleet: list[Phone]
) -> None:
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE)
    refused = 0
    for phone in fleet:
        plan = phone.offered()
        if isinstance(plan, dict):
            assert phone.pair(plan, 10, 60, gate="refused").status_code == 202
            phone.say("refused", plan["deployment"], reason="E_CANARY")
            refused += 1
        if refused == 5:
            break
    world.tick()
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert seen["state"] == "halted" and seen["halt_reason"].startswith("failures: ")


def test_no_data_is_never_good(world: World, fleet: list[Phone]) -> None:
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE | {"undecided_s": 3600})
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
    world: World, fleet: list[Phone]
) -> None:
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE)
    phone = next(p for p in fleet if isinstance(p.offered(), dict))
    phone.etag = ""
    plan = phone.poll()["plan"]
    phone.say("activated", plan["deployment"])
    phone.etag = ""
    phone.poll()  # still the old bytes
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert seen["stages"][0]["failed"] == 1 and seen["stages"][0]["confirmed"] == 0


def test_silence_after_an_offer_has_a_deadline(world: World, fleet: list[Phone]) -> None:
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE)
    next(p for p in fleet if isinstance(p.offered(), dict))
    world.tick(world.app.state.settings.deployment_timeout_s + 10)
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["stages"][0]["failed"] >= 1


def test_a_pause_withdraws_what_is_on_its_way_and_a_resume_offers_it_again(
    world: World, fleet: list[Phone]
) -> None:
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE)
    phone = next(p for p in fleet if isinstance(p.offered(), dict))
    world.ok("POST", f"/v1/rollouts/{rollout}/pause")
    assert phone.poll()["hold"] == "paused"
    world.ok("POST", f"/v1/rollouts/{rollout}/resume")
    assert phone.offered()["release"] == "r2"


def test_a_cap_in_flight_is_exact(world: World, fleet: list[Phone]) -> None:
    stages = [{"share_bp": 10000, "in_flight_max": 3}]
    world.start_rollout("r2", "all", gate=SMALL_GATE, stages=stages)
    answers = [phone.offered() for phone in fleet[:10]]
    assert sum(isinstance(a, dict) for a in answers) == 3
    assert answers.count("stage_full") == 7
    phone = fleet[[isinstance(a, dict) for a in answers].index(True)]
    phone.runs = digest(BETTER)
    phone.poll()
    for waiting in fleet[:10]:
        waiting.etag = ""
    assert sum(isinstance(p.offered(), dict) for p in fleet[:10] if p is not phone) == 3


def test_an_unchanged_poll_is_not_modified_and_a_change_is_seen(
    world: World, fleet: list[Phone]
) -> None:
    phone = fleet[0]
    phone.etag = ""
    assert phone.poll()["hold"] == "no_rollout"
    assert phone.poll() is None
    world.start_rollout("r2", "all", stages=[{"share_bp": 10000}])
    assert phone.offered()["release"] == "r2"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"release": "r9"}, 404),
        ({"cohort": "nobody"}, 404),
        ({"stages": []}, 422),
        ({"stages": [{"share_bp": 5000}]}, 422),
        ({"stages": [{"share_bp": 5000}, {"share_bp": 5000}, {"share_bp": 10000}]}, 422),
        ({"stages": [{"share_bp": True}]}, 422),
        ({"gate": {"alpha_halt": 0.9}}, 422),
        ({"gate": {"alpha": 0.1}}, 422),
        ({"gate": {"clip": 0}}, 422),
        ({"on_halt": "explode"}, 422),
        ({"surprise": 1}, 422),
    ],
)
def test_a_senseless_rollout_is_refused_with_a_problem(
    world: World, fleet: list[Phone], change: dict[str, object], why: int
) -> None:
    body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": [{"share_bp": 10000}]}
    reply = world.call("POST", "/v1/rollouts", json=body | change)
    assert reply.status_code == why
    assert reply.headers["content-type"] == "application/problem+json"
    assert world.ok("GET", "/v1/rollouts")["items"] == []


def test_verbs_in_the_wrong_state_are_conflicts(world: World, fleet: list[Phone]) -> None:
    rollout = world.start_rollout("r2", "all")
    assert world.call("POST", f"/v1/rollouts/{rollout}/resume").status_code == 409
    world.ok("POST", f"/v1/rollouts/{rollout}/halt", json={"reason": "changed my mind"})
    for verb in ("start", "pause", "resume", "halt"):
        assert world.call("POST", f"/v1/rollouts/{rollout}/{verb}").status_code == 409
    assert world.call("POST", "/v1/rollouts/nowhere/halt").status_code == 404


def test_one_cohort_has_one_live_rollout(world: World, fleet: list[Phone]) -> None:
    world.start_rollout("r2", "all")
    body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": [{"share_bp": 10000}]}
    second = world.ok("POST", "/v1/rollouts", json=body)["id"]
    assert world.call("POST", f"/v1/rollouts/{second}/start").status_code == 409
