"""Where rollouts could get stuck, blame the innocent, or run ahead of their evidence."""

from datetime import timedelta

import pytest

from service.db import queries
from service.db.rollout_tables import Rollout
from service.db.tables import DeviceModel
from tests.service.test_rollouts import SMALL_GATE
from tests.service.world import BASE, MODEL, Phone, World, digest, refused
from trust import sign

FIX = b"the fix of the better model" * 100
ALL = [{"share_bp": 10000}]


@pytest.fixture
def world(world_sqlite: World) -> World:
    world_sqlite.publish_all()
    return world_sqlite


def cohort_of(world: World, name: str, phones: list[Phone]) -> str:
    body = {"name": name, "model": MODEL, "devices": [phone.id for phone in phones]}
    return str(world.ok("POST", "/v1/cohorts", json=body)["name"])


def test_where_the_way_back_is_barred_a_fix_still_leads_forward(world: World) -> None:
    world.publish("r3", FIX)  # nobody signed a way back from r3
    (phone,) = world.fleet(1, digest(BASE))
    rollout = world.start_rollout("r3", "all", stages=ALL)
    phone.runs = phone.offered()["sha256"]
    phone.poll()
    world.ok("POST", f"/v1/rollouts/{rollout}/halt")
    assert phone.offered() == "no_pipeline"
    world.publish("r4", FIX + b"!")
    world.start_rollout("r4", "all", stages=ALL)
    assert phone.offered()["release"] == "r4"


def test_an_offer_called_off_long_ago_does_not_undo_a_later_good_rollout(world: World) -> None:
    (phone,) = world.fleet(1, digest(BASE))
    first = world.start_rollout("r2", "all", stages=ALL)
    assert phone.offered()["release"] == "r2"
    world.ok("POST", f"/v1/rollouts/{first}/halt")
    world.tick()
    world.start_rollout("r2", "all", stages=ALL)
    phone.etag = ""
    phone.runs = phone.offered()["sha256"]
    phone.etag = ""
    assert phone.poll()["hold"] == "up_to_date"


def test_a_device_that_slept_through_a_halt_is_sent_back_whenever_it_wakes(world: World) -> None:
    (phone,) = world.fleet(1, digest(BASE))
    rollout = world.start_rollout("r2", "all", stages=ALL)
    phone.runs = phone.offered()["sha256"]
    phone.poll()
    world.ok("POST", f"/v1/rollouts/{rollout}/halt")
    assert phone.offered()["direction"] == "back"
    world.tick(5 * 86400)
    phone.etag = ""
    assert phone.offered()["direction"] == "back"


def test_a_halt_frees_every_place_in_flight(world: World) -> None:
    phones = world.fleet(12, digest(BASE))
    rollout = world.start_rollout("r2", "all", stages=ALL)
    assert all(isinstance(phone.offered(), dict) for phone in phones)
    stage = world.ok("POST", f"/v1/rollouts/{rollout}/halt")["stages"][0]
    assert (stage["canceled"], stage["offered"]) == (12, 0)
    with world.app.state.database.reader() as session:
        assert session.get_one(Rollout, rollout).stages[0].in_flight == 0


def test_a_pause_blames_no_device_and_is_no_soak(world: World) -> None:
    phones = world.fleet(12, digest(BASE))
    stages = [{"share_bp": 9999, "soak_s": 86400}, {"share_bp": 10000}]
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE, stages=stages)
    for phone in phones:
        phone.install(phone.offered(), 20, 10)
    world.ok("POST", f"/v1/rollouts/{rollout}/pause")
    world.tick(30 * 3600)
    world.ok("POST", f"/v1/rollouts/{rollout}/resume")
    world.tick()
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert (seen["state"], seen["stage"]) == ("running", 1)
    assert seen["health"]["waiting_for"].startswith("safe; soaking")


