"""What a device was born with: a model, and the files that go with it."""

import shutil
from pathlib import Path

import pytest

from device_agent import agent
from device_agent.__main__ import main
from tests.agent.conftest import Lab


def test_a_device_is_born_with_the_components_of_its_model(
    lab: Lab, toml: Path, tmp_path: Path
) -> None:
    config, born = ["--config", str(toml)], tmp_path / "born"
    shutil.rmtree(lab.config.state_dir)
    bodies = {"lm.bin": b"a language model", "tokenizer.json": b"tokens"}
    given = ["--token", "token", "--model-file", str(lab.folder / "factory.model")]
    for name, body in bodies.items():
        born.with_name(name).write_bytes(body)
        given += ["--component", f"{name}={born.with_name(name)}"]
    assert main(["enroll", *config, *given]) == 0
    assert lab.components_running() == bodies
    lab.server.publish("r1", components=bodies)
    lab.server.publish("r2", components={"lm.bin": bodies["lm.bin"]})
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    assert lab.components_running() == {"lm.bin": bodies["lm.bin"]}
    lab.server.publish("r1", components=bodies, back_from=("r2",))
    lab.server.offer("r1", [lab.server.undo("r1")])
    assert lab.once().kind == "rolled_back"
    assert (lab.release_running(), lab.components_running()) == ("r1", bodies)


def test_a_device_that_is_enrolled_anew_keeps_no_component_of_its_life_before(lab: Lab) -> None:
    lab.server.publish("r2", components={"lm.bin": b"a language model"})
    lab.server.publish("r3", components={"lm.bin": b"another"})
    for release in ("r2", "r3"):
        lab.server.offer(release)
        assert lab.once().kind == "committed"
    (lab.config.state_dir / "credential.json").unlink()
    agent.enroll(lab.config, "token", lab.folder / "factory.model")
    assert (lab.release_running(), lab.components_running()) == ("r1", {})
    lab.server.offer("r2")
    assert lab.once().kind == "committed"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--component", "lm.bin"], 2, "is not NAME=FILE"),
        (["--component", "lm.bin="], 2, "is not NAME=FILE"),
        (["--component", "../lm={here}"], 2, "is not NAME=FILE"),
        (["--component", "LM={here}"], 2, "is not NAME=FILE"),
        (["--component", "lm={here}/nothing"], 2, "does not exist"),
        (["--component", "lm={here}"], 2, "goes with a --model-file"),
        (["--component", "lm={here}", "--component", "lm={here}"], 2, "a name of its own"),
        (["--model-file", "{here}", "--component", "lm=/dev/null"], 1, "E_BASE"),
    ],
)
def test_a_component_at_birth_that_is_none_is_refused(
    lab: Lab, toml: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    shutil.rmtree(lab.config.state_dir)
    given = [word.format(here=lab.folder / "factory.model") for word in words]
    try:
        ended = main(["enroll", "--config", str(toml), "--token", "token", *given])
    except SystemExit as stop:
        ended = int(stop.code or 0)
    assert (ended, says in capsys.readouterr().err) == (code, True)
    assert not (lab.config.state_dir / "credential.json").exists()
