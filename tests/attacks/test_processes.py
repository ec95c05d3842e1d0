"""Attacks on what an agent keeps: kills, lost or read-only state, a second agent."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root

from device_agent import agent
from device_agent.__main__ import main
from device_agent.errors import Misconfigured
from device_agent.journal import Journal
from tests.agent.conftest import Lab
from tests.agent.hostile import installed
from tests.attacks.forgeries import spoil, stamp

AGENT = [sys.executable, "-m", "device_agent"]


@contextmanager
def as_nobody() -> Iterator[None]:
    """What file modes forbid is forbidden to anybody but root, so be somebody else for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def give_away(folder: Path) -> None:
    """Let nobody own a device's folder, and reach it."""
    if os.geteuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, 65534, 65534, follow_symlinks=False)
    for above in (folder, *folder.parents):
        if above.stat().st_uid in (os.geteuid(), 65534):
            above.chmod(above.stat().st_mode | 0o055)


@pytest.mark.attack("M45")
def test_m45_an_agent_killed_at_any_moment_keeps_a_whole_model_and_its_floors(
    lab: Lab, toml: Path
) -> None:
    lab.server.make_patch("r1", "r2")
    lab.server.offer("r2", [lab.server.patch("r1", "r2")])
    command = [*AGENT, "once", "--config", str(toml)]
    floors, lives = Journal(lab.config.state_dir).memory.floors, 0
    while lab.release_running() == "r1":
        lives += 1
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(0.1 * 1.25**lives)
            except subprocess.TimeoutExpired:
                process.kill()
        kept = Journal(lab.config.state_dir).memory.floors
        assert kept.order_seq >= floors.order_seq and kept.time >= floors.time
        for role, floor in floors.versions.items():
            assert kept.versions[role] >= floor
        floors = kept
    assert lives > 1
    lab.once()
    assert (lab.once(), lab.release_running()) == (None, "r2")
    assert lab.server.event_kinds().count("committed") == 1


@pytest.mark.attack("M45")
@pytest.mark.parametrize("size", [0, 100])
def test_m45_any_file_that_a_kill_tore_is_healed_or_said(lab: Lab, size: int) -> None:
    assert lab.once() is None
    state = lab.config.state_dir
    for file in sorted(state.rglob("*.json")):
        if file.name == agent.CREDENTIAL:
            continue
        lab.reborn()
        lab.server.order = lab.server.plan = None
        assert lab.once() is None
        file.write_bytes(file.read_bytes()[:size])
        lab.server.offer("r2")
        ends = [end.kind for end in (lab.once(), lab.once()) if end]
        assert ends in (["committed"], ["refused", "committed"]), (file, ends)


@pytest.mark.attack("M12")
@pytest.mark.parametrize("lost", ["both", "the newer one, and the older is torn"])
def test_m12_a_device_that_lost_its_floors_stops_until_it_is_a_new_device(
    lab: Lab, toml: Path, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    old, state = dict(lab.server.files), lab.config.state_dir
    lab.server.publish("r3")
    assert lab.once() is None
    newer = max((state / "journal.0", state / "journal.1"), key=lambda file: file.stat().st_mtime)
    for file in (state / "journal.0", state / "journal.1"):
        if lost == "both" or file == newer:
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-1])
    lab.server.files = old
    asked = len(lab.server.asked)
    assert main(["once", "--config", str(toml)]) == 2
    assert "lost its journal; revoke the device" in capsys.readouterr().err
    assert (len(lab.server.asked), lab.release_running()) == (asked, "r2")
    shutil.rmtree(state)  # as told; to the server it is a new device, and it can see that
    agent.enroll(lab.config, "token", lab.folder / "factory.model")
    assert lab.server.asked[-1].path.endswith("enroll")
    lab.server.order = lab.server.plan = None
    assert lab.once() is None  # The old metadata is good enough for a new device,
    lab.server.offer("r2")
    assert lab.once().reason == "E_FREEZE"  # but not for any order that was signed since.
    lab.server.sign_all()
    assert lab.once().kind == "committed"


