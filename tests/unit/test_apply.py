"""Applying: the target appears whole and right, or nothing changes at all."""

import errno
import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from neural_diff import apply as applying
from neural_diff import stream
from neural_diff.apply import apply
from neural_diff.errors import Corrupt, Malformed, NeuralDiffError, WrongBase
from neural_diff.make import make_patch
from tests.unit.patch_files import everything_in, put_together, sample, take_apart

KINDS = ["sparse", "hashed", "exact"]


@pytest.fixture(params=[True, False], ids=["numpy", "standard library"])
def both_decoders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "NUMPY", request.param)


def refused(error: type[Exception], base: Path, patches: list[Path], room: Path) -> str:
    """Applies in vain; gives the message, having seen that nothing changed."""
    before = everything_in(room)
    with pytest.raises(error) as raised:
        apply(base, patches, room / "target")
    assert everything_in(room) == before
    return str(raised.value)


@pytest.mark.usefixtures("both_decoders")
@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_gives_the_target_and_nothing_else(kind: str, tmp_path: Path) -> None:
    base, target, patch = sample(kind, tmp_path)
    room = tmp_path / "room"
    room.mkdir()
    done: list[tuple[int, int]] = []
    applied = apply(base, [patch], room / "new", progress=lambda *step: done.append(step))
    assert everything_in(room) == {"new": target.read_bytes()}
    assert applied.size == target.stat().st_size
    assert applied.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert done[-1][0] == done[-1][1] > 0


@pytest.mark.attack("D19")
@pytest.mark.parametrize("kind", KINDS)
def test_d19_applying_twice_gives_the_same_and_replaces_the_target(
    kind: str, tmp_path: Path
) -> None:
    base, target, patch = sample(kind, tmp_path)
    wanted = target.read_bytes()
    target.write_bytes(b"an older model")
    for _ in range(2):
        apply(base, [patch], target)
        assert target.read_bytes() == wanted


@pytest.mark.attack("D21")
def test_d21_who_has_the_old_target_open_keeps_it(tmp_path: Path) -> None:
    base, target, patch = sample("sparse", tmp_path)
    target.write_bytes(b"an older model")
    with target.open("rb") as running:
        apply(base, [patch], target)
        assert running.read() == b"an older model"


