"""What is asked of a large cohort is asked of a sample: the same one again, and never of more."""

from typing import Any

import pytest
from sqlalchemy import event, select, update

from service.db import queries
from service.db.rollout_tables import Cohort, CohortMember, Rollout
from service.db.tables import Device, DeviceModel
from service.fleet import sample
from tests.service.crowd import crowd
from tests.service.line import release
from tests.service.publishing import ALL
from tests.service.world import MODEL, World, refused

LOOKED_AT, AT_MOST = 400, 1_500


@pytest.fixture(autouse=True)
def little_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "EXAMINED_MAX", (LOOKED_AT, AT_MOST))


@pytest.fixture
def crowded(line: World) -> World:
    """A world of 2,000 devices on r2, from which no patch leads to r4."""
    release(line, 4)
    with line.app.state.database.writer() as session:
        crowd(session, 2_000, "many-", line.now, runs="r2")
    return line


def cohort(world: World, name: str, **chosen: Any) -> str:
    body = {"name": name, "model": MODEL} | chosen
    return str(world.ok("POST", "/v1/cohorts", json=body)["name"])


def draft(world: World, name: str = "r4", to: str = "all", **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "release": name, "cohort": to, "stages": ALL} | more
    return dict(world.ok("POST", "/v1/rollouts", json=body))


def missing(world: World, rollout: str) -> dict[str, Any]:
    return dict(world.ok("GET", f"/v1/patches/missing?rollout={rollout}"))


def test_a_start_is_refused_by_what_a_sample_runs_and_says_of_how_many(crowded: World) -> None:
    rollout = draft(crowded)["id"]
    for _ in range(2):
        reply = crowded.call("POST", f"/v1/rollouts/{rollout}/start")
        told = refused(reply, 409, "patches-missing")["detail"]
        assert f"devices on r2 ({LOOKED_AT} of {LOOKED_AT} looked at, 100 %)" in told
    found = missing(crowded, rollout)
    assert (found["looked_at"], found["examined"], found["everyone"]) == (400, 400, False)


def test_a_rollout_sees_the_same_devices_again_and_another_one_others(crowded: World) -> None:
    drafts = [draft(crowded)["id"] for _ in range(2)]
    with crowded.app.state.database.writer() as session:
        for id_, begins in zip(drafts, "26", strict=True):  # the last run of all may be of both
            session.get_one(Rollout, id_).salt = begins * 32
        session.flush()
        first, again, other = (
            frozenset(session.scalars(sample.of_cohort(session, row).members))
            for row in (session.get_one(Rollout, id_) for id_ in (drafts[0], *drafts))
        )
    assert first == again != other and len(first) == len(other) == LOOKED_AT


def test_a_release_that_few_run_keeps_a_large_cohort_no_more_waiting_than_a_small_one(
    crowded: World,
) -> None:
    with crowded.app.state.database.writer() as session:
        runs = {"running_release": queries.releases_of(session, MODEL)[3].id}
        session.execute(update(DeviceModel).values(runs))
        crowd(session, 20, "few-", crowded.now, runs="r1")
    assert missing(crowded, draft(crowded)["id"])["missing"] == [], "1 %, of which 5 % were seen"


def test_a_filter_that_matches_rarely_is_applied_to_more_but_not_to_all(crowded: World) -> None:
    to = cohort(crowded, "rare", filter={"hardware": ["rare"]})
    found = missing(crowded, draft(crowded, to=to)["id"])
    assert found["examined"] == AT_MOST and not found["everyone"]
    assert 0 < found["looked_at"] < 40, "of the 40 that there are"


def test_a_list_of_devices_is_looked_at_by_itself(crowded: World) -> None:
    short, long = cohort(crowded, "short", devices=[]), cohort(crowded, "long", devices=[])
    with crowded.app.state.database.writer() as session:
        cohorts = {row.name: row for row in session.scalars(select(Cohort))}
        ids = session.scalars(queries.cohort_devices(cohorts["all"])).all()
        for name, members in ((short, ids[:30]), (long, ids[:900])):
            session.add_all(CohortMember(cohort_id=cohorts[name].id, device_id=i) for i in members)
    found = missing(crowded, draft(crowded, to=short)["id"])
    assert (found["looked_at"], found["examined"], found["everyone"]) == (30, 30, True)
    found = missing(crowded, draft(crowded, to=long)["id"])
    assert (found["looked_at"], found["everyone"]) == (LOOKED_AT, False)


def test_a_small_model_in_a_large_fleet_is_counted(crowded: World) -> None:
    crowded.ok("POST", "/v1/models", json={"name": "other"})
    with crowded.app.state.database.writer() as session:
        crowd(session, 2_000, "other-", crowded.now, model="other")
        session.execute(update(DeviceModel).values(model="other"))
        crowd(session, 3, "mine-", crowded.now, runs="r3")
    view = draft(crowded)
    assert view["counted"] and [stage["devices"] for stage in view["stages"]] == [3]


def test_how_many_a_large_cohort_has_is_told_by_how_dense_ids_lie(crowded: World) -> None:
    view = draft(crowded, stages=[{"share_bp": 5000}, {"share_bp": 10_000}])
    half, whole = (stage["devices"] for stage in view["stages"])
    assert not view["counted"] and whole == 2 * half
    assert 1300 <= whole <= 2700 and whole == float(f"{whole:.2g}"), "400 tell it to 5 %"