@pytest.mark.attack("M12", "M22")
def test_m12_a_new_identity_obeys_its_own_orders_and_keeps_what_metadata_it_saw(lab: Lab) -> None:
    lab.server.seq = 41
    lab.server.offer("r2", hold=True)
    assert lab.once() is None
    (lab.config.state_dir / agent.CREDENTIAL).unlink()
    agent.enroll(lab.config, "token", lab.folder / "factory.model")
    kept = Journal(lab.config.state_dir).memory.floors
    assert (kept.order_seq, kept.versions["timestamp"][1]) == (0, 2)
    lab.server.seq = 0
    lab.server.offer("r2")
    assert lab.once().kind == "committed"


@pytest.mark.attack("M46")
@pytest.mark.parametrize("command", ["once", "enroll --token token"])
def test_m46_a_state_folder_that_is_read_only_is_said_at_the_start(
    lab: Lab, toml: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = lab.config.state_dir
    if command != "once":
        (state / agent.CREDENTIAL).unlink()
    give_away(lab.folder)
    state.chmod(0o555)
    asked = len(lab.server.asked)
    with as_nobody():
        assert main([*command.split(), "--config", str(toml)]) == 2
    assert f"{state} cannot hold state: Permission denied: it must be" in capsys.readouterr().err
    assert len(lab.server.asked) == asked
    state.chmod(0o755)
    lab.server.offer("r2")
    with as_nobody():
        assert main([*command.split(), "--config", str(toml)]) == 0


@pytest.mark.attack("M46")
def test_m46_a_file_system_without_links_is_said_at_the_start(
    lab: Lab, toml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.server.offer("r2")

    def refuse(*values: Any, **more: Any) -> None:
        raise PermissionError(1, "Operation not permitted")  # as vfat does

    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", refuse)
        assert main(["once", "--config", str(toml)]) == 2
        assert main(["run", "--config", str(toml)]) == 2
    assert "its file system know symbolic links" in capsys.readouterr().err
    assert lab.release_running() == "r1"
    assert lab.once().kind == "committed"


@pytest.mark.attack("M46")
def test_m46_a_disk_that_is_full_at_the_start_is_no_misconfiguration(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*values: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", full)
        with pytest.raises(OSError, match="No space"):
            lab.once()
    lab.server.offer("r2")
    assert lab.once().kind == "committed"


@pytest.mark.attack("M47")
def test_m47_a_second_agent_of_a_folder_leaves_and_changes_nothing(lab: Lab, toml: Path) -> None:
    words = ["--config", str(toml)]
    with subprocess.Popen([*AGENT, "run", *words], stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        lab.server.offer("r2")
        said = next(line for line in first.stderr if "committed" in json.loads(line)["says"])
        before = Journal(lab.config.state_dir).memory
        for command in ("once", "run", "rollback"):
            second = subprocess.run(
                [*AGENT, command, *words], capture_output=True, text=True, check=False
            )
            assert second.returncode == 75, second
            assert "another agent works in" in second.stderr
        kept = Journal(lab.config.state_dir).memory
        assert said and (kept.good, kept.floors) == (before.good, before.floors)
        first.send_signal(signal.SIGTERM)
        assert first.wait(10) == 0
    assert lab.release_running() == "r2"
    assert lab.once() is None


PURE = """
import sys
sys.modules["cryptography"] = None
from device_agent.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.attack("M48")
def test_m48_a_device_without_cryptography_stays_where_a_key_cannot_be_verified(
    lab: Lab, toml: Path
) -> None:
    def once() -> tuple[int, str]:
        words = [sys.executable, "-c", PURE, "once", "--json", "--config", str(toml)]
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        return ended.returncode, json.loads(ended.stdout)["reason"]

    server, ecdsa = lab.server, CryptoSigner.generate_ecdsa()
    assert once() == (0, "")
    honest = dict(server.files), server.documents["root"]

    def use_ecdsa(root: Root) -> None:
        root.keys[ecdsa.public_key.keyid] = ecdsa.public_key
        root.roles["timestamp"].keyids = [ecdsa.public_key.keyid]

    spoil("root", use_ecdsa)(lab)
    stamp(server, ecdsa)
    before = installed(lab)
    assert once() == (1, "E_SIG")
    assert installed(lab) == before
    server.files, server.documents["root"] = honest
    server.sign_all()
    server.offer("r2")
    assert once() == (0, "")
    assert lab.release_running() == "r2"


def test_a_folder_that_was_never_enrolled_is_not_taken_for_a_lost_one(lab: Lab) -> None:
    shutil.rmtree(lab.config.state_dir)
    with pytest.raises(Misconfigured, match="not enrolled"), lab.device():
        pass
