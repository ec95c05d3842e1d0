"""When devices were last seen is written in batches, and what is too much is sent away."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from service.api import poll as layer
from service.app import create_app, flush_seen
from service.db.session import Database
from service.db.tables import Device
from tests.service.memory import settle, statements, updated
from tests.service.phone import Phone
from tests.service.world import World, opened, patient


def last_seen(world: World, phone: Phone) -> Any:
    with world.app.state.database.reader() as session:
        return session.scalars(select(Device.last_seen_at).filter_by(id=phone.id)).one()


def test_when_devices_polled_is_written_down_in_batches_and_at_the_end(
    sqlite_url: str, tmp_path: Path
) -> None:
    settings = patient(database=sqlite_url, artifacts=str(tmp_path / "artifacts"))
    with opened(settings, tmp_path) as world:
        phone = updated(world.found())
        ask = settle(phone)
        flush_seen(world.app.state)
        first = last_seen(world, phone)
        world.now += timedelta(minutes=5)
        with statements(world) as seen:
            assert ask().status_code == 304
            flush_seen(world.app.state)
            flush_seen(world.app.state)
        assert len([s for s in seen if s.startswith("UPDATE device SET")]) == 1
        assert last_seen(world, phone) == world.now > first
        assert ask().status_code == 304
        world.now += timedelta(minutes=5)
        ask()
    database = Database(sqlite_url)
    with database.reader() as session:
        assert session.get_one(Device, phone.id).last_seen_at == world.now
    database.close()


def test_an_older_sight_of_a_device_hides_no_newer_one(world: World) -> None:
    phone = world.enroll("serial-1")
    state = world.app.state
    for minutes in (5, 1):
        state.seen[phone.id] = world.now + timedelta(minutes=minutes)
        flush_seen(state)
    assert last_seen(world, phone) == world.now + timedelta(minutes=5)


def test_what_was_seen_is_not_lost_to_a_database_that_is_away(world_sqlite: World) -> None:
    phone = world_sqlite.enroll("serial-1")
    state = world_sqlite.app.state
    state.seen[phone.id] = world_sqlite.now
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.app.note_seen", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            flush_seen(state)
    flush_seen(state)
    assert last_seen(world_sqlite, phone) == world_sqlite.now


@pytest.mark.attack("A10")
def test_polls_beyond_what_can_be_worked_on_are_sent_away_and_no_others(tmp_path: Path) -> None:
    settings = patient(
        database=f"sqlite:///{tmp_path / 'none.db'}",
        artifacts=str(tmp_path / "artifacts"),
        polls_at_once_max=3,
        poll_after_s=1000,
    )
    app = create_app(settings, ticking=False)
    free, begun = asyncio.Event(), []

    async def slow(scope: Any, _receive: Any, send: Any) -> None:
        begun.append(scope["path"])
        await free.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(path: str, method: str = "GET") -> dict[str, Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": path, "method": method, "headers": [], "query_string": b""}
        await polls(scope, None, send)  # type: ignore[arg-type]
        return {"status": sent[0]["status"], **dict(sent[0]["headers"]), "sent": sent[1:]}

    async def story() -> list[dict[str, Any]]:
        async with asyncio.TaskGroup() as group:
            held = [group.create_task(ask(layer.PATH)) for _ in range(3)]
            others = [group.create_task(ask(path)) for path in ("/v1/devices", "/device/v1/events")]
            while len(begun) < 5:
                await asyncio.sleep(0)
            refusals = [await ask(layer.PATH) for _ in range(200)]
            free.set()
        assert {task.result()["status"] for task in [*held, *others]} == {200}
        assert (await ask(layer.PATH))["status"] == 200, "there is room again"
        return refusals

    polls = layer.unchanged(slow, app.state)
    waits = []
    for refusal in asyncio.run(story()):
        assert refusal["status"] == 503
        assert refusal[b"content-type"] == b"application/problem+json"
        problem = json.loads(refusal["sent"][0]["body"])
        assert problem["type"] == "/problems/overloaded"
        assert str(problem["retry_after_s"]).encode() == refusal[b"retry-after"]
        waits.append(problem["retry_after_s"])
    assert 1 <= min(waits) < 100 and 900 < max(waits) <= 1000, "spread over a whole period"
    app.state.database.close()
