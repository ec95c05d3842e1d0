"""A real agent that signs, and the real server: a secret is never sent, and keys follow keys."""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from device_agent import agent
from device_agent.__main__ import main
from device_agent.config import Config, Limits
from device_agent.errors import Misconfigured, Rejected, Unavailable
from device_agent.status import status
from service.core.access import SCOPES
from service.db.tables import Device
from tests.service.served import served
from tests.service.world import BASE, BETTER, MODEL, World

Headers = dict[str, str]


class Site:
    """A server at a real address, by the real clock, and what it was sent."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.sent: list[Headers] = []
        self.replied: list[int] = []
        self.root = folder / "root.json"
        self.root.write_bytes(world.newest_metadata("root"))
        self.address = ""
        self.app: Any = world.app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.sent.append(headers)

        async def noted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.replied.append(message["status"])
            await send(message)

        await self.app(scope, receive, noted)

    def config(self, name: str = "device") -> Config:
        return Config(
            server=self.address,
            model=MODEL,
            serial=name,
            hardware="h1",
            state_dir=self.folder / name,
            root=self.root,
            dev_root=True,
            limits=Limits(start_spread_s=0.0),
        )

    def enroll(self, **more: Any) -> Config:
        asked = {"model": MODEL, "cohort": None}
        token = self.world.ok("POST", "/v1/enrollment-tokens", json=asked)["token"]
        factory = self.folder / "factory"
        factory.write_bytes(BASE)
        agent.enroll(self.config(), token, factory, signature=True, **more)
        return self.config()

    def kept(self) -> Any:
        return json.loads((self.folder / "device" / agent.CREDENTIAL).read_bytes())

    def aged(self) -> None:
        """Let every device be of an age at which its key is renewed."""
        with self.world.app.state.database.writer() as session:
            for row in session.query(Device):
                row.renewed_at = row.enrolled_at - timedelta(days=31)


def real_time() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def site(unpublished: World, tmp_path: Path) -> Iterator[Site]:
    world = unpublished
    world.now, world.app.state.clock = real_time(), real_time
    world.token = world.token_with(*SCOPES)
    site = Site(world.found(), tmp_path)
    with served(site) as site.address:  # type: ignore[arg-type]
        yield site


def once(config: Config, clock: Any = real_time) -> Any:
    with agent.open_device(config, clock) as device:
        return agent.run_once(device)


@pytest.mark.attack("A08")
def test_an_agent_that_signs_is_updated_and_never_sends_a_secret(site: Site) -> None:
    world, config = site.world, site.enroll()
    world.publish("r1", BASE)
    world.publish("r2", BETTER, after="r1")
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    once(config)
    world.start_rollout("r2", "all", stages=[{"share_bp": 10_000}])
    for _ in range(3):
        world.tick()
        once(config)
    assert (config.state_dir / "current" / "model").read_bytes() == BETTER
    assert once(config) is None
    device = [h for h in site.sent if "signature-input" in h]
    assert len(device) == len(site.sent) > 5 and not any("authorization" in h for h in device)
    assert 401 not in site.replied
    assert (config.state_dir / agent.CREDENTIAL).stat().st_mode & 0o777 == 0o600
    assert status(config)["authentication"] == "signature"
    assert not any(site.kept()["credential"][3:] in str(headers) for headers in site.sent)


@pytest.mark.attack("A08")
@pytest.mark.parametrize("days", [-1200, -1, 1])
def test_a_wrong_clock_signs_by_the_servers(site: Site, days: int) -> None:
    def wrong() -> datetime:
        return real_time() + timedelta(days=days)

    config = site.enroll(clock=wrong)
    assert site.replied == [401, 201], "once, and then it knew the time"
    with agent.open_device(config, wrong) as device:
        for _ in range(3):
            agent.run_once(device)
    assert site.replied[2:].count(401) == 1


def test_a_key_is_renewed_by_the_one_before(site: Site) -> None:
    config = site.enroll()
    first = site.kept()
    once(config)
    assert site.kept() == first, "it is young"
    site.aged()
    once(config)
    second = site.kept()
    assert second["before"] == first["credential"] != second["credential"]
    once(config)
    assert site.kept() == second and 401 not in site.replied
    log = site.world.ok("GET", "/v1/audit", params={"newest_first": True})["items"]
    assert [entry["action"] for entry in log].count("device.renew") == 1


@pytest.mark.attack("A08")
def test_a_server_that_asks_for_keys_and_takes_none_loses_no_device(site: Site) -> None:
    """Somebody in the network answers as the server would, and the server hears nothing."""
    config = site.enroll()
    honest = site.kept()["credential"]

    async def false(scope: Any, _receive: Any, send: Any) -> None:
        key = scope["path"].endswith("/key")
        headers = [(b"next-credential", b"key"), (b"etag", b'"x"'), (b"connection", b"close")]
        begin = {"type": "http.response.start", "status": 202 if key else 200, "headers": headers}
        await send(begin)
        body = b"{}" if key else b'{"metadata": {}, "order": null, "plan": null}'
        await send({"type": "http.response.body", "body": body})

    site.app = false
    for _ in range(4):
        once(config)
        assert site.kept()["credential"] != honest
    site.app = site.world.app
    for _ in range(6):
        with pytest.raises(Unavailable, match="401"):
            once(config)
    once(config)
    assert site.kept()["credential"] == honest


def test_a_server_that_gives_a_secret_to_who_wanted_none_is_not_believed(site: Site) -> None:
    async def false(_scope: Any, _receive: Any, send: Any) -> None:
        answer = {"device_id": "d", "credential": "fc_0_secret", "root_sha256": ""}
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    site.app = false
    with pytest.raises(Rejected, match="another kind of credential"):
        site.enroll()
    assert not (site.config().state_dir / agent.CREDENTIAL).exists()


@pytest.mark.parametrize("flag", [True, False])
def test_the_command_line_enrolls_with_a_key_or_without(
    site: Site, flag: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"model": MODEL, "cohort": None}
    token = site.world.ok("POST", "/v1/enrollment-tokens", json=asked)["token"]
    config = site.config()
    toml = site.folder / "agent.toml"
    toml.write_text(
        f'server = "{config.server}"\nmodel = "{MODEL}"\nserial = "s"\nhardware = "h1"\n'
        f'state_dir = "device"\nroot = "root.json"\ndev_root = true\n'
    )
    words = ["enroll", "--config", str(toml), "--token", token, "--json"]
    assert main([*words, "--signature"] if flag else words) == 0
    device = json.loads(capsys.readouterr().out)["device_id"]
    kind = "signature" if flag else "bearer"
    assert site.world.ok("GET", f"/v1/devices/{device}")["authentication"] == kind
    assert main(["status", "--config", str(toml), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["authentication"] == kind


def test_without_the_library_enrollment_says_what_to_install(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "http_message_signatures", None)
    monkeypatch.delitem(sys.modules, "device_agent.signature", raising=False)
    with pytest.raises(Misconfigured, match=r"fleetdiff\[signature\]"):
        site.enroll()
    assert not site.sent and not (site.config().state_dir / agent.CREDENTIAL).exists()