def test_a_device_in_flight_through_a_pause_or_quarantine_is_no_failure(world: World) -> None:
    phones = world.fleet(12, digest(BASE))
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE, stages=ALL)
    assert all(isinstance(phone.offered(), dict) for phone in phones)
    world.ok("PATCH", f"/v1/devices/{phones[0].id}", json={"status": "quarantined"})
    world.ok("POST", f"/v1/rollouts/{rollout}/pause")
    world.tick(30 * 3600)
    world.ok("POST", f"/v1/rollouts/{rollout}/resume")
    world.tick()
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["stages"][0]["failed"] == 0
    world.ok("PATCH", f"/v1/devices/{phones[0].id}", json={"status": "active"})
    phones[0].etag = ""
    assert phones[0].offered()["release"] == "r2"


def test_a_device_readmitted_in_a_later_stage_takes_a_place_there(world: World) -> None:
    phones = world.fleet(13, digest(BASE))
    stages = [{"share_bp": 9999}, {"share_bp": 10000, "soak_s": 86400}]
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE, stages=stages)
    plans = [phone.offered() for phone in phones]
    world.ok("PATCH", f"/v1/devices/{phones[0].id}", json={"status": "quarantined"})
    for phone, plan in zip(phones[1:], plans[1:], strict=True):
        phone.install(plan, 20, 10)
    world.tick()
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["stage"] == 2
    world.ok("PATCH", f"/v1/devices/{phones[0].id}", json={"status": "active"})
    phones[0].etag = ""
    phones[0].install(phones[0].offered(), 20, 10)
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")["stages"]
    assert [stage["confirmed"] for stage in seen] == [12, 1]
    with world.app.state.database.reader() as session:
        assert [s.in_flight for s in session.get_one(Rollout, rollout).stages] == [0, 0]


def test_good_words_alone_open_no_stage(world: World) -> None:
    phones = world.fleet(30, digest(BASE))
    stages = [{"share_bp": 9999}, {"share_bp": 10000}]
    rollout = world.start_rollout("r2", "all", gate=SMALL_GATE, stages=stages)
    plans = [phone.offered() for phone in phones]
    for phone, plan in zip(phones, plans, strict=True):
        assert phone.pair(plan, 20, 10).status_code == 202
    world.tick()
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert seen["stage"] == 1 and "have yet to show the new bytes" in seen["health"]["waiting_for"]
    for phone, plan in zip(phones, plans, strict=True):
        phone.runs = plan["sha256"]
        phone.poll()
    world.tick()
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["stage"] == 2


def test_a_family_that_ran_out_holds_the_fleet_and_blames_nobody(world: World) -> None:
    (phone,) = world.fleet(1, digest(BASE))
    world.tick(timedelta(days=25).total_seconds())
    assert world.ok("GET", "/v1/health")["publisher"]["sign_again"]
    world.tick(timedelta(days=6).total_seconds())
    token = world.token_with("rollouts:write", "rollouts:read")
    body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": ALL}
    rollout = world.call("POST", "/v1/rollouts", token, json=body).json()["id"]
    world.call("POST", f"/v1/rollouts/{rollout}/start", token)
    phone.etag = ""
    assert phone.poll()["hold"] == "metadata_expired"


def test_other_hardware_is_not_offered_what_it_would_refuse(world: World) -> None:
    (phone,) = world.fleet(1, digest(BASE))
    world.upload(FIX)
    world.sign_family(sign.target_of(MODEL, world.release("r3", FIX, hardware=("h2",))))
    world.tick()
    world.start_rollout("r3", "all", stages=ALL)
    assert phone.offered() == "no_pipeline"


def for_agent(world: World, version: str) -> None:
    """Publish r3 for agents of this version or later."""
    world.upload(FIX)
    world.sign_family(sign.target_of(MODEL, world.release("r3", FIX, min_agent=version)))
    world.tick()


