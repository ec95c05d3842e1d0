"""Pipelines are told what happens: signed, in order, at least once, and only where they may be."""

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import standardwebhooks
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.api import webhooks as calls
from service.app import create_app
from service.core import webhooks
from service.db.session import Database
from service.db.tables import AuditEntry
from service.settings import Settings
from tests.service.pipeline import Pipeline
from tests.service.world import BASE, MODEL, World, opened, patient, refused

KEY = "k" * 32


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    made = Pipeline()
    yield made
    made.stop()


@pytest.fixture
def told(settings: Settings, pipeline: Pipeline, tmp_path: Path) -> Iterator[World]:
    """A world that may call the pipeline, on either database."""
    chosen = settings.model_dump() | {"webhooks_to": (pipeline.address,), "webhooks_key": KEY}
    with opened(patient(**chosen), tmp_path) as world:
        yield world.found()


def subscribe(world: World, pipeline: Pipeline, **more: Any) -> dict[str, Any]:
    body = {"url": pipeline.address + "hook", "events": ["cohort.*"]} | more
    return dict(world.ok("POST", "/v1/webhooks", json=body))


def call(world: World) -> int:
    """Make the calls that are due; returns how many arrived."""
    sender = calls.sender_of(world.app.state.settings)
    assert sender is not None

    async def run() -> int:
        async with httpx2.AsyncClient(trust_env=False) as client:
            return await calls.call_once(world.app, sender, client)

    return asyncio.run(run())


def happen(world: World, name: str) -> None:
    world.ok("POST", "/v1/cohorts", json={"name": name, "model": MODEL, "filter": {}})


def hook(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.ok("GET", "/v1/webhooks")["items"][0]
    return found


def test_what_happens_is_told_in_order_and_the_receiver_can_check_it(
    told: World, pipeline: Pipeline
) -> None:
    happen(told, "before")
    secret = subscribe(told, pipeline)["secret"]
    for name in ("one", "two"):
        happen(told, name)
    told.publish("r1", BASE)  # none of its business
    assert [call(told), call(told), call(told)] == [1, 1, 0]
    objects = []
    for headers, body in pipeline.told:
        signed = standardwebhooks.Webhook(secret).sign(
            headers["webhook-id"], told.now, body.decode()
        )
        assert headers["webhook-signature"] == signed
        assert headers["webhook-timestamp"] == str(int(told.now.timestamp()))
        objects.append(json.loads(body)["data"]["object"])
    assert objects == ["one", "two"]
    assert len({headers["webhook-id"] for headers, _ in pipeline.told}) == 2


def test_a_pattern_with_a_star_means_a_kind_and_a_name_without_one_itself(
    told: World, pipeline: Pipeline
) -> None:
    subscribe(told, pipeline, events=["rollout.create", "metadata.*"])
    told.ready()
    while call(told):
        pass
    assert set(pipeline.types) == {"rollout.create", "metadata.publish"}


def test_what_was_refused_is_not_told(told: World, pipeline: Pipeline) -> None:
    subscribe(told, pipeline)
    refused(told.call("POST", "/v1/cohorts", token=told.token_with("rollouts:read")), 403)
    assert call(told) == 0 and not pipeline.told


def test_who_does_not_answer_is_told_again_later_and_loses_nothing(
    told: World, pipeline: Pipeline
) -> None:
    subscribe(told, pipeline)
    happen(told, "one")
    happen(told, "two")
    pipeline.answers = [(500, {}), (503, {})]
    pauses = []
    for _ in range(2):
        assert call(told) == 0
        assert call(told) == 0, "not before its time"
        found = hook(told)
        pauses.append(found["next_at"])
        assert found["last_error"].startswith("it answered 50")
        told.now += webhooks.PAUSE_FIRST * 4
    assert [call(told), call(told), call(told)] == [1, 1, 0]
    names = [json.loads(body)["data"]["object"] for _, body in pipeline.told]
    assert names == ["one", "one", "one", "two"] and pauses[0] < pauses[1]
    assert len({headers["webhook-id"] for headers, _ in pipeline.told}) == 2
    assert hook(told)["last_error"] == "" and hook(told)["failing_since"] is None


def test_nobody_there_is_an_error_with_a_name(told: World, pipeline: Pipeline) -> None:
    subscribe(told, pipeline)
    happen(told, "one")
    pipeline.stop()
    assert call(told) == 0
    assert "ConnectError" in hook(told)["last_error"]


def test_a_redirect_leads_nowhere(told: World, pipeline: Pipeline) -> None:
    subscribe(told, pipeline)
    happen(told, "one")
    pipeline.answers = [(307, {"Location": pipeline.address + "elsewhere"})]
    assert call(told) == 0
    assert hook(told)["last_error"] == "it answered 307" and len(pipeline.told) == 1


def test_an_answer_that_drips_holds_nobody_up(
    told: World, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "CALL_S_MAX", 0.1)
    subscribe(told, pipeline)
    happen(told, "one")
    pipeline.drips = True
    assert call(told) == 0
    assert hook(told)["last_error"].startswith("it did not answer within")


@pytest.mark.parametrize("reason", ["gone", "failing"])
def test_who_is_gone_or_fails_for_days_is_not_tried_again_until_somebody_says_so(
    told: World, pipeline: Pipeline, reason: str
) -> None:
    subscribe(told, pipeline)
    happen(told, "one")
    pipeline.answers = [(410, {})] if reason == "gone" else [(500, {}), (500, {})]
    call(told)
    if reason == "failing":
        told.now += webhooks.FAILING_MAX
        call(told)
    assert hook(told)["state"] == "disabled"
    told.now += timedelta(days=7)
    assert call(told) == 0
    told.ok("POST", f"/v1/webhooks/{hook(told)['id']}/enable")
    assert call(told) == 1 and hook(told)["state"] == "active"


def test_of_two_processes_one_calls_and_if_it_dies_the_other_does(
    told: World, pipeline: Pipeline
) -> None:
    subscribe(told, pipeline)
    happen(told, "one")
    sender = calls.sender_of(told.app.state.settings)
    assert sender is not None
    database: Database = told.app.state.database

    def claim() -> list[webhooks.Delivery]:
        with database.writer() as session:
            return webhooks.claim(session, sender, told.now)

    assert [len(claim()), len(claim())] == [1, 0]
    told.now += webhooks.LEASE
    assert call(told) == 1


def test_a_late_outcome_takes_nothing_back(told: World, pipeline: Pipeline) -> None:
    subscribe(told, pipeline)
    happen(told, "one")
    sender = calls.sender_of(told.app.state.settings)
    assert sender is not None
    with told.app.state.database.writer() as session:
        (late,) = webhooks.claim(session, sender, told.now)
    told.now += webhooks.LEASE
    assert call(told) == 1
    with told.app.state.database.writer() as session:
        webhooks.settle(session, late, "it was slow", told.now)
    assert hook(told)["last_error"] == "" and call(told) == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1.evil.example/",
        "http://127.0.0.1@evil.example/",
        "http://169.254.169.254/latest/meta-data",
        "https://{host}/",
        "{address}",
    ],
)
def test_only_the_settings_say_whom_the_server_calls(
    told: World, pipeline: Pipeline, url: str
) -> None:
    before = told.rows()
    host = pipeline.address.split("/")[2]
    body = {"url": url.format(host=host, address=f"http://{host}1/")}
    refused(told.call("POST", "/v1/webhooks", json=body), 403, "forbidden")
    assert told.rows() == before


