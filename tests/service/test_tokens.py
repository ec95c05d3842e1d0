"""API tokens made, listed and revoked over HTTP, and where they may come from."""

from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.core.access import SCOPES
from tests.service.routes import routes_of
from tests.service.test_access import stored_token
from tests.service.world import World, refused


def made(world: World, *scopes: str, **more: Any) -> Any:
    return world.ok("POST", "/v1/tokens", json={"name": "made", "scopes": scopes} | more)


def test_a_token_is_made_used_listed_and_revoked(world: World) -> None:
    new = made(world, "devices:read", ttl_s=3600)
    assert new["scopes"] == ["devices:read"] and new["last_used_at"] is None
    assert world.call("GET", "/v1/devices", token=new["token"]).status_code == 200
    refused(world.call("GET", "/v1/models", token=new["token"]), 403)
    listed = {row["id"]: row for row in world.ok("GET", "/v1/tokens")["items"]}
    assert listed[new["id"]]["last_used_at"] == world.now.isoformat().replace("+00:00", "Z")
    assert new["token"][-43:] not in str(listed) and "secret" not in str(listed)
    path = f"/v1/tokens/{new['id']}/revoke"
    ended = world.ok("POST", path)
    world.tick()
    assert world.ok("POST", path) == ended, "it ended once"
    refused(world.call("GET", "/v1/devices", token=new["token"]), 401)
    refused(world.call("POST", "/v1/tokens/nothing/revoke"), 404)
    log = world.ok("GET", "/v1/audit", params={"newest_first": True})["items"]
    actions = [(entry["action"], entry["object"]) for entry in log]
    assert actions.count(("token.create", new["id"])) == 1
    assert actions.count(("token.revoke", new["id"])) == 1


def test_a_token_lives_no_longer_than_it_was_made_for(world_sqlite: World) -> None:
    new = made(world_sqlite, "devices:read", ttl_s=60)
    world_sqlite.tick(60)
    refused(world_sqlite.call("GET", "/v1/whoami", token=new["token"]), 401)
    for ttl_s in (59, 365 * 86400 + 1, True, "60"):
        body = {"name": "n", "scopes": ["devices:read"], "ttl_s": ttl_s}
        refused(world_sqlite.call("POST", "/v1/tokens", json=body), 422)


def test_no_token_outlives_the_one_that_made_it(world_sqlite: World) -> None:
    """Whoever held a token for an hour would have one for a year."""
    world = world_sqlite
    maker = made(world, "tokens:admin", "devices:read", ttl_s=3600)
    body = {"name": "heir", "scopes": ["tokens:admin"], "ttl_s": 365 * 86400}
    heir = world.call("POST", "/v1/tokens", token=maker["token"], json=body).json()
    assert heir["expires_at"] == maker["expires_at"]
    short = world.call("POST", "/v1/tokens", token=maker["token"], json=body | {"ttl_s": 60}).json()
    assert short["expires_at"] < maker["expires_at"]
    world.tick(3600)
    refused(world.call("GET", "/v1/whoami", token=heir["token"]), 401)


def test_use_is_noted_once_a_minute(world_sqlite: World) -> None:
    world = world_sqlite
    token = made(world, "devices:read")["token"]
    used = []
    for _ in range(5):
        assert world.call("GET", "/v1/whoami", token=token).status_code == 200
        items = world.ok("GET", "/v1/tokens")["items"]
        used.append(next(i["last_used_at"] for i in items if i["id"] == token[3:19]))
        world.tick(30)
    assert len(set(used)) == 3


def test_nobody_gives_away_a_scope_that_they_lack(world_sqlite: World) -> None:
    world = world_sqlite
    admin = world.token_with("tokens:admin", "devices:read")
    for scopes in (["releases:write"], ["devices:read", "rollouts:halt"]):
        body = {"name": "more", "scopes": scopes}
        refused(world.call("POST", "/v1/tokens", token=admin, json=body), 403, "forbidden")
    body = {"name": "less", "scopes": ["devices:read"]}
    assert world.call("POST", "/v1/tokens", token=admin, json=body).status_code == 201
    refused(world.call("POST", "/v1/tokens", json={"name": "n", "scopes": ["root"]}), 403)
    refused(world.call("POST", "/v1/tokens", json={"name": "n", "scopes": []}), 422)


