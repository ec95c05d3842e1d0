"""Who may call what: tokens, scopes, device credentials, enrollment. Every refusal is a problem."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from service.core import access
from service.db.tables import ApiToken
from tests.service.routes import routes_of
from tests.service.world import MODEL, World, outcomes, refused

OPEN = ("/healthz", "/device/v1/enroll")


def admin_routes(world: World) -> list[tuple[str, str, str]]:
    """Return (method, URL, scope) of every route under /v1."""
    return [
        (r.method, r.url, min(r.scopes)) for r in routes_of(world.app) if r.path.startswith("/v1/")
    ]


def stored_token(world: World, *, lifetime: timedelta, revoked: bool = False) -> str:
    with world.app.state.database.writer() as session:
        scopes = list(access.SCOPES)
        row, token = access.create_token(session, "old", scopes, lifetime, world.now)
        row.revoked_at = world.now if revoked else None
    return token


def introduce(world: World, token: str, **more: Any) -> Any:
    body = {
        "enrollment_token": token,
        "model": MODEL,
        "serial": "serial-1",
        "hardware": "h1",
        "agent_version": "1",
    }
    return world.client.post("/device/v1/enroll", json=body | more)


def invitation(world: World, **more: Any) -> str:
    return str(world.ok("POST", "/v1/enrollment-tokens", json={"model": MODEL} | more)["token"])


@pytest.mark.attack("A01")
def test_no_admin_route_answers_without_a_token_that_is_valid_now(world_sqlite: World) -> None:
    world = world_sqlite
    expired = stored_token(world, lifetime=timedelta(seconds=60))
    revoked = stored_token(world, lifetime=timedelta(days=1), revoked=True)
    phone = world.enroll("serial-1")
    world.tick(61)
    wrong = world.token[:-43] + "A" * 43
    before = world.rows()
    for method, url, _ in admin_routes(world):
        if method != "HEAD":
            refused(world.client.request(method, url), 401, "unauthorized")
        for token in (wrong, expired, revoked, phone.credential):
            reply = world.call(method, url, token=token)
            assert reply.status_code == 401, (method, url, reply.text)
            assert reply.headers["www-authenticate"].startswith("Bearer")
    assert world.rows() == before


@pytest.mark.attack("A01", "A02")
def test_a_refusal_never_tells_why_a_token_is_not_valid(world_sqlite: World) -> None:
    world = world_sqlite
    expired = stored_token(world, lifetime=timedelta(seconds=60))
    revoked = stored_token(world, lifetime=timedelta(days=1), revoked=True)
    world.tick(60)  # a token is void in the very moment of its end
    tokens = [expired, revoked, world.token[:-43] + "A" * 43, "fd_" + "0" * 16 + "_" + "A" * 43]
    assert len({world.call("GET", "/v1/whoami", token=token).text for token in tokens}) == 1


@pytest.mark.attack("A01")
def test_every_scope_opens_its_own_routes_only(world_sqlite: World) -> None:
    world = world_sqlite
    lacking = {s: world.token_with(*(o for o in access.SCOPES if o != s)) for s in access.SCOPES}
    before = world.rows()
    for method, url, scope in admin_routes(world):
        if scope == "any":
            continue
        reply = world.call(method, url, token=lacking[scope])
        assert reply.status_code == 403, (method, url, reply.text)
        if method != "HEAD":
            assert refused(reply, 403, "forbidden")["scope"] == scope
        reply = world.call(method, url, token=world.token_with(scope))
        assert reply.status_code not in (401, 403), (method, url)
    assert {r for r in world.rows()["model"]} == set(before["model"])


def test_strange_authorization_headers_are_401(world_sqlite: World) -> None:
    world = world_sqlite
    strange = [
        "",
        "Bearer",
        "Bearer ",
        "Basic " + world.token,
        world.token,
        "Bearer " + world.token[:-1],
        "Bearer " + world.token + "A",
        f"Bearer {world.token} {world.token}",
        "Bearer " + world.token.upper(),
        "Bearer fd_" + "é" * 43,
        "Bearer " + "x" * 20_000,
        "Bearer fd_0000000000000000_' OR 1=1 --",
    ]
    for header in strange:
        raw = {"Authorization": header.encode("latin-1")}
        refused(world.client.get("/v1/whoami", headers=raw), 401, "unauthorized")
        refused(world.client.get("/device/v1/poll", headers=raw), 401, "unauthorized")
    mine = world.client.get("/v1/whoami", headers={"Authorization": f"bearer {world.token}"})
    assert mine.status_code == 200 and set(mine.json()["scopes"]) == set(access.SCOPES)


@pytest.mark.attack("A04")
def test_an_operators_token_is_no_device(world_sqlite: World) -> None:
    world = world_sqlite
    token = invitation(world)
    for route in routes_of(world.app):
        if route.scopes == {"device"}:
            for wrong in (world.token, token, "fc_" + "0" * 16 + "_" + "A" * 43):
                assert world.call(route.method, route.url, token=wrong).status_code == 401, route


def test_secrets_are_stored_as_digests_only_and_scopes_are_a_closed_list(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    phone, token = world.enroll("serial-1"), invitation(world)
    everything = str(world.rows())
    for secret in (phone.credential, token, world.token):
        assert secret[-43:] not in everything
    with world.app.state.database.writer() as session:
        for scopes, days in ((["everything"], 1), ([], 1), (["releases:read"], 366)):
            with pytest.raises(access.InvalidRequest):
                lifetime = timedelta(days=days)
                access.create_token(session, "t", scopes, lifetime, world.now)
        assert session.query(ApiToken).count() == 1


@pytest.mark.attack("A05", "A06")
def test_enrollment_is_refused_and_changes_nothing(world_sqlite: World) -> None:
    world = world_sqlite
    world.ok("POST", "/v1/models", json={"name": "other"})
    used, good, late = (invitation(world) for _ in range(3))
    late = invitation(world, ttl_s=60)
    assert introduce(world, used, serial="first").status_code == 201
    world.tick(60)
    before = world.rows()
    table: list[tuple[str, dict[str, Any], int, str]] = [
        (used, {}, 401, "unauthorized"),
        (late, {}, 401, "unauthorized"),
        (good[:-43] + "A" * 43, {}, 401, "unauthorized"),
        ("fe_" + "0" * 16 + good[-44:], {}, 401, "unauthorized"),
        (world.token, {}, 401, "unauthorized"),
        (good, {"model": "other"}, 401, "unauthorized"),
        (good, {"model": "nothing"}, 401, "unauthorized"),
        (good, {"serial": "first"}, 409, "serial-taken"),
        (good, {"serial": ""}, 422, "invalid-request"),
        (good, {"serial": "a\nb"}, 422, "invalid-request"),
        (good, {"serial": "x" * 129}, 422, "invalid-request"),
        (good, {"hardware": None}, 422, "invalid-request"),
        (good, {"attributes": {"a": 1}}, 422, "invalid-request"),
        (good, {"attributes": {"a": "x" * 257}}, 422, "invalid-request"),
        (good, {"attributes": {str(n): "" for n in range(33)}}, 422, "invalid-request"),
        (good, {"device_id": "chosen"}, 422, "invalid-request"),
    ]
    for token, more, status, name in table:
        refused(introduce(world, token, **more), status, name)
    assert world.rows() == before
    assert introduce(world, good).status_code == 201


@pytest.mark.attack("A05")
def test_one_use_admits_one_device_however_many_ask_at_once(world: World) -> None:
    token = invitation(world)
    asked = [partial(introduce, world, token, serial=f"serial-{n}") for n in range(50)]
    assert outcomes(asked) == [201] + [401] * 49
    assert len(world.rows()["device"]) == len(world.rows()["device_model"]) == 1
    taken = world.rows()["device"][0].split("'")[3]
    refused(introduce(world, token, serial=taken), 401)  # a used-up token tells no serial


def test_one_serial_is_enrolled_once_however_many_ask_at_once(world: World) -> None:
    token = invitation(world, uses=10)
    calls: list[Callable[[], Any]] = [partial(introduce, world, token) for _ in range(10)]
    assert outcomes(calls) == [201] + [409] * 9
    assert len(world.rows()["device"]) == 1
    assert introduce(world, token, serial="serial-2").status_code == 201
    names = [partial(world.call, "POST", "/v1/models", json={"name": "new"}) for _ in range(8)]
    assert outcomes(names) == [201] + [409] * 7


@pytest.mark.attack("A06")
def test_a_taken_serial_leaves_the_old_credential_valid_and_a_revoked_one_is_free_again(
    world: World,
) -> None:
    first = world.enroll("serial-1")
    refused(introduce(world, invitation(world), serial="serial-1"), 409, "serial-taken")
    assert first.request("GET", "/poll").status_code == 200
    path = f"/v1/devices/{first.id}"
    assert world.ok("PATCH", path, json={"status": "revoked"})["status"] == "revoked"
    for method, where in (("GET", "/poll"), ("POST", "/events"), ("POST", "/canary-reports")):
        refused(first.request(method, where), 401, "unauthorized")
    second = world.enroll("serial-1")
    assert second.id != first.id and second.request("GET", "/poll").status_code == 200
    refused(world.call("PATCH", path, json={"status": "active"}), 409, "wrong-state")
    world.ok("PATCH", path, json={"status": "revoked"})  # once more changes nothing
    serials = {d["id"]: d["serial"] for d in world.ok("GET", "/v1/devices")["items"]}
    assert serials[second.id] == "serial-1" and serials[first.id].startswith("serial-1 (revoked")
    assert serials[first.id].count("revoked") == 1


def test_a_device_that_took_the_name_of_a_revoked_one_keeps_nobody_from_being_revoked(
    world: World,
) -> None:
    """Whoever holds an invitation, and what a stolen device is called, could keep it in."""
    stolen = world.enroll("serial-1")
    world.enroll(f"serial-1 (revoked {stolen.id})")
    world.ok("PATCH", f"/v1/devices/{stolen.id}", json={"status": "revoked"})
    refused(stolen.request("GET", "/poll"), 401)


def test_an_invitation_names_a_model_and_a_static_cohort_of_it(world_sqlite: World) -> None:
    world = world_sqlite
    world.ok("POST", "/v1/models", json={"name": "other"})
    for name, model, how in (
        ("mine", MODEL, {"devices": []}),
        ("filter", MODEL, {"filter": {}}),
        ("theirs", "other", {"devices": []}),
    ):
        world.ok("POST", "/v1/cohorts", json={"name": name, "model": model} | how)
    table: list[tuple[dict[str, Any], int]] = [
        ({"model": "nothing"}, 404),
        ({"cohort": "nothing"}, 404),
        ({"cohort": "filter"}, 422),
        ({"cohort": "theirs"}, 422),
        ({"uses": 0}, 422),
        ({"uses": True}, 422),
        ({"uses": "1"}, 422),
        ({"uses": 10**30}, 422),
        ({"ttl_s": 59}, 422),
        ({"ttl_s": 366 * 86400}, 422),
    ]
    for more, status in table:
        reply = world.call("POST", "/v1/enrollment-tokens", json={"model": MODEL} | more)
        refused(reply, status)
    assert world.rows()["enrollment_token"] == []
    phone = world.enroll("serial-1", cohort="mine")
    assert world.ok("GET", "/v1/cohorts/mine")["sample"] == [phone.id]
