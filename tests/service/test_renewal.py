"""A device's credential is renewed in the answer to a poll; the one before it ends at first use."""

import logging
from datetime import timedelta

import pytest

from service.core.access import SCOPES
from tests.service.phone import Phone
from tests.service.world import World, outcomes, refused

MONTH_S = 30 * 86400


def renewed(phone: Phone) -> str:
    """Return the new credential that a poll brings, empty if it brings none."""
    reply = phone.request("GET", "/poll", headers={"If-None-Match": phone.etag})
    assert reply.status_code in (200, 304), reply.text
    return str(reply.headers.get("next-credential", ""))


def aged(world: World) -> Phone:
    phone = world.enroll("serial-1")
    assert not renewed(phone), "it is young"
    world.now += timedelta(seconds=MONTH_S)
    world.token = world.token_with(*SCOPES)  # which lives a month, too
    return phone


def test_a_credential_is_renewed_once_a_month_and_ends_when_the_new_one_is_used(
    world: World,
) -> None:
    phone = aged(world)
    old, new = phone.credential, renewed(phone)
    assert new.startswith(f"fc_{phone.id}_") and new != old
    assert phone.request("GET", "/poll").status_code == 200, "the old one is good until then"
    new = renewed(phone)
    phone.credential = new
    assert not renewed(phone), "it is used, so it is young"
    phone.credential = old
    refused(phone.request("GET", "/poll"), 401, "unauthorized")
    phone.credential = new
    world.now += timedelta(seconds=MONTH_S)
    newest = renewed(phone)
    assert newest not in ("", old, new)


def test_an_unchanged_poll_brings_a_new_credential_too(world_sqlite: World) -> None:
    phone = aged(world_sqlite)
    phone.poll()
    reply = phone.request("GET", "/poll", headers={"If-None-Match": phone.etag})
    assert reply.status_code == 304 and reply.headers["next-credential"]


def test_an_answer_that_got_lost_locks_nobody_out(world_sqlite: World) -> None:
    phone = aged(world_sqlite)
    lost, arrived = renewed(phone), renewed(phone)
    old, phone.credential = phone.credential, lost
    refused(phone.request("GET", "/poll"), 401)
    phone.credential = old
    assert phone.request("GET", "/poll").status_code == 200
    arrived = renewed(phone)
    phone.credential = arrived
    assert phone.request("GET", "/poll").status_code == 200


def test_a_download_with_the_new_credential_ends_nothing(world_sqlite: World) -> None:
    world = world_sqlite
    phone = aged(world)
    old, new, sha256 = phone.credential, renewed(phone), world.upload(b"bytes")
    for credential in (new, old, new, old):
        phone.credential = credential
        assert phone.request("GET", f"/artifacts/{sha256}").content == b"bytes"
    assert renewed(phone)


@pytest.mark.attack("A07")
def test_the_old_credential_after_the_new_one_is_refused_and_an_alarm(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    phone = aged(world)
    old, phone.credential = phone.credential, renewed(phone)
    assert phone.request("GET", "/poll").status_code == 200
    stolen = Phone(world, phone.id, old, "")
    wrong = Phone(world, phone.id, old[:-43] + "A" * 43, "")
    sha256 = world.upload(b"bytes")
    with caplog.at_level(logging.WARNING):
        replies = [
            stolen.request("GET", "/poll"),
            stolen.request("GET", f"/artifacts/{sha256}"),
            stolen.request("POST", "/events", json={}),
        ]
    for reply in replies:
        refused(reply, 401, "unauthorized")
    assert {r.text for r in replies} == {wrong.request("GET", "/poll").text}, "it says no more"
    log = world.ok("GET", "/v1/audit", params={"newest_first": True, "limit": 4})["items"]
    assert "alarm" not in log[0]["details"]
    for entry in log[1:]:
        assert entry["details"]["alarm"] == "superseded" and entry["result"] == "denied"
        assert entry["details"]["tried"] == f"fc_{phone.id}"
    assert caplog.text.count("superseded credential") == 3
    assert phone.request("GET", "/poll").status_code == 200


def test_a_revoked_device_has_no_credential_left(world_sqlite: World) -> None:
    phone = aged(world_sqlite)
    old, new = phone.credential, renewed(phone)
    world_sqlite.ok("PATCH", f"/v1/devices/{phone.id}", json={"status": "revoked"})
    for phone.credential in (old, new):
        refused(phone.request("GET", "/poll"), 401)


def test_first_uses_at_once_all_count_as_one(world: World) -> None:
    phone = aged(world)
    phone.credential = renewed(phone)
    calls = [lambda: phone.request("GET", "/poll") for _ in range(10)]
    assert outcomes(calls) == [200] * 10
    log = world.ok("GET", "/v1/audit", params={"newest_first": True})["items"]
    assert [e["action"] for e in log].count("device.renew") == 1
    assert phone.credential[-43:] not in str(world.rows()) + str(log)
