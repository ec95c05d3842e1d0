"""How often one may ask: by credential, and by address only who has none."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from service.__main__ import main
from service.settings import Settings
from tests.service.test_access import introduce, invitation
from tests.service.world import World, opened, refused

FEW = {"operator_calls_per_min": 30, "device_calls_per_min": 6}
FEW |= {"enrolls_per_min": 6, "failed_calls_per_min": 6}
PROXIED = "203.0.113.9"


@pytest.fixture
def busy(sqlite_url: str, tmp_path: Path) -> Iterator[World]:
    """A server with low limits, behind a proxy at 10.0.0.1."""
    artifacts = str(tmp_path / "artifacts")
    settings = Settings(
        database=sqlite_url, artifacts=artifacts, trusted_proxies="10.0.0.0/8", **FEW
    )
    with opened(settings, tmp_path) as world:
        yield world.found()


def until_limited(ask: Callable[[], Any]) -> tuple[int, Any]:
    """Ask until there were too many; returns how many passed, and the refusal."""
    for passed in range(100):
        reply = ask()
        if reply.status_code == 429:
            return passed, refused(reply, 429, "too-many-requests") | dict(reply.headers)
    raise AssertionError("never limited")


def test_one_operator_waits_and_another_does_not(busy: World) -> None:
    eager, other = busy.token_with("devices:read"), busy.token_with("devices:read")
    passed, said = until_limited(lambda: busy.call("GET", "/v1/devices", token=eager))
    assert passed == 30 and said["retry-after"] == "2" and said["retry_after_s"] == 2
    assert busy.call("GET", "/v1/devices", token=other).status_code == 200
    busy.tick(1)
    assert busy.call("GET", "/v1/whoami", token=eager).status_code == 429
    busy.tick(1)
    assert busy.call("GET", "/v1/whoami", token=eager).status_code == 200
    assert busy.call("GET", "/v1/whoami", token=eager).status_code == 429


@pytest.mark.attack("A10")
def test_a_device_is_limited_by_itself_and_a_fleet_behind_one_address_is_not(busy: World) -> None:
    fleet = busy.fleet(24, "")
    for _ in range(6):
        for phone in fleet:
            assert phone.request("GET", "/poll").status_code == 200
    for phone in fleet:
        passed, said = until_limited(lambda p=phone: p.request("GET", "/poll"))  # type: ignore[misc]
        assert passed == 0 and said["retry-after"] == "10"
        assert phone.request("POST", "/events", json={}).status_code == 429
    busy.tick(10)
    assert {phone.request("GET", "/poll").status_code for phone in fleet} == {200}


@pytest.mark.attack("A10", "A02")
def test_whoever_guesses_is_limited_by_address_and_who_knows_is_not(busy: World) -> None:
    phone = busy.fleet(1, "")[0]
    guesses = iter(range(100))

    def guess() -> Any:
        token = f"fd_{next(guesses):016x}_" + "A" * 43
        spoofed = {"X-Forwarded-For": f"192.0.2.{next(guesses)}", "X_Forwarded_For": "192.0.2.1"}
        return busy.call("GET", "/v1/devices", token=token, headers=spoofed)

    passed, said = until_limited(guess)
    assert passed == 6 and said["retry-after"] == "10"
    refused(busy.call("GET", "/device/v1/poll", token="fc_" + "0" * 16 + "_" + "A" * 43), 429)
    refused(busy.client.get("/v1/models"), 429)
    assert busy.client.get("/").status_code == 429, "the page is no way around"
    assert busy.ok("GET", "/v1/whoami") and phone.request("GET", "/poll").status_code == 200
    log = busy.ok("GET", "/v1/audit", params={"newest_first": True})["items"]
    assert [e["result"] for e in log].count("denied") == 6, "nor do guesses fill the log"


@pytest.mark.attack("A10")
def test_enrollment_is_limited_by_address_whatever_the_token(busy: World) -> None:
    token = invitation(busy, uses=100)
    serials = iter(range(100))
    passed, _ = until_limited(lambda: introduce(busy, token, serial=f"serial-{next(serials)}"))
    assert passed == 6
    assert len(busy.rows()["device"]) == 6
    busy.tick(10)
    assert introduce(busy, token, serial="late").status_code == 201


@pytest.mark.attack("A09", "A10")
def test_behind_our_own_proxy_the_address_is_the_one_it_saw(busy: World) -> None:
    proxy = TestClient(busy.app, client=("10.0.0.1", 50_000))
    spoofs = iter(range(100))

    def guess(seen: str) -> Any:
        sent = {"X-Forwarded-For": f"198.51.100.{next(spoofs)}, {seen}"}
        return proxy.get("/v1/models", headers=sent)

    assert until_limited(lambda: guess(PROXIED))[0] == 6
    assert guess("203.0.113.10").status_code == 401
    log = busy.ok("GET", "/v1/audit", params={"newest_first": True})["items"]
    assert [e["ip"] for e in log[:2]] == ["203.0.113.10", PROXIED]


@pytest.mark.parametrize("wrong", ["10.0.0.1/8", "proxy", "10.0.0.0/8;::1"])
def test_a_network_that_is_none_is_an_error_at_the_start(wrong: str) -> None:
    with pytest.raises(ValueError, match="trusted_proxies"):
        Settings(database="sqlite://", artifacts="a", trusted_proxies=wrong)


@pytest.mark.attack("A10")
def test_the_server_itself_believes_no_header_about_who_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[uvicorn.Config] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server: started.append(server.config))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        assert main(["serve", "--data", str(tmp_path)]) == 0
    finally:
        root.handlers[:], root.level = handlers, level
    # By default uvicorn takes X-Forwarded-For from whoever calls from this machine.
    assert not started[0].proxy_headers
