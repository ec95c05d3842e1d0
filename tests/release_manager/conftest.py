import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from release_manager import client, rollouts
from tests.release_manager.desk import Desk
from tests.release_manager.fake_server import TOKEN, FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def desk(
    server: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Desk]:
    """A desk whose server, token and keys come from the environment; nothing waits."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("FLEETDIFF_SERVER", server.address)
    monkeypatch.setenv("FLEETDIFF_TOKEN", TOKEN)
    monkeypatch.setenv("FLEETDIFF_KEYS", str(tmp_path / "keys"))
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(rollouts, "PAUSE_S", 0.0)
    sitting = Desk(server, tmp_path / "keys", capsys)
    yield sitting
    assert TOKEN not in sitting.everything, "the token was printed"
    assert "s3cr3t" not in sitting.everything


@pytest.fixture
def ready(desk: Desk) -> Desk:
    """A desk with keys, a root on the server, and the model `asr`."""
    assert desk.run("init", "--dev") == 0, desk.err
    assert desk.run("model", "create", "asr") == 0, desk.err
    return desk


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four model files, each a little different from the one before."""
    noise = np.random.default_rng(7)
    codes = noise.integers(-128, 128, 20_000, np.int8)
    made = []
    for number in range(1, 5):
        path = tmp_path / f"m{number}.safetensors"
        header = json.dumps({"w": {"dtype": "I8", "shape": [20_000], "data_offsets": [0, 20_000]}})
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + codes.tobytes())
        made.append(path)
        codes = codes.copy()
        codes[noise.integers(0, 20_000, 200)] += 1
    return made
