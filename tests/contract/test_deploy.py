"""What `deploy/` offers is what the programs take."""

import re
from pathlib import Path

import pytest
import yaml

from device_agent.config import load_config
from service.__main__ import main
from service.settings import FromEnviron, PublisherSettings, Settings

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_example_of_a_device_is_a_valid_configuration() -> None:
    config = load_config(DEPLOY / "agent.toml")
    assert config.model == "asr-en-edge" and config.recogniser == ("/usr/bin/recogniser",)


def variables(name: str) -> dict[str, str]:
    lines = (DEPLOY / f"{name}.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize(("name", "kind"), [("server", Settings), ("publisher", PublisherSettings)])
def test_the_example_of_an_environment_names_only_known_settings(
    name: str, kind: type[FromEnviron]
) -> None:
    pairs = variables(name)
    settings = kind.from_environ(pairs)
    assert {variable.removeprefix("FLEETDIFF_").lower() for variable in pairs} <= set(
        vars(settings)
    )


@pytest.mark.parametrize(("command", "kind"), [("serve", Settings), ("publish", PublisherSettings)])
def test_the_help_of_a_command_names_every_setting_and_what_it_is(
    command: str, kind: type[FromEnviron], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z-]+)", shown)}
    variables = {name.lower() for name in re.findall(r"^  FLEETDIFF_([A-Z_]+)$", shown, re.M)}
    assert flags - {"help", "data", "log_level"} | variables == set(kind.model_fields)
    assert all(field.description for field in kind.model_fields.values())


@pytest.mark.attack("A25")
def test_the_example_of_a_server_has_no_key_and_the_one_of_a_publisher_no_port() -> None:
    settings = Settings.from_environ(variables("server"))
    assert settings.publisher == "external" and settings.online_keys is None
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert services["server"]["volumes"] == ["scratch:/var/tmp"]
    assert "ports" not in services["publisher"]
    assert services["publisher"]["networks"] == ["inside"]
    assert "SocketBindDeny=any" in (DEPLOY / "fleetdiff-publisher.service").read_text()


def test_the_units_start_commands_that_exist() -> None:
    commands = {"agent": "agent run", "server": "server serve", "publisher": "server publish"}
    for name, command in commands.items():
        unit = (DEPLOY / f"fleetdiff-{name}.service").read_text()
        assert f"ExecStart=/usr/bin/env fleetdiff-{command}" in unit
