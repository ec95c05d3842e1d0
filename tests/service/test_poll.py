"""Unchanged polls are answered from memory: no database, and in the words of the route."""

from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.db import entries as kept
from service.db.tables import Device
from tests.service.memory import Memory, asking, settle, statements, updated
from tests.service.phone import Phone
from tests.service.test_certificates import SECRET
from tests.service.world import World, opened, patient, refused


def test_an_unchanged_poll_reaches_no_database_and_says_what_the_route_says(
    world: World, memory: Memory
) -> None:
    phone = updated(world)
    ask = settle(phone)
    with statements(world) as seen:
        fast = [ask() for _ in range(20)]
    assert memory.answers >= 20 and not seen
    world.app.state.database.entries.drop([kept.EVERYTHING])
    with statements(world) as seen:
        slow = ask()
    assert seen and slow.status_code == 304
    for reply in fast:
        assert (reply.status_code, reply.content, reply.headers["etag"]) == (304, b"", phone.etag)
        assert reply.headers.keys() == slow.headers.keys()
        assert 48 <= int(reply.headers["poll-after"]) <= 72
    assert len({reply.headers["poll-after"] for reply in fast}) > 1, "jittered"


def test_what_is_asked_in_any_other_words_is_looked_at(world_sqlite: World, memory: Memory) -> None:
    world = world_sqlite
    phone = updated(world)
    ask = settle(phone)
    assert memory.took(ask)
    other = partial(phone.request, "GET", headers={"If-None-Match": phone.etag})
    for query in (
        f"s={phone.runs}&root=1",
        f"s={phone.runs}&root=1&t=1",
        f"root=1&t=1&s={'0' * 64}",
    ):
        assert not memory.took(lambda q=query: other(f"/poll?{q}"))  # type: ignore[misc]
    assert not memory.took(lambda: asking(phone, **{"If-None-Match": '"other"'}))
    twice = [("If-None-Match", phone.etag), ("If-None-Match", '"other"')]
    bearer = ("Authorization", f"Bearer {phone.credential}")
    path = f"/device/v1/poll?root=1&t=1&s={phone.runs}"
    settle(phone)
    assert memory.took(lambda: world.client.get(path, headers=[bearer, twice[0]]))
    assert not memory.took(lambda: world.client.get(path, headers=[bearer, *twice]))
    assert not memory.took(lambda: world.client.get(path, headers=[bearer, bearer, twice[0]]))


@pytest.mark.attack("A02")
def test_a_wrong_secret_is_refused_and_noted_whatever_is_in_memory(
    world_sqlite: World, memory: Memory
) -> None:
    phone = updated(world_sqlite)
    ask = settle(phone)
    right, phone.credential = phone.credential, phone.credential[:-1] + "!"
    refused(ask(), 401, "unauthorized")
    phone.credential = f"fc_{phone.id}_{'A' * 43}"
    refused(ask(), 401, "unauthorized")
    denied = world_sqlite.ok("GET", "/v1/audit", params={"newest_first": True})["items"][0]
    assert (denied["result"], denied["details"]["tried"]) == ("denied", f"fc_{phone.id}")
    phone.credential = right
    assert memory.took(ask)


def phone_born(world: World, phone: Phone) -> Any:
    with world.app.state.database.reader() as session:
        return session.get_one(Device, phone.id).enrolled_at


def test_a_new_credential_comes_with_the_first_poll_after_a_month(
    world_sqlite: World, memory: Memory
) -> None:
    world = world_sqlite
    phone = world.enroll("serial-1")
    for second in (-1, 0):
        world.now = world.now.replace(microsecond=0)
        world.now = phone_born(world, phone) + timedelta(days=30, seconds=second)
        ask = settle(phone)
        assert memory.took(ask) == (second < 0)
    assert ask().headers["next-credential"]


@pytest.mark.attack("A10")
def test_polls_from_memory_count_like_all_others(sqlite_url: str, tmp_path: Path) -> None:
    settings = patient(
        database=sqlite_url, artifacts=str(tmp_path / "artifacts"), device_calls_per_min=8
    )
    with opened(settings, tmp_path) as world:
        phone = updated(world.found())
        ask = settle(phone)
        statuses = [ask().status_code for _ in range(6)]
        assert statuses == [304] * 4 + [429] * 2
        assert refused(ask(), 429, "too-many-requests")["retry_after_s"] == 8


@pytest.mark.attack("A02")
def test_a_device_that_is_bound_to_a_certificate_needs_it_for_memory_too(
    sqlite_url: str, tmp_path: Path, memory: Memory
) -> None:
    settings = patient(
        database=sqlite_url,
        artifacts=str(tmp_path / "artifacts"),
        trusted_proxies="0.0.0.0/0",
        proxy_secret=SECRET,
        client_cert_header="Client-Cert-Sha256",
    )
    with opened(settings, tmp_path) as world:
        world.client._transport.client = ("10.0.0.1", 5000)  # type: ignore[attr-defined]
        world.client.headers["Fleetdiff-Proxy-Secret"] = SECRET
        world.client.headers["Client-Cert-Sha256"] = "ab" * 32
        phone = updated(world.found())
        ask = settle(phone)
        assert memory.took(ask)
        for wrong in ({"Client-Cert-Sha256": "cd" * 32}, {"Fleetdiff-Proxy-Secret": "x" * 32}):
            refused(asking(phone, **wrong), 401)
        assert memory.took(ask)


def test_without_news_from_the_database_nothing_is_answered_from_memory(
    world_sqlite: World, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = settle(updated(world_sqlite))
    assert memory.took(ask)
    later = kept.time.monotonic() + 2 * kept.HEARD_S_MAX
    monkeypatch.setattr(kept, "time", SimpleNamespace(monotonic=lambda: later))
    assert not memory.took(ask)
