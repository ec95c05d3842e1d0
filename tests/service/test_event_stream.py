"""The stream of what happens: server-sent events, for who would rather listen than be called."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from service.api import webhooks as calls
from service.core import webhooks
from tests.service.world import MODEL, World, refused


def happen(world: World, name: str) -> None:
    world.ok("POST", "/v1/cohorts", json={"name": name, "model": MODEL, "filter": {}})


@pytest.fixture
def reading(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, str]]]:
    """Return a reader of the stream as it is after a few looks."""
    monkeypatch.setattr(calls, "PAUSE_S", 0)

    def read(looks: int = 3, **more: Any) -> list[dict[str, str]]:
        monkeypatch.setattr(calls, "STREAM_LOOKS", looks)
        reply = world.call("GET", "/v1/events", **more)
        assert reply.headers["content-type"].startswith("text/event-stream")
        parts = [part for part in reply.text.split("\n\n") if part.strip(":")]
        return [dict(line.split(": ", 1) for line in part.splitlines()) for part in parts]

    return read


def test_a_stream_tells_what_happens_and_goes_on_where_it_stopped(
    world: World, reading: Callable[..., list[dict[str, str]]]
) -> None:
    happen(world, "before")
    assert reading(params={"events": ["cohort.*"]}) == [], "what was before is not told"
    start = {"headers": {"Last-Event-ID": "0"}, "params": {"events": ["cohort.*"]}}
    happen(world, "one")
    first, second = reading(**start)
    assert (first["event"], json.loads(second["data"])["data"]["object"]) == (
        "cohort.create",
        "one",
    )
    start["headers"] = {"Last-Event-ID": first["id"]}
    assert reading(**start) == [second]
    start["headers"] = {"Last-Event-ID": second["id"]}
    assert reading(**start) == []


def test_a_stream_longer_than_a_page_leaves_nothing_out(
    world_sqlite: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhooks, "PAGE_MAX", 2)
    names = ["one", "two", "three", "four", "five"]
    for name in names:
        happen(world_sqlite, name)
    found, seq = [], 0
    with world_sqlite.app.state.database.reader() as session:
        for _ in range(4):
            seq, told = webhooks.told_after(session, seq, ["cohort.create"])
            found += [one["data"]["object"] for one in told]
    assert found == names


def test_a_stream_needs_the_scope_and_a_place(world_sqlite: World) -> None:
    world = world_sqlite
    refused(world.call("GET", "/v1/events", token=world.token_with("audit:read")), 403)
    refused(world.call("GET", "/v1/events", params={"events": ["token.*"]}), 422)
    refused(world.call("GET", "/v1/events", headers={"Last-Event-ID": "x"}), 422)
    world.app.state.streams = asyncio.Semaphore(0)
    refused(world.call("GET", "/v1/events"), 429, "too-many-requests")
