import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from release_manager import __main__, client, rollouts
from service.db.migrate import migrate
from tests.release_manager.desk import Desk
from tests.release_manager.fake_server import TOKEN, FakeServer
from tests.release_manager.town import Town, town


@pytest.fixture(scope="session", autouse=True)
def one_parser() -> Iterator[None]:
    """The parser of all commands, which a process makes once, took half the time of these tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(__main__, "build_parser", cache(__main__.build_parser))
        yield


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
def published(ready: Desk, files: list[Path]) -> Desk:
    """A desk whose model `asr` has the release r1 = files[0]."""
    assert ready.run("release", "publish", "asr", "r1", files[0]) == 0, ready.err
    return ready


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A town as it grows, kept stage by stage; each test opens a copy of one."""
    home, kept = tmp_path_factory.mktemp("town"), {}

    def keep(name: str) -> None:
        kept[name] = shutil.copytree(home, tmp_path_factory.mktemp("stages") / name)

    migrate(f"sqlite:///{home / 'fleetdiff.db'}")
    keep("empty")
    files = model_files(tmp_path_factory.mktemp("models"))
    with town(home) as made:
        made.found()
        made.add_model()
        staged = made.anne.json("release", "publish", "asr", "r1", files[0])
        assert (staged["published"], staged["staged"]["missing"]) == (False, 2)
    keep("staged")
    with town(home) as made:
        made.ben.sign("family-asr")
        made.carl.sign("family-asr")
        made.publish("release", "publish", "asr", "r2", files[1])
    keep("published")
    return kept


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing that a town's people type comes from outside; returns where the town may lie."""
    for name in ("SERVER", "TOKEN", "KEYS", "PASSPHRASE"):
        monkeypatch.delenv(f"FLEETDIFF_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.0)
    return tmp_path / "town"


@pytest.fixture
def the_town(stages: dict[str, Path], quiet: Path) -> Iterator[Town]:
    """A server without a root, and three people who have nothing yet."""
    with town(shutil.copytree(stages["empty"], quiet)) as made:
        yield made


@pytest.fixture
def team(stages: dict[str, Path], quiet: Path) -> Iterator[Town]:
    """A town with a root, the model `asr`, and r1 = files[0] staged by Anne."""
    with town(shutil.copytree(stages["staged"], quiet)) as made:
        yield made


@pytest.fixture
def both(stages: dict[str, Path], quiet: Path) -> Iterator[Town]:
    """A town with the releases r1 and r2, published."""
    with town(shutil.copytree(stages["published"], quiet)) as made:
        yield made


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four model files, each a little different from the one before."""
    return model_files(tmp_path)


def model_files(folder: Path) -> list[Path]:
    noise = np.random.default_rng(7)
    codes = noise.integers(-128, 128, 20_000, np.int8)
    made = []
    for number in range(1, 5):
        path = folder / f"m{number}.safetensors"
        header = json.dumps({"w": {"dtype": "I8", "shape": [20_000], "data_offsets": [0, 20_000]}})
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + codes.tobytes())
        made.append(path)
        codes = codes.copy()
        codes[noise.integers(0, 20_000, 200)] += 1
    return made