@pytest.mark.parametrize("events", [[], ["*"], ["device.*"], ["token.create"], ["rollout"]])
def test_events_that_are_nobodys_business_are_refused(
    told: World, pipeline: Pipeline, events: list[str]
) -> None:
    body = {"url": pipeline.address, "events": events}
    refused(told.call("POST", "/v1/webhooks", json=body), 422, "invalid-request")


def test_an_address_that_the_settings_no_longer_allow_is_not_called(
    told: World, pipeline: Pipeline
) -> None:
    subscribe(told, pipeline)
    happen(told, "one")
    state = told.app.state
    state.settings = state.settings.model_copy(update={"webhooks_to": ("https://hooks.example/",)})
    assert call(told) == 0 and not pipeline.told
    assert "FLEETDIFF_WEBHOOKS_TO" in hook(told)["last_error"]


def test_a_server_without_the_settings_calls_nobody_and_says_so(world_sqlite: World) -> None:
    body = {"url": "https://hooks.example/"}
    found = refused(world_sqlite.call("POST", "/v1/webhooks", json=body), 403, "forbidden")
    assert "FLEETDIFF_WEBHOOKS_TO" in found["detail"]


@pytest.mark.parametrize("start", ["https://hooks.example", "hooks.example/", "https://a@b/"])
def test_the_settings_must_name_a_whole_host(start: str) -> None:
    with pytest.raises(ValueError, match="HOST"):
        Settings(database="sqlite://", artifacts="x", webhooks_to=start)


def test_the_secret_is_shown_once_and_lies_nowhere(told: World, pipeline: Pipeline) -> None:
    secret = subscribe(told, pipeline)["secret"].removeprefix("whsec_")
    assert "secret" not in hook(told)
    with told.app.state.database.reader() as session:
        entries = [str(row.details) for row in session.scalars(select(AuditEntry))]
    assert secret not in str(told.rows()) and secret not in str(entries)


def test_a_test_is_told_to_the_one_that_is_tested(told: World, pipeline: Pipeline) -> None:
    first = subscribe(told, pipeline)["id"]
    subscribe(told, pipeline)
    told.ok("POST", f"/v1/webhooks/{first}/test")
    assert call(told) == 1 and pipeline.types == ["webhook.test"]


def test_who_was_deleted_is_told_nothing_more(told: World, pipeline: Pipeline) -> None:
    made = subscribe(told, pipeline)["id"]
    happen(told, "one")
    assert told.call("DELETE", f"/v1/webhooks/{made}").status_code == 204
    assert call(told) == 0
    refused(told.call("DELETE", f"/v1/webhooks/{made}"), 404, "not-found")


def test_the_server_calls_by_itself_while_it_runs(
    sqlite_url: str, pipeline: Pipeline, tmp_path: Path
) -> None:
    artifacts = str(tmp_path / "artifacts")
    allowed = {"webhooks_to": (pipeline.address,), "webhooks_key": KEY}
    settings = patient(database=sqlite_url, artifacts=artifacts, **allowed)
    app = create_app(settings, durable=False)
    with TestClient(app) as client:
        world = World(client, app, tmp_path / "keys").found()
        subscribe(world, pipeline)
        happen(world, "one")
        assert pipeline.arrived.wait(30)