@pytest.mark.attack("M38")
def test_m38_a_device_is_offered_a_release_once_its_agent_is_new_enough(world: World) -> None:
    phone = world.enroll("serial-1", runs=digest(BASE), agent_version="0.9.0")
    for_agent(world, "0.10.0")
    world.start_rollout("r3", "all", stages=ALL)
    assert phone.offered() == "agent_too_old"
    for detail in ("0.9.9", "latest", "0.10", ""):
        assert phone.say("note", reason="agent", detail=detail).status_code == 200
        assert phone.offered() == "agent_too_old"
    assert world.ok("GET", f"/v1/devices/{phone.id}")["agent_version"] == "0.9.9"
    phone.say("note", reason="agent", detail="0.10.0")
    assert phone.offered()["release"] == "r3"


@pytest.mark.attack("M38")
@pytest.mark.parametrize("old", ["0.9.0", "1"])
def test_m38_a_device_whose_agent_is_too_old_holds_no_rollout_up(world: World, old: str) -> None:
    for_agent(world, "0.10.0")
    new, _ = (world.enroll(v, runs=digest(BASE), agent_version=v) for v in ("0.10.0", old))
    rollout = world.start_rollout("r3", "all", stages=ALL, gate=SMALL_GATE)
    new.install(new.offered(), 20, 20)
    with world.app.state.database.reader() as session:
        row = session.get_one(Rollout, rollout)
        assert queries.remaining(session, row, world.now, 9) == 0


def test_an_order_of_an_ended_deployment_is_not_renewed(world: World) -> None:
    (phone,) = world.fleet(1, digest(BASE))
    rollout = world.start_rollout("r2", "all", stages=ALL)
    assert isinstance(phone.offered(), dict)
    world.ok("POST", f"/v1/rollouts/{rollout}/halt")
    world.tick(6 * 86400)
    with world.app.state.database.reader() as session:
        assert session.get_one(DeviceModel, phone.id).order_seq == 1
        assert queries.model_names(session) == [MODEL]


def test_a_newer_rollout_lets_what_is_under_way_finish(world: World) -> None:
    phones = world.fleet(2, digest(BASE))
    world.publish("r3", FIX, after="r2")
    world.start_rollout("r2", "all", stages=ALL)
    assert phones[0].offered()["release"] == "r2"
    world.tick()
    world.start_rollout("r3", cohort_of(world, "some", phones), stages=ALL)
    phones[0].etag = ""
    assert phones[0].offered()["release"] == "r2"
    assert phones[1].offered()["release"] == "r3"


@pytest.mark.attack("T09", "A04")
def test_a_device_cannot_talk_itself_into_a_cohort(world: World) -> None:
    phone = world.enroll("serial-1", runs=digest(BASE), attributes={"region": "eu"})
    body = {"name": "canaries", "model": MODEL, "filter": {"attributes": {"region": "us"}}}
    world.ok("POST", "/v1/cohorts", json=body)
    cohort_of(world, "listed", [])
    world.start_rollout("r2", "canaries", stages=ALL)
    before = world.rows()
    as_device = {"token": phone.credential}
    for method, path, said in [
        ("PATCH", f"/v1/devices/{phone.id}", {"tags": {"region": "us"}}),
        ("PUT", f"/v1/cohorts/listed/devices/{phone.id}", None),
        ("POST", "/v1/cohorts", body | {"name": "mine", "filter": {}}),
    ]:
        assert world.call(method, path, json=said, **as_device).status_code == 401
    again = {"model": MODEL, "serial": "serial-1", "hardware": "h1", "agent_version": "1"}
    again |= {"enrollment_token": "fe_" + "0" * 16 + "_" + "A" * 43}
    again |= {"attributes": {"region": "us"}}
    assert world.client.post("/device/v1/enroll", json=again).status_code == 401
    refused(phone.request("POST", "/events", json={"attributes": {"region": "us"}}), 422)
    phone.request("GET", "/poll", params={"s": phone.runs, "region": "us", "cohort": "canaries"})
    assert phone.offered() == "not_in_cohort"
    assert world.rows()["cohort_member"] == before["cohort_member"]
    seen = world.ok("GET", f"/v1/devices/{phone.id}")
    assert (seen["attributes"], seen["tags"]) == ({"region": "eu"}, {})
