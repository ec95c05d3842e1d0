"""A release of several files on its way from two release managers to a device, and back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from device_agent import agent, check_in
from device_agent.config import Config, Limits
from service.signing.keys import OnlineKeys, Publisher
from tests.release_manager.town import Town
from tests.service.world import digest

ALL = [{"share_bp": 10_000}]
TOKENS, LM = b"the tokens of r2", b"a language model" * 5_000


@pytest.mark.attack("M38", "M49")
def test_a_release_of_several_files_goes_to_a_device_and_back_and_waits_for_a_newer_agent(
    the_town: Town, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    town, world = the_town, the_town.world
    town.found()
    town.add_model()
    root = town.anne.folder / "root.json"
    world.publisher = Publisher(OnlineKeys.load(town.publisher.folder), root.read_bytes())
    tokens, lm = tmp_path / "tokens", tmp_path / "lm"
    tokens.write_bytes(TOKENS)
    lm.write_bytes(LM)
    beside = ["--component", f"tokenizer.json={tokens}", "--component", f"lm.bin={lm}"]
    town.publish("release", "publish", "asr", "r1", files[0])
    patches = [tmp_path / "p12.ndiff", tmp_path / "p13.ndiff"]
    for target, patch in zip(files[1:3], patches, strict=True):
        assert town.anne.run("diff", "make", files[0], target, "-o", patch) == 0, town.anne.err
    town.publish("release", "publish", "asr", "r2", files[1], *beside, "--patch", patches[0])
    newer: list[str | Path] = [*beside[:2], "--min-agent", "9.0.0", "--patch", patches[1]]
    town.publish("release", "publish", "asr", "r3", files[2], *newer)

    token = world.ok("POST", "/v1/enrollment-tokens", json={"model": "asr"})["token"]
    config = Config(
        server=town.address,
        model="asr",
        serial="s1",
        hardware="h1",
        state_dir=tmp_path / "state",
        root=root,
        limits=Limits(start_spread_s=0.0),
    )
    agent.enroll(config, token, files[0])
    runs = device_of(town, config)
    assert runs() == (digest(files[0].read_bytes()), {})

    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": "asr", "filter": {}})
    rollout = world.start_rollout("r2", "all", stages=ALL)
    whole = digest(files[1].read_bytes()), {"lm.bin": LM, "tokenizer.json": TOKENS}
    assert runs() == whole
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["stages"][0]["confirmed"] == 1
    world.ok("POST", f"/v1/rollouts/{rollout}/halt")
    assert runs() == (digest(files[0].read_bytes()), {})

    world.start_rollout("r3", "all", stages=ALL)
    assert runs() == (digest(files[0].read_bytes()), {})
    for module in (agent, check_in):
        monkeypatch.setattr(module, "AGENT_VERSION", "9.0.0")
    assert runs() == (digest(files[2].read_bytes()), {"tokenizer.json": TOKENS})


def device_of(town: Town, config: Config) -> Callable[[], tuple[str, dict[str, bytes]]]:
    def runs() -> tuple[str, dict[str, bytes]]:
        """What the device runs, after all that it is told now."""
        for _ in range(3):
            with agent.open_device(config) as device:
                agent.run_once(device)
            town.world.tick()
        current = config.state_dir / "current"
        found = {file.name: file.read_bytes() for file in (current / "components").glob("*")}
        return digest((current / "model").read_bytes()), found

    return runs