@pytest.mark.usefixtures("both_decoders")
def test_a_chain_of_three_is_applied_link_by_link(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    versions, patches = [tmp_path / "v0"], []
    versions[0].write_bytes(rng.bytes(3000))
    for number, size in enumerate((3000, 5000, 1000), 1):
        versions.append(tmp_path / f"v{number}")
        old = versions[-2].read_bytes()
        versions[-1].write_bytes((old[:900] + rng.bytes(size))[:size])
        patches.append(tmp_path / f"patch{number}")
        make_patch(versions[-2], versions[-1], patches[-1])
    done: list[tuple[int, int]] = []
    apply(versions[0], patches, tmp_path / "new", progress=lambda *step: done.append(step))
    assert (tmp_path / "new").read_bytes() == versions[3].read_bytes()
    assert done == sorted(done)
    assert done[-1] == (9000, 9000)
    assert "patch before it" in refused(WrongBase, versions[0], patches[::2], tmp_path)
    assert refused(WrongBase, versions[1], patches, tmp_path)


def test_an_empty_chain_is_refused(tmp_path: Path) -> None:
    assert "no patch" in refused(Malformed, sample("exact", tmp_path)[0], [], tmp_path)


@pytest.mark.attack("D14")
@pytest.mark.parametrize("kind", KINDS)
def test_d14_a_base_flipped_anywhere_is_the_wrong_base(kind: str, tmp_path: Path) -> None:
    base, target, patch = sample(kind, tmp_path)
    target.unlink()
    right = base.read_bytes()
    for place in range(len(right)):
        wrong = bytearray(right)
        wrong[place] ^= 1 << place % 8
        base.write_bytes(wrong)
        with pytest.raises(WrongBase, match="SHA-256"):
            apply(base, [patch], target)
    assert not target.exists()


@pytest.mark.attack("D14")
def test_d14_a_base_that_is_shorter_or_longer_is_the_wrong_base(tmp_path: Path) -> None:
    base, _, patch = sample("sparse", tmp_path)
    right = base.read_bytes()
    for wrong in (b"", right[:-1], right + b"\0"):
        base.write_bytes(wrong)
        assert "made for" in refused(WrongBase, base, [patch], tmp_path)


@pytest.mark.attack("D14")
def test_d14_a_base_that_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    base, _, patch = sample("sparse", tmp_path)
    link = tmp_path / "link"
    link.symlink_to(base)
    assert "link" in refused(WrongBase, link, [patch], tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "no regular file" in refused(WrongBase, fifo, [patch], tmp_path)
    assert "no regular file" in refused(WrongBase, Path("/dev/zero"), [patch], tmp_path)
    assert "no regular file" in refused(WrongBase, tmp_path, [patch], tmp_path)
    assert "no regular file" in refused(Malformed, base, [fifo], tmp_path)


def test_a_base_or_patch_that_is_missing_stays_an_error_of_the_system(tmp_path: Path) -> None:
    base, _, patch = sample("sparse", tmp_path)
    refused(FileNotFoundError, tmp_path / "gone", [patch], tmp_path)
    refused(FileNotFoundError, base, [tmp_path / "gone"], tmp_path)


@pytest.mark.attack("D20")
def test_d20_a_base_replaced_while_it_is_read_is_not_read(tmp_path: Path) -> None:
    base, target, patch = sample("sparse", tmp_path)
    wanted, other = target.read_bytes(), tmp_path / "other"
    other.write_bytes(bytes(base.stat().st_size))
    apply(base, [patch], target, progress=lambda *_: other.exists() and other.replace(base))
    assert target.read_bytes() == wanted


@pytest.mark.attack("D20")
def test_d20_what_is_hashed_is_what_is_used(tmp_path: Path) -> None:
    base, target, patch = sample("sparse", tmp_path)
    target.unlink()
    right = base.read_bytes()

    def spoil(*_: int) -> None:
        base.write_bytes(bytes(len(right)))

    with pytest.MonkeyPatch.context() as patched, pytest.raises(WrongBase):
        patched.setattr(stream, "PIECE_BYTES", 16)
        patched.setattr(applying, "open_regular", unbuffered)
        apply(base, [patch], target, progress=spoil)
    assert sorted(everything_in(tmp_path)) == ["base", "patch"]


def unbuffered(path: Path, error: type[Exception]) -> object:
    return path.open("rb", buffering=0)


@pytest.mark.attack("D16")
@pytest.mark.usefixtures("both_decoders")
@pytest.mark.parametrize("kind", KINDS)
def test_d16_another_digest_of_the_result_is_corrupt(kind: str, tmp_path: Path) -> None:
    base, _, patch = sample(kind, tmp_path)
    file = patch.read_bytes()
    manifest, payloads = take_apart(file)
    digest = manifest["to"]["sha256"]
    manifest["to"]["sha256"] = ("1" if digest[0] == "0" else "0") + digest[1:]
    patch.write_bytes(put_together(manifest, payloads))
    assert "promises" in refused(Corrupt, base, [patch], tmp_path)
    manifest, payloads = take_apart(file)
    manifest["sections"][-1]["prefix_sha256"] = "0" * 64
    patch.write_bytes(put_together(manifest, payloads))
    assert "does not lead to" in refused(Corrupt, base, [patch], tmp_path)


@pytest.mark.attack("D15")
def test_d15_a_disk_too_small_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _, patch = sample("sparse", tmp_path)
    disk = SimpleNamespace(f_bavail=1, f_frsize=100)
    monkeypatch.setattr(applying.os, "statvfs", lambda _: disk)
    monkeypatch.setattr(applying, "_new_file", None)
    assert str(errno.ENOSPC) in refused(OSError, base, [patch], tmp_path)


@pytest.mark.attack("D15")
@pytest.mark.parametrize("room_bytes", [0, 1 << 20, (3 << 20) - 1])
def test_d15_a_disk_full_in_the_middle_leaves_nothing(room_bytes: int, tmp_path: Path) -> None:
    base, target, patch = (tmp_path / name for name in ("base", "target", "patch"))
    base.write_bytes(bytes(2 << 20))
    target.write_bytes(os.urandom(3 << 20))
    make_patch(base, target, patch)
    target.write_bytes(b"an older model")
    before = everything_in(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            apply(base, [patch], target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("step", ["fsync", "fchmod"])
def test_a_failing_disk_leaves_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _, patch = sample("sparse", tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(applying.os, step, fail)
    refused(OSError, base, [patch], tmp_path)


def test_the_result_is_on_the_disk_before_it_takes_the_targets_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, target, patch = sample("sparse", tmp_path)
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(applying.os, "fsync", lambda fd: (steps.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (steps.append(f"replace {to.name}"), replace(self, to))[1]
    )
    apply(base, [patch], target)
    assert steps == ["fsync", "replace target", "fsync"]


def test_a_broken_patch_names_its_file_and_section(tmp_path: Path) -> None:
    base, _, patch = sample("sparse", tmp_path)
    patch.write_bytes(patch.read_bytes()[:-1] + b"\xff")
    said = refused(Corrupt, base, [patch], tmp_path)
    assert str(patch) in said
    assert "section" in said
    patch.write_bytes(b"PK\3\4" * 40)
    assert str(patch) in refused(NeuralDiffError, base, [patch], tmp_path)


def test_the_applier_side_runs_without_numpy(tmp_path: Path) -> None:
    base, target, patch = sample("hashed", tmp_path)
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "import neural_diff, neural_diff.errors, neural_diff.patch, neural_diff.codec\n"
        "import neural_diff.view, neural_diff.hashed, neural_diff.decode\n"
        "from pathlib import Path; from neural_diff.apply import apply\n"
        "from neural_diff.stream import NUMPY\n"
        "assert NUMPY is False\n"
        "apply(Path(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3]))\n"
        "loaded = {name for name in sys.modules if name.startswith('neural_diff.')}\n"
        "maker = {'make', 'layout', 'encode', 'draft', 'difference', 'describe'}\n"
        "assert not loaded & {f'neural_diff.{name}' for name in maker}, loaded\n"
    )
    new = tmp_path / "new"
    subprocess.run([sys.executable, "-c", program, base, patch, new], check=True)
    assert new.read_bytes() == target.read_bytes()


@pytest.mark.attack("D19")
@pytest.mark.parametrize("cut", ["os.fchmod", "os.fsync", "Path.replace"])
def test_d19_a_power_cut_leaves_the_old_target_and_the_next_try_succeeds(
    cut: str, tmp_path: Path
) -> None:
    base, target, patch = sample("sparse", tmp_path)
    wanted = target.read_bytes()
    target.write_bytes(b"an older model")
    program = (
        "import os, sys; from pathlib import Path; from neural_diff.apply import apply\n"
        f"{cut} = lambda *_: os._exit(9)\n"
        "apply(Path(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, base, patch, target], check=False)
    assert ended.returncode == 9
    assert target.read_bytes() == b"an older model"
    assert len(list(tmp_path.glob(".target.*.part"))) == 1
    apply(base, [patch], target)
    assert target.read_bytes() == wanted
    assert not list(tmp_path.glob(".target.*.part"))
