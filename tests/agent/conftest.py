"""A server double, a device that was born with release r1, and release r2 on offer."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from device_agent import agent
from device_agent.config import Config, Limits
from device_agent.device import LocalDevice
from tests.agent.server_double import ENGINE, MODEL, ServerDouble, digest, honest_or_not

MEMORY = Path("/dev/shm")
FAST = Limits(start_spread_s=0.0, silence_s_max=5.0, request_s_max=5.0, rate_window_s=0.2)


@dataclass
class Lab:
    """A device and the server it talks to."""

    server: ServerDouble
    config: Config
    folder: Path

    @contextmanager
    def device(self) -> Iterator[LocalDevice]:
        with agent.open_device(self.config, self.clock) as device:
            yield device

    def clock(self) -> datetime:
        return self.server.now

    def once(self) -> Any:
        """One round of a fresh agent process; the outcome, or None."""
        with self.device() as device:
            return agent.run_once(device)

    def reborn(self) -> None:
        """Take the device back to the day it was enrolled; the server forgets its reports."""
        born, state = self.folder / "born", self.config.state_dir
        if not born.exists():
            shutil.copytree(state, born, symlinks=True)
        shutil.rmtree(state)
        shutil.copytree(born, state, symlinks=True)
        for log in (self.server.events, self.server.reports, self.server.asked):
            log.clear()

    def running(self) -> bytes:
        return (self.config.state_dir / "current" / "model").read_bytes()

    def components_running(self) -> dict[str, bytes]:
        files = self.config.state_dir.glob("current/components/*")
        return {file.name: file.read_bytes() for file in files}

    def release_running(self) -> str:
        found = digest(self.running())
        return next(r.name for r in self.server.releases.values() if r.sha256 == found)


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that only look at the disk through the kernel need not wait for it."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def new_lab(no_fsync: None) -> Iterator[Callable[..., Lab]]:
    """Makes labs, in memory where the system has a folder there; they end with the test."""
    with ExitStack() as stack:
        memory = MEMORY if MEMORY.is_dir() else None
        here = Path(stack.enter_context(TemporaryDirectory(dir=memory)))

        def make(name: str = "lab", *, new_errors: int = 20, **changes: Any) -> Lab:
            folder = here / name
            folder.mkdir()
            server = ServerDouble(folder)
            server.publish("r1", errors=20)
            server.publish("r2", errors=new_errors)
            address = stack.enter_context(honest_or_not(server))
            return lab_at(folder, server, address, **changes)

        yield make


def lab_at(folder: Path, server: ServerDouble, address: str, **changes: Any) -> Lab:
    engine, root, factory = folder / "engine", folder / "root.json", folder / "factory.model"
    engine.write_text(ENGINE)
    engine.chmod(0o755)
    root.write_bytes(server.files["1.root.json"])
    factory.write_bytes(server.models["r1"])
    settings: dict[str, Any] = {
        "server": address,
        "model": MODEL,
        "serial": "s1",
        "hardware": "arm64",
        "state_dir": folder / "state",
        "root": root,
        "recogniser": ("/bin/sh", str(engine)),
        "limits": FAST,
        **changes,
    }
    config = Config(**settings)
    agent.enroll(config, "token", factory)
    return Lab(server, config, folder)


@pytest.fixture
def lab(new_lab: Callable[..., Lab]) -> Lab:
    return new_lab()


@pytest.fixture
def toml(lab: Lab) -> Path:
    """The lab's configuration, as a file."""
    path = lab.folder / "agent.toml"
    config = lab.config
    path.write_text(
        f"""
        server = "{config.server}"
        model = "{config.model}"
        serial = "{config.serial}"
        hardware = "{config.hardware}"
        state_dir = "state"
        root = "root.json"
        recogniser = {json.dumps(config.recogniser)}
        attributes = {{ region = "north" }}
        [limits]
        start_spread_s = 0
        """
    )
    return path
