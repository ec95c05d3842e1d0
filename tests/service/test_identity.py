"""Tokens of an identity provider: only what is right in every way is taken."""

import hashlib
import hmac
import time
from base64 import urlsafe_b64encode
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from jwt.algorithms import RSAAlgorithm

from tests.service.identity_provider import (
    EC,
    ED,
    OTHER,
    RSA,
    Provider,
    encoded,
    jwk,
    token,
)
from tests.service.world import World, refused


def test_a_person_may_do_what_their_groups_may(people: World) -> None:
    me = people.call("GET", "/v1/whoami", token=token()).json()
    assert me["name"] == "mina" and me["scopes"] == ["devices:read", "rollouts:halt"]
    assert people.call("GET", "/v1/devices", token=token()).status_code == 200
    refused(people.call("GET", "/v1/audit", token=token()), 403, "forbidden")
    both = token(groups=["auditors", "fleet-ops"])
    log = people.call("GET", "/v1/audit?newest_first=1", token=both).json()["items"]
    assert log[0]["actor"] == "mina (oidc)" and log[0]["result"] == "denied"
    assert people.call("GET", "/v1/whoami").json()["name"] == "tester", "API tokens go on working"


@pytest.mark.parametrize(
    ("key", "alg", "kid"), [(RSA, "RS256", "rsa"), (EC, "ES256", "ec"), (ED, "EdDSA", "ed")]
)
def test_each_algorithm_of_the_settings_is_taken(
    people: World, key: Any, alg: str, kid: str
) -> None:
    good = token(key, alg, kid)
    assert people.call("GET", "/v1/whoami", token=good).status_code == 200
    for other in {"rsa", "ec", "ed"} - {kid}:
        refused(people.call("GET", "/v1/whoami", token=token(key, alg, other)), 401)


def public_pem() -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return RSA.public_key().public_bytes(serialization.Encoding.PEM, form)


def hs256_with_public_key() -> str:
    """Sign as the attack does; the library refuses to help."""
    head, body, _ = token().split(".")
    head = encoded({"alg": "HS256", "typ": "JWT", "kid": "rsa"})
    mac = hmac.new(public_pem(), f"{head}.{body}".encode(), hashlib.sha256).digest()
    return f"{head}.{body}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"


NOW = int(time.time())
DEEP = b'{"alg":' + b"[" * 9_000 + b"]" * 9_000 + b"}"
FORGED = {
    "none": lambda: jwt.encode({"sub": "mina"}, None, algorithm="none"),
    "none, else right": lambda: (
        f"{encoded({'alg': 'none', 'kid': 'rsa'})}.{token().split('.')[1]}."
    ),
    "HS256 with the public key": hs256_with_public_key,
    "HS256 with a secret": lambda: token("s" * 64, "HS256"),
    "an algorithm that is not in the settings": lambda: token(alg="RS512"),
    "another key under a known name": lambda: token(OTHER),
    "wrong audience": lambda: token(aud="another"),
    "no audience": lambda: token(aud=None),
    "wrong issuer": lambda: token(iss="https://login.example.evil"),
    "no issuer": lambda: token(iss=None),
    "no exp": lambda: token(exp=None),
    "exp past": lambda: token(exp=NOW - 3600),
    "exp of another kind": lambda: token(exp=10**400),
    "nbf future": lambda: token(nbf=NOW + 3600),
    "iat future": lambda: token(iat=NOW + 3600),
    "no iat": lambda: token(iat=None),
    "no subject": lambda: token(sub=None),
    "an empty subject": lambda: token(sub=""),
    "a subject that repaints the terminal": lambda: token(sub="mina\x1b[2J"),
    "a subject with NUL": lambda: token(sub="mina\x00"),
    "a long subject": lambda: token(sub="m" * 129),
    "no kid": lambda: token(kid=None),
    "a changed claim": lambda: ".".join(
        [token().split(".")[0], encoded({"sub": "root"}), token().split(".")[2]]
    ),
    "a header as deep as it goes": lambda: f"{encoded(DEEP)}.e30.AAAA",
    "three dots": lambda: "...",
    "nothing in three parts": lambda: "e30.e30.e30",
}


@pytest.mark.attack("A03")
@pytest.mark.parametrize("how", FORGED)
def test_a_token_that_is_not_right_in_every_way_is_refused(
    people: World, provider: Provider, how: str
) -> None:
    said = refused(people.call("GET", "/v1/whoami", token=FORGED[how]()), 401, "unauthorized")
    assert (
        said["detail"]
        == refused(people.call("GET", "/v1/whoami", token="fd_" + "0" * 16 + "_" + "A" * 43), 401)[
            "detail"
        ]
    )
    assert people.call("GET", "/v1/whoami", token=token()).status_code == 200
    assert set(provider.asked) == {"/keys"} and len(provider.asked) == 1


@pytest.mark.attack("A03")
@pytest.mark.parametrize("name", ["jku", "x5u"])
def test_a_token_that_says_where_its_key_lies_is_not_followed(
    people: World, provider: Provider, name: str
) -> None:
    evil = Provider()
    try:
        evil.keys = [jwk(RSAAlgorithm, OTHER, "evil"), jwk(RSAAlgorithm, OTHER, "rsa")]
        for kid in ("evil", "rsa"):
            forged = token(OTHER, kid=kid, headers={name: evil.url, "jwk": evil.keys[0]})
            refused(people.call("GET", "/v1/whoami", token=forged), 401)
        assert evil.asked == [] and provider.asked == ["/keys"]
    finally:
        evil.stop()
