"""RFC 9421: a device that signs has no secret to send, and nothing but its own words is taken."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.testclient import TestClient

from service.app import create_app
from service.core.access import SCOPES
from service.db.tables import Device
from tests.service.signing import COVERED, SigningPhone, public_of
from tests.service.world import World, outcomes, refused

DAY_S, MONTH_S = 86_400, 30 * 86_400
TAKEN = (200, 307)  # a blob, or where it lies
EVENTS = {"events": [{"seq": 1, "kind": "note", "at": "2026-06-01T12:00:00Z", "reason": "E_TEST"}]}
BODY = json.dumps(EVENTS).encode()
OTHER = Ed25519PrivateKey.generate()
SMALL_ORDER = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"


@pytest.fixture
def phone(world: World) -> SigningPhone:
    return SigningPhone(world).enroll()


@pytest.fixture
def phone_sqlite(world_sqlite: World) -> SigningPhone:
    return SigningPhone(world_sqlite).enroll()


def denied(world: World) -> Any:
    """The newest entry of the audit log, of a refusal."""
    log = world.ok("GET", "/v1/audit", params={"newest_first": True, "limit": 1})["items"]
    assert log[0]["result"] == "denied"
    return log[0]["details"]


@pytest.mark.attack("A08")
def test_a_device_that_signs_polls_reports_and_fetches(phone: SigningPhone) -> None:
    world = phone.world
    sha256 = world.upload(b"bytes")
    first = phone.request("GET", "/poll?root=0&t=0")
    assert first.status_code == 200 and first.json()["hold"] == "nothing_published"
    headers = phone.headers("GET", "/poll?root=0&t=0") | {"If-None-Match": first.headers["etag"]}
    assert phone.send("GET", "/poll?root=0&t=0", b"", headers).status_code == 304
    assert phone.request("POST", "/events", EVENTS).json() == {"acknowledged": 1}
    assert phone.request("GET", f"/artifacts/{sha256}").status_code in TAKEN
    found = world.ok("GET", f"/v1/devices/{phone.id}")
    assert found["authentication"] == "signature"
    assert world.ok("GET", f"/v1/devices/{world.enroll('s').id}")["authentication"] == "bearer"


WRONG: dict[str, dict[str, Any]] = {
    "another key": {"key": OTHER},
    "no device's id": {"keyid": "." + "{public}"},
    "another device's id": {"keyid": "0" * 16 + ".{public}"},
    "no key": {"keyid": "{id}"},
    "a key that is no point": {"keyid": "{id}." + "f" * 64},
    "signed a day ago": {"age_s": DAY_S},
    "signed tomorrow": {"age_s": -DAY_S},
    "signed 301 s ago": {"age_s": 301},
    "signed in 6 s": {"age_s": -6},
    "another host": {"host": "http://elsewhere"},
    "another scheme": {"host": "https://testserver"},
    "without the method": {"covered": COVERED[1:]},
    "without the address": {"covered": (COVERED[0], COVERED[2])},
    "without the body": {"covered": COVERED[:2]},
    "nothing covered": {"covered": ()},
    "more than is asked": {"covered": (*COVERED, "content-type")},
    "a component twice": {"covered": (*COVERED, "@method")},
    "without a number": {"parameters": ';created={created};keyid="{keyid}"'},
    "without a time": {"parameters": ';keyid="{keyid}";nonce="{nonce}"'},
    "without a key's name": {"parameters": ';created={created};nonce="{nonce}"'},
    "a time that is text": {"parameters": ';created="{created}";keyid="{keyid}";nonce="{nonce}"'},
    "an end of its own": {
        "parameters": ';created={created};keyid="{keyid}";nonce="{nonce}";expires=9999999999'
    },
    "another algorithm": {
        "parameters": ';created={created};keyid="{keyid}";nonce="{nonce}";alg="hmac-sha256"'
    },
    "a number that is none": {"nonce": "n"},
    "a number below one": {"nonce": "0"},
    "a number of another time": {"nonce": "1780315100000000"},
    "a number in other digits": {"nonce": "\\u0661"},
    "a number without end": {"nonce": "9" * 19},
    "a number with a sign": {"nonce": "+1780315200000001"},
}


@pytest.mark.attack("A08")
@pytest.mark.parametrize("how", WRONG)
def test_what_is_signed_in_another_way_is_refused(phone_sqlite: SigningPhone, how: str) -> None:
    phone, world = phone_sqlite, phone_sqlite.world
    wrong = dict(WRONG[how])
    if "keyid" in wrong:
        named = wrong["keyid"].replace("{public}", public_of(phone.key))
        wrong["keyid"] = named.replace("{id}", phone.id)
    before = world.rows()
    for method, path, document in (("POST", "/events", EVENTS), ("GET", "/poll", None)):
        refused(phone.request(method, path, document, **wrong), 401, "unauthorized")
    assert world.rows() == before
    assert phone.request("POST", "/events", EVENTS).status_code == 200


@pytest.mark.attack("A08")
def test_what_was_signed_is_all_that_is_taken(phone: SigningPhone) -> None:
    world = phone.world
    right = phone.headers("POST", "/events", BODY)
    other = phone.headers("POST", "/events", b"{}")
    second = phone.headers("POST", "/events", BODY, key=OTHER, label="sig2")
    both = {name: f"{right[name]}, {second[name]}" for name in ("Signature", "Signature-Input")}
    repeated = {name: f"{right[name]}, {right[name]}" for name in ("Signature", "Signature-Input")}
    extra = {"Content-Digest": right["Content-Digest"] + ", sha-512=:AAAA:"}
    before = world.rows()
    tried = {
        "another body": ("POST", "/events", BODY + b" ", right),
        "no body": ("POST", "/events", b"", right),
        "another address": ("POST", "/canary-reports", BODY, right),
        "a question more": ("POST", "/events?a=b", BODY, right),
        "another method": ("GET", "/poll", b"", phone.headers("HEAD", "/poll")),
        "a digest of something else": (
            "POST", "/events", BODY, right | {"Content-Digest": other["Content-Digest"]}
        ),
        "two digests": ("POST", "/events", BODY, right | extra),
        "a second signature": ("POST", "/events", BODY, right | both),
        "the signature twice": ("POST", "/events", BODY, right | repeated),
        "no signature": ("POST", "/events", BODY, right | {"Signature": ""}),
        "a broken one": ("POST", "/events", BODY, right | {"Signature": "sig=:AAAA:"}),
        "another label": ("POST", "/events", BODY, right | {"Signature": second["Signature"]}),
        "a long input": (
            "POST", "/events", BODY,
            right | {"Signature-Input": right["Signature-Input"] + ", x=()" * 500},
        ),
        "letters beyond ASCII": (
            "POST", "/events", BODY, right | {"Content-Digest": b"sha-256=:\xe9:"}
        ),
        "a broken input": ("POST", "/events", BODY, right | {"Signature-Input": "sig=((("}),
    }  # fmt: skip
    for how, (method, path, body, headers) in tried.items():
        reply = phone.send(method, path, body, headers)
        assert reply.status_code == 401, how
        refused(reply, 401, "unauthorized")
    assert world.rows() == before
    assert phone.send("POST", "/events", BODY, right).status_code == 200, "as it was signed"


@pytest.mark.attack("A08")
@pytest.mark.parametrize("path", ["/poll", "/artifacts/{sha256}", "/events"])
def test_a_request_is_taken_once_by_whichever_process_asks(phone: SigningPhone, path: str) -> None:
    world = phone.world
    path = path.format(sha256=world.upload(b"bytes"))
    method, body = ("POST", BODY) if path == "/events" else ("GET", b"")
    older, newer = (phone.headers(method, path, body) for _ in range(2))
    assert phone.send(method, path, body, newer).status_code in TAKEN
    another = create_app(world.app.state.settings, ticking=False, durable=False)
    another.state.clock = lambda: world.now
    with TestClient(another) as client:
        for headers in (newer, older):
            where = f"/device/v1{path}"
            reply = client.request(method, where, content=body or None, headers=headers)
            refused(reply, 401, "unauthorized")
            refused(phone.send(method, path, body, headers), 401, "unauthorized")
    assert "before" in denied(world)["signature"]
    assert phone.request(method, path, EVENTS if body else None).status_code in TAKEN


@pytest.mark.attack("A08")
@pytest.mark.parametrize("path", ["/poll", "/artifacts/{sha256}"])
def test_of_ten_replays_at_once_one_is_taken(phone: SigningPhone, path: str) -> None:
    path = path.format(sha256=phone.world.upload(b"bytes"))
    headers = phone.headers("GET", path)
    calls = [lambda: phone.send("GET", path, b"", headers) for _ in range(10)]
    found = outcomes(calls)
    assert found.count(401) == 9 and {*found} & {*TAKEN}


@pytest.mark.attack("A08")
def test_neither_kind_of_credential_does_for_the_other(phone_sqlite: SigningPhone) -> None:
    phone, world = phone_sqlite, phone_sqlite.world
    bearer = world.enroll("sends")
    public = public_of(phone.key)
    for secret in (public, public[:43], bearer.credential[-43:]):
        token = f"fc_{phone.id}_{secret}"
        refused(world.call("GET", "/device/v1/poll", token=token), 401, "unauthorized")
    with world.app.state.database.reader() as session:
        kept = session.get_one(Device, bearer.id).credential_sha256
    for keyid in (f"{bearer.id}.{public}", f"{bearer.id}.{kept}"):
        refused(phone.request("GET", "/poll", keyid=keyid), 401, "unauthorized")
    assert bearer.poll() is not None, "and it is none the worse"
    refused(bearer.request("POST", "/key", json={"public_key": public}), 409, "wrong-state")


@pytest.mark.attack("A08")
def test_a_key_is_enrolled_by_whoever_has_it(world_sqlite: World) -> None:
    world = world_sqlite
    phone, before = SigningPhone(world), world.rows()
    body = json.dumps(phone.asked).encode()
    unsigned = world.client.post("/device/v1/enroll", json=phone.asked)
    refused(unsigned, 401, "unauthorized")
    for wrong in ({"key": OTHER}, {"keyid": "0" * 16 + "." + public_of(phone.key)}, {"age_s": 400}):
        refused(phone.request("POST", "/enroll", phone.asked, **wrong), 401, "unauthorized")
    other = phone.asked | {"public_key": public_of(OTHER)}
    refused(phone.request("POST", "/enroll", other), 401, "unauthorized")
    weak = phone.asked | {"public_key": SMALL_ORDER}
    refused(phone.request("POST", "/enroll", weak), 422, "invalid-request")
    assert world.rows() == before, "the invitation is still good"
    headers = phone.headers("POST", "/enroll", body)
    assert phone.send("POST", "/enroll", body, headers).status_code == 201
    refused(phone.send("POST", "/enroll", body, headers), 401, "unauthorized")


def test_a_signature_gives_a_device_no_key_unless_it_asks_for_one(world_sqlite: World) -> None:
    phone = SigningPhone(world_sqlite)
    del phone.asked["public_key"]
    reply = phone.request("POST", "/enroll", phone.asked)
    assert reply.status_code == 201 and reply.json()["credential"].startswith("fc_")


def test_a_revoked_device_has_no_signature_left(phone_sqlite: SigningPhone) -> None:
    phone = phone_sqlite
    phone.world.ok("PATCH", f"/v1/devices/{phone.id}", json={"status": "revoked"})
    refused(phone.request("GET", "/poll"), 401, "unauthorized")


@pytest.mark.attack("A07", "A08")
def test_the_next_key_is_signed_by_the_old_one_which_ends_when_it_is_used(
    phone: SigningPhone, caplog: pytest.LogCaptureFixture
) -> None:
    world, old = phone.world, phone.key
    assert "next-credential" not in phone.request("GET", "/poll").headers, "it is young"
    world.now += timedelta(seconds=MONTH_S)
    world.token = world.token_with(*SCOPES)
    assert phone.request("GET", "/poll").headers["next-credential"] == "key"
    lost, new = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    stranger = phone.request("POST", "/key", {"public_key": public_of(OTHER)}, key=OTHER)
    refused(stranger, 401, "unauthorized")
    for public in (SMALL_ORDER, "f" * 64):
        refused(phone.request("POST", "/key", {"public_key": public}), 422)
    for key in (lost, new):
        reply = phone.request("POST", "/key", {"public_key": public_of(key)})
        assert reply.status_code == 202, reply.text
    refused(phone.request("GET", "/poll", key=lost), 401, "unauthorized")
    heard = phone.headers("GET", "/poll")
    assert phone.send("GET", "/poll", b"", heard).status_code == 200, "it is good until then"
    assert "next-credential" not in phone.request("GET", "/poll", key=new).headers
    refused(phone.send("GET", "/poll", b"", heard), 401, "unauthorized")
    assert "alarm" not in denied(world), "whoever repeats what they heard has no key"
    with caplog.at_level(logging.WARNING):
        refused(phone.request("GET", "/poll"), 401, "unauthorized")
    assert denied(world)["alarm"] == "superseded" and "superseded" in caplog.text
    phone.key = new
    assert phone.request("GET", "/poll").status_code == 200
    assert old is not new


def test_behind_a_proxy_the_public_address_is_what_is_signed(phone_sqlite: SigningPhone) -> None:
    phone, state = phone_sqlite, phone_sqlite.world.app.state
    public = "https://models.example"
    state.settings = state.settings.model_copy(update={"public_url": public})
    refused(phone.request("GET", "/poll"), 401, "unauthorized")
    assert phone.request("GET", "/poll", host=public).status_code == 200


def test_the_number_of_requests_that_is_remembered_does_not_grow(
    phone_sqlite: SigningPhone,
) -> None:
    phone, world = phone_sqlite, phone_sqlite.world
    assert phone.request("GET", "/poll").status_code == 200
    before = {table: len(rows) for table, rows in world.rows().items()}
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: phone.request("GET", "/poll"), range(20)))
    assert {table: len(rows) for table, rows in world.rows().items()} == before
