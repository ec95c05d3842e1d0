"""What is kept in memory for all devices of a model is never older than the database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from service.db import queries
from service.db.rollout_tables import Budget, CohortMember, Floor, Rollout, Stage
from service.db.session import Database
from service.db.tables import CanarySet, MetadataFile, Model, Patch, Release
from service.fleet import deployments, ground
from service.fleet.deployments import Stale
from service.fleet.ground import Ground
from tests.service.line import file, ops
from tests.service.memory import asking, statements
from tests.service.phone import Phone
from tests.service.publishing import ALL
from tests.service.world import MODEL, START, World, digest

REST = [{"share_bp": 1}, {"share_bp": 10_000}]
ENDED = START - timedelta(days=1)


def elsewhere(world: World, change: Callable[[Session], object]) -> None:
    """Change something as another process does: by a database that this one does not know of."""
    other = Database(world.app.state.settings.database)
    with other.writer() as session:
        change(session)
    other.close()


def rollout_of(session: Session) -> Rollout:
    return session.scalars(select(Rollout)).one()


def release_of(session: Session, name: str) -> Release:
    return session.scalars(select(Release).filter_by(name=name)).one()


def pause(session: Session) -> None:
    row = rollout_of(session)
    row.state, row.paused_at, row.generation = "paused", START, row.generation + 1


def halt(session: Session) -> None:
    row = rollout_of(session)
    row.state, row.generation = "halted", row.generation + 1


def close_stage(session: Session) -> None:
    session.scalars(select(Stage)).one().share_bp = 1


def floor(session: Session) -> None:
    session.add(Floor(release_id=release_of(session, "r2").id, reason="test", created_at=START))


def retire(session: Session) -> None:
    release_of(session, "r3").status = "retired"


def other_hardware(session: Session) -> None:
    release_of(session, "r3").hardware = ["h9"]


def newer_agent(session: Session) -> None:
    release_of(session, "r3").min_agent = "2"


def end_documents(session: Session) -> None:
    session.execute(update(MetadataFile).filter_by(role="root").values(expires_at=ENDED))


def end_set(session: Session) -> None:
    session.execute(update(CanarySet).values(expires_at=ENDED))


def cost(session: Session) -> None:
    row = rollout_of(session)
    spent = Budget(per_minute_max=1, minute=1 << 40, granted=1)
    row.budget, row.generation = spent, row.generation + 1


def leave(session: Session) -> None:
    session.execute(delete(CohortMember))


HOLDS: dict[str, Callable[[Session], None]] = {
    "paused": pause,
    "no_rollout": halt,
    "not_in_stage": close_stage,
    "floor": floor,
    "no_pipeline": retire,
    "no_pipeline for this hardware": other_hardware,
    "agent_too_old": newer_agent,
    "metadata_expired": end_documents,
    "metadata_expired for its set": end_set,
    "not_in_cohort": leave,
    "per_minute": cost,
}


def rolling(world: World, *phones: Phone) -> str:
    """A rollout of r3 to these devices."""
    world.publish_canary()
    named = {"name": "few", "model": MODEL, "devices": [phone.id for phone in phones]}
    world.ok("POST", "/v1/cohorts", json=named)
    return world.start_rollout("r3", "few", stages=ALL)


def enrolled(world: World, count: int) -> list[Phone]:
    return [world.enroll(f"serial-{n}", runs=digest(file(1))) for n in range(count)]


@contextmanager
def reads(world: World) -> Iterator[list[str]]:
    """Collect what is read of rollouts."""
    found: list[str] = []
    with statements(world) as seen:
        yield found
        found += [one for one in seen if "FROM rollout " in one or "FROM rollout\n" in one]


def asked(phone: Phone) -> Any:
    return asking(phone).json()["hold"]


def test_what_is_the_same_for_every_device_is_read_once(line: World) -> None:
    phones = enrolled(line, 3)
    rolling(line, *phones)
    with reads(line) as read:
        assert asked(phones[0]) == "order_pending"
    assert read
    with reads(line) as read:
        assert [asked(phone) for phone in phones[1:]] == ["order_pending"] * 2
    assert not [one for one in read if one.startswith("SELECT")]


@pytest.mark.attack("M11")
@pytest.mark.parametrize("hold", HOLDS)
def test_what_another_process_changed_is_in_force_at_the_next_poll(line: World, hold: str) -> None:
    phones = enrolled(line, 2)
    rolling(line, *phones)
    assert asked(phones[0]) == "order_pending"
    elsewhere(line, HOLDS[hold])
    assert asked(phones[1]) == hold.split()[0]
    with line.app.state.database.reader() as session:
        assert not queries.deployments_of(session, phones[1].id)


def test_a_patch_that_another_process_withdrew_is_in_no_plan_any_more(line: World) -> None:
    phones = enrolled(line, 2)
    rolling(line, *phones)
    for phone in phones:
        asking(phone)
    line.tick()
    assert ops(asking(phones[0]).json()["plan"]) == [["patch", "patch"], ["full"]]
    elsewhere(line, lambda session: session.execute(update(Patch).values(withdrawn="test")))
    assert ops(asking(phones[1]).json()["plan"]) == [["full"]]


def test_a_stage_that_another_process_opened_takes_its_devices(line: World) -> None:
    phones = enrolled(line, 2)
    rolling(line, *phones)
    elsewhere(line, close_stage)
    assert asked(phones[0]) == "not_in_stage"
    elsewhere(line, lambda session: session.execute(update(Stage).values(share_bp=10_000)))
    assert asked(phones[1]) == "order_pending"


def test_who_joins_a_cohort_in_another_process_is_in_it(line: World) -> None:
    first, second = enrolled(line, 2)
    rolling(line, first)
    assert [asked(first), asked(second)] == ["order_pending", "not_in_cohort"]

    def join(session: Session) -> None:
        cohort = rollout_of(session).cohort_id
        session.add(CohortMember(cohort_id=cohort, device_id=second.id))

    elsewhere(line, join)
    assert asked(second) == "order_pending"


def test_counts_of_patches_are_old_by_a_minute_at_most(line: World) -> None:
    phones = enrolled(line, 3)
    rolling(line, *phones)
    for phone in phones:
        asking(phone)
    line.tick()
    both = [["patch", "patch"], ["full"]]
    assert ops(asking(phones[0]).json()["plan"]) == both
    with line.app.state.database.writer() as session:
        often = update(Patch).values(fail_count=1_000_000)
        session.execute(often, execution_options={"touches": ()})
    line.now += ground.LASTS - timedelta(seconds=2)
    assert ops(asking(phones[1]).json()["plan"]) == both
    line.now += timedelta(seconds=2)
    assert ops(asking(phones[2]).json()["plan"]) == [["full"]]


@pytest.mark.attack("M11")
@pytest.mark.parametrize("change", [pause, halt, floor, retire, close_stage])
def test_a_grant_on_old_ground_takes_no_place(line: World, change: Any) -> None:
    rolling(line, *enrolled(line, 1))
    database = line.app.state.database
    with database.reader() as session:
        old = ground.read(session, MODEL, line.now)
    (rollout,) = old.rollouts.values()
    elsewhere(line, change)
    with database.rehearsal() as session:
        with pytest.raises(Stale):
            deployments.grant(session, old, rollout, 0, line.now)
        assert session.scalars(select(Stage.in_flight)).one() == 0
        new = ground.read(session, MODEL, line.now)
        if change in (floor, retire, close_stage):  # the rollout still runs: others may begin
            running = new.rollouts[rollout.id]
            assert deployments.grant(session, new, running, 0, line.now) == ("", 0)


@pytest.mark.attack("M11")
@pytest.mark.parametrize(("change", "hold"), [(pause, "paused"), (halt, "no_rollout")])
def test_a_rollout_that_no_generation_tells_of_is_asked_for_itself(
    line: World, change: Any, hold: str
) -> None:
    """As when the server of another version, which counts nothing, changed it."""
    phones = enrolled(line, 2)
    rolling(line, *phones)
    assert asked(phones[0]) == "order_pending"
    elsewhere(line, change)
    with line.app.state.database.writer() as session:
        grounds: dict[str, Ground] = session.info["grounds"]
        grounds[MODEL] = replace(
            grounds[MODEL], generation=session.get_one(Model, MODEL).generation
        )
    assert asked(phones[1]) == hold


def test_what_a_transaction_changed_itself_is_never_taken_from_memory(line: World) -> None:
    phones = enrolled(line, 1)
    rolling(line, *phones)
    asking(phones[0])
    database = line.app.state.database
    with database.rehearsal() as session:
        pause(session)
        session.flush()
        generation = session.get_one(Model, MODEL).generation
        seen = ground.ground_of(session, MODEL, generation, line.now)
        assert [rollout.state for rollout in seen.rollouts.values()] == ["paused"]
    with database.rehearsal() as session:
        seen = ground.ground_of(session, MODEL, generation, line.now)
        assert [rollout.state for rollout in seen.rollouts.values()] == ["running"]


def test_what_is_made_of_a_ground_is_bounded(line: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ground, "MADE_MAX", 3)
    with line.app.state.database.reader() as session:
        kept = ground.read(session, MODEL, line.now)
    made = [kept.once(number, lambda number=number: [number]) for number in range(10)]  # type: ignore[misc]
    assert made == [[number] for number in range(10)] and len(kept._made) <= 3
    assert kept.once(9, lambda: ["another"]) == [9]
