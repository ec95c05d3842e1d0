"""The keys of an identity provider: fetched seldom, kept for a while, and when it is down."""

from pathlib import Path
from typing import Any

import pytest
from jwt.algorithms import RSAAlgorithm

from service.core.errors import InvalidRequest
from service.settings import Settings
from tests.service.identity_provider import OTHER, Provider, config, encoded, jwk, token
from tests.service.world import World, opened, patient, refused


@pytest.mark.attack("A03")
def test_names_of_keys_that_nobody_knows_are_looked_up_twice_a_minute(
    people: World, provider: Provider
) -> None:
    forged = token(OTHER, kid="unknown")
    head, rest = forged.split(".", 1)
    for number in range(1000):
        head = encoded({"alg": "RS256", "kid": f"unknown-{number}"})
        assert people.call("GET", "/v1/whoami", token=f"{head}.{rest}").status_code == 401
    assert len(provider.asked) == 1
    provider.keys.append(jwk(RSAAlgorithm, OTHER, "new"))
    refused(people.call("GET", "/v1/whoami", token=token(OTHER, kid="new")), 401)
    people.tick(30)
    assert people.call("GET", "/v1/whoami", token=token(OTHER, kid="new")).status_code == 200
    assert len(provider.asked) == 2


@pytest.mark.attack("A03")
def test_a_key_that_was_withdrawn_is_good_for_five_minutes_at_most(
    people: World, provider: Provider
) -> None:
    assert people.call("GET", "/v1/whoami", token=token()).status_code == 200
    provider.keys = provider.keys[1:]
    people.tick(301)
    refused(people.call("GET", "/v1/whoami", token=token()), 401)


DOWN: dict[str, tuple[int, bytes]] = {
    "an error": (500, b""),
    "not found": (404, b"{}"),
    "a redirect": (302, b""),
    "no JSON": (200, b"<html>"),
    "no keys": (200, b"{}"),
    "an empty list": (200, b'{"keys": []}'),
    "keys of no known kind": (200, b'{"keys": [{"kty": "x", "kid": "rsa"}]}'),
    "nesting": (200, b'{"keys": ' + b"[" * 60_000),
    "not UTF-8": (200, b"\xff"),
}


@pytest.mark.attack("A03")
@pytest.mark.parametrize("how", DOWN)
def test_a_provider_that_is_down_is_503_and_asked_again_later(
    people: World, provider: Provider, how: str
) -> None:
    provider.answer = DOWN[how]
    for _ in range(5):
        refused(people.call("GET", "/v1/whoami", token=token()), 503, "identity-unavailable")
    assert provider.asked == ["/keys"]
    assert people.call("GET", "/v1/whoami").status_code == 200
    provider.answer = None
    people.tick(30)
    assert people.call("GET", "/v1/whoami", token=token()).status_code == 200


@pytest.mark.attack("A03")
def test_keys_that_are_known_outlive_their_provider_for_a_day(
    people: World, provider: Provider
) -> None:
    assert people.call("GET", "/v1/whoami", token=token()).status_code == 200
    provider.answer = (500, b"")
    people.tick(86_000)
    assert people.call("GET", "/v1/whoami", token=token()).status_code == 200
    refused(people.call("GET", "/v1/whoami", token=token(kid="other")), 401)
    people.tick(500)
    refused(people.call("GET", "/v1/whoami", token=token()), 503)


def test_nobody_listening_is_503(people: World, provider: Provider) -> None:
    provider.stop()
    refused(people.call("GET", "/v1/whoami", token=token()), 503, "identity-unavailable")


@pytest.mark.parametrize(
    ("claims", "way", "scopes"),
    [
        ({"scope": "fleet-ops auditors"}, ["scope"], 3),
        ({"realm": {"roles": ["auditors"]}}, ["realm", "roles"], 1),
        ({"realm": ["auditors"]}, ["realm", "roles"], 0),
        ({"groups": {"auditors": True}}, ["groups"], 0),
        ({"groups": [["auditors"], 1, None]}, ["groups"], 0),
        ({"groups": None}, ["groups"], 0),
        ({"groups": "audit:read"}, ["groups"], 0),
    ],
)
def test_groups_are_found_where_the_settings_say(
    provider: Provider,
    sqlite_url: str,
    tmp_path: Path,
    claims: dict[str, Any],
    way: list[str],
    scopes: int,
) -> None:
    oidc = config(provider, claim=way)
    chosen = patient(database=sqlite_url, artifacts=str(tmp_path / "artifacts"), oidc=oidc)
    with opened(chosen, tmp_path) as people:
        me = people.call("GET", "/v1/whoami", token=token(**claims))
        assert me.status_code == 200 and len(me.json()["scopes"]) == scopes


def test_settings_that_make_no_sense_are_refused_at_the_start(
    provider: Provider, sqlite_url: str, tmp_path: Path
) -> None:
    for wrong in (
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"]},
        {"algorithms": []},
        {"jwks_url": "http://login.example/keys"},
        {"jwks_url": "file:///etc/passwd"},
        {"jwks_url": "http://127.0.0.1.evil.example/keys"},
        {"audience": ""},
        {"surplus": 1},
    ):
        with pytest.raises(ValueError, match="oidc"):
            Settings(database=sqlite_url, artifacts="a", oidc=config(provider, **wrong))
    granted = config(provider, scopes={"ops": ["everything"]})
    with (
        pytest.raises(InvalidRequest, match="everything"),
        opened(patient(database=sqlite_url, artifacts=str(tmp_path / "a"), oidc=granted), tmp_path),
    ):
        pass


def test_an_identity_makes_tokens_with_its_own_scopes_only(
    provider: Provider, sqlite_url: str, tmp_path: Path
) -> None:
    granted = config(provider, scopes={"fleet-ops": ["tokens:admin", "devices:read"]})
    chosen = patient(database=sqlite_url, artifacts=str(tmp_path / "a"), oidc=granted)
    with opened(chosen, tmp_path) as people:
        ask = {"name": "n", "scopes": ["devices:read"]}
        made = people.call("POST", "/v1/tokens", token=token(), json=ask)
        assert made.status_code == 201
        assert people.call("GET", "/v1/devices", token=made.json()["token"]).status_code == 200
        ask["scopes"] = ["releases:write"]
        refused(people.call("POST", "/v1/tokens", token=token(), json=ask), 403)
