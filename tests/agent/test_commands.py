"""The command line, enrollment and the configuration file."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agent import agent
from device_agent.__main__ import main
from device_agent.config import Config, Limits, load_config
from device_agent.errors import Misconfigured, Rejected
from device_agent.status import status
from tests.agent.conftest import Lab

COMMANDS = "enroll run once status rollback".split()


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_configuration_file_is_read_as_written(lab: Lab, toml: Path) -> None:
    config = load_config(toml)
    assert config.state_dir == lab.config.state_dir
    assert config.attributes == {"region": "north"}
    assert config.limits == Limits(start_spread_s=0.0)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("surprise = 1", "unknown key 'surprise'"),
        ("[limits]\npoll_ms = 1", "unknown key 'poll_ms'"),
        ("[limits]\npoll_s = '1'", "poll_s"),
        ("[limits]\nretries_max = 1.5", "retries_max"),
        ("[limits]\nretries_max = true", "retries_max"),
        ("[limits]\npoll_s = -1", "poll_s"),
        ("recogniser = 'sh'", "recogniser"),
        ("blob_hosts = [1]", "blob_hosts"),
        ("attributes = { a = 1 }", "attributes.a"),
        ("plain_http = 1", "plain_http"),
        ("limits = 1", "limits"),
        ("= =", "agent.toml"),
    ],
)
def test_a_configuration_that_is_not_understood_names_the_key(
    tmp_path: Path, line: str, says: str
) -> None:
    path = tmp_path / "agent.toml"
    good = 'server="https://x"\nmodel="m"\nserial="s"\nhardware="h"\nstate_dir="d"\nroot="r"\n'
    path.write_text(good)
    load_config(path)
    path.write_text(good + line)
    with pytest.raises(Misconfigured, match=says):
        load_config(path)


@pytest.mark.parametrize("key", ["server", "model", "serial", "hardware", "state_dir", "root"])
def test_a_missing_key_is_named(toml: Path, key: str) -> None:
    lines = [line for line in toml.read_text().splitlines() if not line.strip().startswith(key)]
    toml.write_text("\n".join(lines))
    with pytest.raises(Misconfigured, match=f"missing key '{key}'"):
        load_config(toml)


@pytest.mark.parametrize(
    ("server", "fits"),
    [
        ("https://updates.example", True),
        ("http://127.0.0.1:8080", True),
        ("http://updates.example", False),
        ("ftp://updates.example", False),
        ("updates.example", False),
    ],
)
def test_a_server_beyond_this_machine_must_be_https(
    tmp_path: Path, server: str, fits: bool
) -> None:
    def make(**more: Any) -> Config:
        return Config(server, "m", "s", "h", tmp_path, tmp_path / "root.json", **more)

    if fits:
        make()
        return
    with pytest.raises(Misconfigured, match="server"):
        make()


def test_a_development_root_is_refused_unless_it_is_asked_for(lab: Lab) -> None:
    root = json.loads(lab.config.root.read_text())
    root["signed"]["x-fleetdiff-profile"] = "dev"
    lab.config.root.write_text(json.dumps(root))
    with pytest.raises(Misconfigured, match="development root"), agent.open_device(lab.config):
        pass
    with agent.open_device(Config(**{**lab.config.__dict__, "dev_root": True})):
        pass


def test_a_root_that_is_none_is_said(lab: Lab) -> None:
    lab.config.root.write_text("{}")
    with pytest.raises(Misconfigured, match="no root metadata"), agent.open_device(lab.config):
        pass


def test_the_credential_is_for_its_owner_only(lab: Lab) -> None:
    mode = (lab.config.state_dir / "credential.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


@pytest.mark.attack("M48")
@pytest.mark.parametrize(("there", "said"), [(True, "yes"), (False, "no")])
def test_a_device_says_at_enrollment_whether_it_verifies_p256(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, said: str
) -> None:
    monkeypatch.setattr(agent, "find_spec", lambda name: there and name == "cryptography")
    config = replace(lab.config, state_dir=tmp_path / "other", attributes={"room": "hall"})
    agent.enroll(config, "token", None)
    described = json.loads(lab.server.asked[-1].body)["attributes"]
    assert described == {"room": "hall", "ecdsa-sha2-nistp256": said}


def test_a_server_that_does_not_answer_is_named(
    lab: Lab, toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        toml.write_text(toml.read_text().replace(lab.config.server, address))
        assert main(["once", "--config", str(toml)]) == 75
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"fleetdiff-agent: {address} cannot be reached: ")
    assert "`server`" in line


def test_enrolling_twice_is_refused(lab: Lab) -> None:
    with pytest.raises(Misconfigured, match="enrolled already"):
        agent.enroll(lab.config, "token", None)


@pytest.mark.parametrize(
    ("serial", "token", "says"),
    [("taken", "token", "This serial is enrolled already"), ("s2", "wrong", "token is unknown")],
)
def test_a_refused_enrollment_says_why_and_leaves_no_credential(
    lab: Lab, tmp_path: Path, serial: str, token: str, says: str
) -> None:
    changes = {"serial": serial, "state_dir": tmp_path / "other"}
    config = Config(**{**lab.config.__dict__, **changes})
    with pytest.raises(Rejected, match=says):
        agent.enroll(config, token, None)
    assert not (tmp_path / "other" / "credential.json").exists()
    with pytest.raises(Misconfigured, match="not enrolled"), agent.open_device(config):
        pass
    assert agent.enroll(Config(**{**config.__dict__, "serial": "s3"}), "token", None)["device_id"]


def test_a_factory_model_that_is_no_file_is_refused(lab: Lab, tmp_path: Path) -> None:
    config = Config(**{**lab.config.__dict__, "state_dir": tmp_path / "other"})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Rejected, match="E_BASE"):
        agent.enroll(config, "token", tmp_path / "pipe")


def test_enroll_shows_whether_the_roots_are_the_same(
    lab: Lab, toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml.write_text(toml.read_text().replace('"state"', '"other"'))
    model = str(lab.folder / "factory.model")
    arguments = ["enroll", "--config", str(toml), "--token", "token", "--model-file", model]
    assert main([*arguments, "--json"]) == 0
    answer = said(capsys)
    assert answer["root_is_the_servers"] is True
    assert answer["model_sha256"] == lab.server.releases["r1"].sha256
    assert main(arguments) == 2


def test_once_updates_and_says_so(lab: Lab, toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["once", "--config", str(toml), "--json"]) == 0
    assert said(capsys)["outcome"] == "nothing to do"
    lab.server.offer("r2")
    assert main(["once", "--config", str(toml), "--json"]) == 0
    answer = said(capsys)
    assert answer["outcome"] == "committed"
    assert answer["running_sha256"] == lab.server.releases["r2"].sha256
    assert main(["status", "--config", str(toml), "--json"]) == 0
    status = said(capsys)
    assert (status["state"], status["running"]["release"]) == ("Idle", "r2")
    assert main(["rollback", "--config", str(toml)]) == 1


def test_every_kind_of_end_has_its_exit_code(lab: Lab, toml: Path) -> None:
    config = ["--config", str(toml)]
    assert main(["rollback", *config]) == 3
    lab.server.offer("r2", device="d2")
    assert main(["once", *config]) == 1
    with lab.device():
        assert main(["once", *config]) == 75
    toml.write_text(toml.read_text().replace(lab.config.server, "http://127.0.0.1:1"))
    assert main(["once", *config]) == 75
    toml.write_text("x = 1")
    assert main(["once", *config]) == 2
    assert main(["once", "--config", "/no/such/file"]) == 2


def test_status_works_beside_a_running_agent(
    lab: Lab, toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lab.device():
        assert main(["status", "--config", str(toml)]) == 0
    assert "state: Idle" in capsys.readouterr().out


def test_a_reader_that_leaves_early_is_no_error(lab: Lab, toml: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "device_agent", "status", "--config", str(toml)]
    with os.fdopen(writer, "wb") as gone:
        ended = subprocess.run(words, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_the_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "75 transient" in capsys.readouterr().out.replace("\n", " ")


def test_run_ends_at_sigterm_and_logs_json_lines(lab: Lab, toml: Path) -> None:
    lab.server.offer("r2")
    command = [sys.executable, "-m", "device_agent", "run", "--config", str(toml)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(json.loads(line))
            if "committed" in lines[-1]["says"]:
                process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert lab.release_running() == "r2"
    assert {"at", "level", "by", "says"} <= set(lines[0])


@pytest.mark.attack("M45")
def test_a_killed_agent_goes_on_where_it_was(lab: Lab, toml: Path) -> None:
    slow = lab.folder / "slow"
    started = lab.folder / "started"
    slow.write_text(f'#!/bin/sh\ntouch {started}; sleep 1; exec {lab.folder}/engine "$@"\n')
    slow.chmod(0o755)
    text = toml.read_text().replace(json.dumps(str(lab.folder / "engine")), json.dumps(str(slow)))
    toml.write_text(text)
    assert tomllib.loads(text)["recogniser"][1] == str(slow)
    lab.server.offer("r2")
    command = [sys.executable, "-m", "device_agent", "once", "--config", str(toml), "--json"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not started.exists():  # Between its fork and its exec, a child shares the lock.
            assert process.poll() is None
        process.kill()
    assert status(lab.config)["state"] == "Trying"
    assert lab.once().kind == "committed"


def test_an_error_is_one_json_object_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "agent.toml"
    assert main(["status", "--config", str(missing)]) == 2
    plain = capsys.readouterr()
    assert main(["status", "--config", str(missing), "--json"]) == 2
    found = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert plain.err == f"fleetdiff-agent: {found['detail']}\n" and str(missing) in plain.err
    assert found["exit"] == 2 and plain.out == ""