def test_a_large_cohort_is_told_by_a_sample_and_counted_for_whoever_asks(crowded: World) -> None:
    with crowded.app.state.database.writer() as session:
        crowd(session, 500, "old-", crowded.now, runs="r1")
        members = set(session.scalars(select(Device.id)))
    found, again = (crowded.ok("GET", "/v1/cohorts/all") for _ in range(2))
    assert found == again and not found["counted"]
    assert 1700 <= found["count"] <= 3300 and 0.8 < 2_500 / found["count"] < 1.3
    assert 0.1 < found["by_release"]["r1"] / found["count"] < 0.3, "a fifth"
    assert len(found["sample"]) == 10 and members > set(found["sample"])
    counted = crowded.ok("GET", "/v1/cohorts/all", params={"exact": True})
    assert (counted["count"], counted["counted"]) == (2_500, True)
    assert counted["by_release"] == {"r1": 500, "r2": 2_000}
    assert crowded.ok("GET", "/v1/cohorts")["items"] == [found], "so does the list"
    refused(crowded.call("GET", "/v1/cohorts/all?exact=perhaps"), 422)


def test_a_small_cohort_is_counted_without_being_asked(crowded: World) -> None:
    with crowded.app.state.database.reader() as session:
        ids = list(session.scalars(select(Device.id).limit(9)))
    name = cohort(crowded, "few", devices=ids)
    found = crowded.ok("GET", f"/v1/cohorts/{name}")
    assert (found["count"], found["counted"], found["by_release"]) == (9, True, {"r2": 9})
    assert found["sample"] == sorted(ids)


def test_no_rollback_is_refused_while_one_device_may_take_it_that_no_sample_holds(
    crowded: World,
) -> None:
    release(crowded, 5, 3, back=True)
    with crowded.app.state.database.writer() as session:
        runs = {"running_release": queries.releases_of(session, MODEL)[3].id}
        session.execute(update(DeviceModel).values(runs))
    start = f"/v1/rollouts/{draft(crowded, 'r3', rollback=True)['id']}/start"
    asked = {"accept_full_downloads": True}
    told = refused(crowded.call("POST", start, params=asked), 409, "no-edge")["detail"]
    assert "no way back from r4 to r3" in told
    with crowded.app.state.database.writer() as session:
        crowd(session, 1, "last-", crowded.now, runs="r5")
    assert crowded.ok("POST", start, params=asked)["state"] == "running"


def test_stragglers_that_no_sample_holds_are_found_by_what_they_run(crowded: World) -> None:
    with crowded.app.state.database.writer() as session:
        there = queries.releases_of(session, MODEL)[3]
        runs = {"running_release": there.id, "running_sha256": there.sha256}
        session.execute(update(DeviceModel).values(runs))
        crowd(session, 2, "late-", crowded.now, runs="r2")
    rollout = draft(crowded)["id"]
    crowded.ok("POST", f"/v1/rollouts/{rollout}/start")
    found = crowded.ok("GET", f"/v1/rollouts/{rollout}/explain")
    assert (found["sampled"], found["devices"]["without_outcome"], found["counted"]) == (
        2,
        2,
        False,
    )


def test_the_fleet_of_a_model_is_counted_without_those_that_are_inactive(crowded: World) -> None:
    with crowded.app.state.database.writer() as session:
        gone = session.query(Device).filter(Device.serial.in_(("many-1", "many-2"))).all()
        gone[0].status, gone[1].status = "revoked", "quarantined"
        session.flush()
        assert queries.count_devices(session, MODEL) == 1_998
        assert queries.count_devices(session, "other") == 0
    rollout = draft(crowded)["id"]
    with crowded.app.state.database.reader() as session:
        assert queries.count_reach(session, session.get_one(Rollout, rollout)) == (1_998, 1_998)


@pytest.mark.parametrize("asked", ["start", "rollback", "cohort", "cohorts", "devices"])
def test_what_is_asked_costs_the_database_the_same_however_many_devices_there_are(
    line_sqlite: World, asked: str
) -> None:
    line = line_sqlite  # only SQLite counts its own steps
    database, steps = line.app.state.database, 0
    release(line, 4, 3, back=True)
    to, runs = {"rollback": ("r3", "r4")}.get(asked, ("r3", "r2"))
    reads = {"cohort": "cohorts/all", "cohorts": "cohorts", "devices": "devices?cohort=all&limit=9"}

    def count() -> None:
        nonlocal steps
        steps += 1

    def ask() -> int:
        nonlocal steps
        steps = 0
        if asked in reads:
            line.ok("GET", f"/v1/{reads[asked]}")
            return steps
        rollout = draft(line, to, rollback=asked == "rollback")["id"]
        line.ok("POST", f"/v1/rollouts/{rollout}/start?accept_full_downloads=true")
        used = steps
        line.ok("POST", f"/v1/rollouts/{rollout}/halt", json={"reason": "again"})
        return used

    for engine in (database.engine, database.writing):
        # Every 20 instructions of SQLite's machine.
        event.listen(engine, "checkout", lambda raw, *_: raw.set_progress_handler(count, 20))
    few, many = [], []
    for devices, found in ((1_000, few), (7_000, many)):
        with database.writer() as session:
            crowd(session, devices, f"{devices}-", line.now, runs=runs)
        found += [ask() for _ in range(3)]
    assert min(many) > 10
    assert max(many) < 1.1 * max(few) + 10