def test_a_token_of_a_network_is_none_elsewhere(world_sqlite: World) -> None:
    world = world_sqlite
    anywhere = made(world, "devices:read", networks=["0.0.0.0/0", "::/0"])["token"]
    refused(world.call("GET", "/v1/whoami", token=anywhere), 401, "unauthorized")
    here = made(world, "devices:read", networks=["10.1.0.0/16", "2001:db8::/32"])["token"]
    for address, status in (
        ("10.1.2.3", 200),
        ("2001:db8::7", 200),
        ("10.2.0.1", 401),
        ("2001:db9::7", 401),
        ("::ffff:10.2.0.1", 401),
        ("", 401),
    ):
        visitor = TestClient(world.app, client=(address, 50_000))
        reply = visitor.get("/v1/whoami", headers={"Authorization": f"Bearer {here}"})
        assert reply.status_code == status, address
    for wrong in ([], ["10.0.0.1/8"], ["nowhere"], ["10.0.0.0/33"], [10]):
        body = {"name": "n", "scopes": ["devices:read"], "networks": wrong}
        refused(world.call("POST", "/v1/tokens", json=body), 422)


def test_a_token_of_a_network_makes_none_for_elsewhere(world_sqlite: World) -> None:
    """Whoever stole it and was inside for a moment would have one that works everywhere."""
    world, scopes = world_sqlite, ["devices:read"]
    home = ["10.1.0.0/16", "2001:db8::/32"]
    inside = TestClient(world.app, client=("10.1.2.3", 50_000))
    inside.headers["Authorization"] = f"Bearer {made(world, *SCOPES, networks=home)['token']}"

    def make(**more: Any) -> Any:
        return inside.post("/v1/tokens", json={"name": "n", "scopes": scopes} | more)

    assert make().json()["networks"] == home
    for narrower in (["10.1.2.0/24"], ["10.1.0.0/16", "2001:db8:1::/48"]):
        assert make(networks=narrower).json()["networks"] == narrower
    for wider in (["10.0.0.0/8"], ["10.1.2.0/24", "10.2.0.0/16"], ["0.0.0.0/0"], ["::/0"]):
        refused(make(networks=wider), 403, "forbidden")


@pytest.mark.attack("A01", "A02")
def test_every_route_refuses_every_bad_token_in_the_same_words(world_sqlite: World) -> None:
    world = world_sqlite
    expired = stored_token(world, lifetime=timedelta(seconds=60))
    revoked = stored_token(world, lifetime=timedelta(days=1), revoked=True)
    elsewhere = made(world, *SCOPES, networks=["203.0.113.0/24"])["token"]
    gone = world.enroll("serial-1")
    world.ok("PATCH", f"/v1/devices/{gone.id}", json={"status": "revoked"})
    there = world.enroll("serial-2")
    world.tick(60)
    good = world.token_with(*SCOPES)
    nobodys = "_" + "0" * 16 + "_" + "A" * 43
    operators = [expired, revoked, elsewhere, good[:-43] + "A" * 43, "fd" + nobodys]
    devices = [gone.credential, there.credential[:-43] + "A" * 43, "fc" + nobodys]
    tried = 0
    for route in routes_of(world.app):
        people = route.path.startswith("/v1/")
        if not (people or route.path.startswith("/device/")) or route.path.endswith("/enroll"):
            continue
        bad = operators if people else devices
        replies = [world.call(route.method, route.url, token=token) for token in bad]
        said = {(r.status_code, r.text) for r in replies}
        assert len(said) == 1 and min(said)[0] == 401, (route, said)
        tried += len(bad)
    assert tried > 100
