"""Every error is a problem document, whatever was sent; a bug tells nobody but the log."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from service.logs import JsonLines
from tests.service.world import MODEL, World, digest, refused

SERVICE = Path(__file__).parents[2] / "service"
JSON = {"Content-Type": "application/json"}


def post(world: World, path: str, body: bytes | Iterator[bytes]) -> Any:
    return world.call("POST", path, content=body, headers=JSON)


@pytest.mark.attack("A28")
def test_unknown_paths_and_methods_are_problems(world_sqlite: World) -> None:
    world = world_sqlite
    for path in ("/v1/nothing", "/v1", "/v1/models/", "/docs", "/openapi.json", "/device/v1/poll/"):
        reply = world.call("GET", path)
        refused(reply, 404, "not-found")
        assert "location" not in reply.headers
    reply = world.call("DELETE", "/v1/models")
    refused(reply, 405, "method-not-allowed")
    assert reply.headers["allow"]
    refused(world.call("GET", "/v1/models/nothing"), 404, "not-found")


@pytest.mark.attack("A20")
def test_a_body_over_the_limit_is_413_whatever_its_header_says(world_sqlite: World) -> None:
    world = world_sqlite
    limit = world.app.state.settings.body_bytes_max
    body = b'{"name": "' + b"x" * limit + b'"}'
    before = world.rows()
    for path in ("/v1/models", "/device/v1/enroll"):
        refused(post(world, path, body), 413, "too-large")
        refused(post(world, path, iter([body[:100], body[100:]])), 413, "too-large")
    reply = world.call("PUT", "/v1/metadata/root", content=body)
    refused(reply, 413, "too-large")
    assert world.rows() == before
    fits = b'{"name": "big"}'.ljust(limit)
    assert post(world, "/v1/models", fits).status_code == 201


@pytest.mark.attack("A20", "A21")
def test_a_422_points_at_every_field_that_is_wrong(world_sqlite: World) -> None:
    world = world_sqlite
    body = {"model": "Not A Name", "uses": 0, "surprise": 1}
    found = refused(world.call("POST", "/v1/enrollment-tokens", json=body), 422, "invalid-request")
    pointers = {error["pointer"]: error["detail"] for error in found["errors"]}
    assert set(pointers) == {"/body/model", "/body/uses", "/body/surprise"}
    found = refused(world.call("GET", "/v1/devices?limit=1000000000"), 422, "invalid-request")
    assert found["errors"][0]["pointer"] == "/query/limit" and "500" in found["detail"]
    cohort = {"name": "c", "model": MODEL, "filter": {"tags": {"a/b~c": 7}}}
    found = refused(world.call("POST", "/v1/cohorts", json=cohort), 422)
    assert found["errors"][0]["pointer"] == "/body/filter/tags/a~1b~0c", "RFC 6901 escapes / and ~"


@pytest.mark.attack("A21")
def test_injections_in_queries_and_paths_find_nothing(world_sqlite: World) -> None:
    world = world_sqlite
    world.enroll("serial-1")
    for query in ("cohort=' OR 1=1 --", "model=%25", "limit=0", "limit=501", "cursor=%00"):
        refused(world.call("GET", f"/v1/devices?{query}"), 422, "invalid-request")
    assert world.ok("GET", "/v1/devices?cursor=z' OR '1'='1")["items"] == []
    for name in ("'", "%00", "..%2f..%2fetc%2fpasswd", "%ff", "x" * 200):
        assert world.call("GET", f"/v1/devices/{name}").status_code in (404, 422)
        assert world.call("GET", f"/v1/rollouts/{name}").status_code in (404, 422)
        assert world.call("GET", f"/v1/metadata/{name}").status_code in (404, 422)
    for filename in ("timestamp.json", "1.root.json", "1.targets.json"):
        found = world.call("GET", f"/v1/metadata/{filename}").status_code
        assert found == (404 if filename == "timestamp.json" else 200)
    for filename in ("0.root.json", "2.root.json", "01.family-asr.json", "root", "1.root.json%0a"):
        refused(world.call("GET", f"/v1/metadata/{filename}"), 404, "not-found")


@pytest.fixture
def bombs() -> list[bytes]:
    wide = b"[" + b"0," * 400_000 + b"0]"
    return [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"[" * 100_000,
        b'{"name":' * 50_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"name": ' + wide + b"}",
        b'{"name": NaN}',
        b'{"name": -Infinity}',
        b'{"name": 1e999}',
        b'{"name": ' + b"9" * 5000 + b"}",
        b'{"name": "\xff\xfe"}',
        b'{"name": "\xed\xa0\x80"}',
        b"\xff\xfe{\x00}\x00",
        b'{"name": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"name": "\\u0000"}',
        b'{"name": "a", "name": {}}',
        b'{"name": "a", "extra": 1}',
        b'{"name": true}',
        b"name=a",
    ]


@pytest.mark.attack("A20", "M05", "M42")
def test_no_json_makes_the_server_fail(world_sqlite: World, bombs: list[bytes]) -> None:
    world = world_sqlite
    phone = world.enroll("serial-1")
    before = world.rows()
    for body in bombs:
        refused(post(world, "/v1/models", body), 422)
        refused(world.client.post("/device/v1/enroll", content=body, headers=JSON), 422)
        for path in ("/events", "/canary-reports"):
            headers = JSON
            refused(phone.request("POST", path, content=body, headers=headers), 422)
        refused(world.call("PUT", "/v1/metadata/targets", content=body), 422, "not-acceptable")
    assert world.rows() == before
    refused(world.call("POST", "/v1/models", content=b'{"name": "a"}'), 422, "invalid-request")


@pytest.mark.attack("A20")
def test_a_doubled_key_is_refused_however_deep_it_stands(world_sqlite: World) -> None:
    world = world_sqlite
    phone, before = world.enroll("serial-1"), world.rows()
    doubled = b'{"name": "c", "model": "asr", "filter": {"tags": {"a": "1", "a": "2"}}}'
    found = refused(post(world, "/v1/cohorts", doubled), 422, "invalid-request")
    assert "twice" in found["detail"]
    refused(post(world, "/v1/models", b'{"name": "first", "name": "last"}'), 422)
    body = b'{"events": [], "events": []}'
    refused(phone.request("POST", "/events", content=body, headers=JSON), 422, "invalid-request")
    assert world.rows() == before


@pytest.mark.attack("A21")
def test_strings_that_only_a_database_would_choke_on_are_422(world: World) -> None:
    odd_keys = ['a"b', "a\\b", '"', "a\x00b"]
    for key in odd_keys:
        cohort = {"name": "c", "model": MODEL, "filter": {"attributes": {key: "1"}}}
        refused(world.call("POST", "/v1/cohorts", json=cohort), 422, "invalid-request")
    cohort = {"name": "c", "model": MODEL, "filter": {"tags": {"k": "a\x00b"}}}
    refused(world.call("POST", "/v1/cohorts", json=cohort), 422, "invalid-request")
    phone = world.enroll("serial-1", attributes={"k$.[0]": "'", "0": "%", "é ü": "\\"})
    tags: dict[str, Any] = {"tags": {"k": "\x00"}}
    refused(world.call("PATCH", f"/v1/devices/{phone.id}", json=tags), 422, "invalid-request")
    for number, (key, value) in enumerate({"k$.[0]": "'", "0": "%", "é ü": "\\"}.items()):
        cohort = {"name": f"c{number}", "model": MODEL, "filter": {"attributes": {key: value}}}
        assert world.ok("POST", "/v1/cohorts", json=cohort)["sample"] == [phone.id]
    assert len(world.ok("GET", "/v1/cohorts")["items"]) == 3


@pytest.mark.attack("A28")
def test_a_bug_answers_500_without_a_trace_and_the_log_has_it(
    world_sqlite: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret password is swordfish")

    monkeypatch.setattr("service.publishing.catalog.create_model", fail)
    with caplog.at_level(logging.ERROR):
        reply = world_sqlite.call("POST", "/v1/models", json={"name": "new"})
    refused(reply, 500, "bug")
    for word in ("swordfish", "RuntimeError", "Traceback", "service/"):
        assert word not in reply.text
    assert "swordfish" in caplog.text and "/v1/models" in str(vars(caplog.records[-1]))


@pytest.mark.attack("A22")
@pytest.mark.parametrize("hostile", ["a\r\nb", "\x1b[2Jx", "\u2028line", "\x00", "<script>"])
def test_hostile_text_stays_one_line_of_the_log(hostile: str) -> None:
    record = logging.makeLogRecord({"msg": hostile, "name": hostile, "reason": hostile})
    (line,) = JsonLines().format(record).splitlines()
    assert line.isprintable() and json.loads(line)["reason"] == hostile


def test_a_commit_that_fails_answers_500_and_keeps_nothing(world: World) -> None:
    phone = world.enroll("serial-1")
    before = world.rows()

    def fail(_session: Session) -> None:
        raise RuntimeError("the disk is full")

    event.listen(Session, "before_commit", fail)
    try:
        refused(world.call("POST", "/v1/models", json={"name": "new"}), 500, "bug")
        refused(phone.say("note"), 500, "bug")
        body = b"an artifact"
        upload = world.call("PUT", f"/v1/artifacts/{digest(body)}", content=body)
        refused(upload, 500, "bug")  # before a byte was stored: its room could not be noted
        assert world.app.state.blobs.size(digest(body)) is None
    finally:
        event.remove(Session, "before_commit", fail)
    assert world.rows() == before
    phone.seq = 0
    assert phone.say("note").json() == {"acknowledged": 1}


def test_only_the_session_and_the_migrations_begin_and_commit() -> None:
    found = {
        str(path.relative_to(SERVICE))
        for path in SERVICE.rglob("*.py")
        if re.search(r"\bcommit\(|\.begin\(|\.begin_nested\(|\bautocommit\b", path.read_text())
    }
    assert found <= {"db/session.py", "db/migrate.py"}
