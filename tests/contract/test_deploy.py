"""What `deploy/` offers is what the programs take."""

from pathlib import Path

from device_agent.config import load_config
from service.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_example_of_a_device_is_a_valid_configuration() -> None:
    config = load_config(DEPLOY / "agent.toml")
    assert config.model == "asr-en-edge" and config.recogniser == ("/usr/bin/recogniser",)


def test_the_example_of_a_server_names_only_known_settings() -> None:
    lines = (DEPLOY / "server.env").read_text().splitlines()
    pairs = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    settings = Settings.from_environ(pairs)
    assert {name.removeprefix("FLEETDIFF_").lower() for name in pairs} <= set(vars(settings))
    assert settings.poll_after_s == 21600


def test_the_units_start_commands_that_exist() -> None:
    for name, command in [("agent", "fleetdiff-agent run"), ("server", "fleetdiff-server serve")]:
        assert command in (DEPLOY / f"fleetdiff-{name}.service").read_text()
