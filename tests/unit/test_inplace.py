"""In place: the only copy of a model is the old one or the new one, whenever power fails."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neural_diff import stream
from neural_diff.errors import Corrupt, NeuralDiffError, Unsuitable, WrongBase
from neural_diff.inplace import applied, apply_in_place, commit, journal_of, roll_back
from neural_diff.make import make_patch
from tests.unit.patch_files import put_together, sample, save_safetensors, spell, take_apart

# Ends the process at the n-th write to, or flush of, a file.
CUT = """
import os, sys
from pathlib import Path
from neural_diff import inplace, stream
stream.PIECE_BYTES, inplace._BATCH_BYTES = 64, 128
left = int(sys.argv[3])
def counted(do):
    def step(*arguments):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return do(*arguments)
    return step
os.fsync = counted(os.fsync)
write = inplace._write
class Torn:
    def __init__(self, file):
        self.file = file
    def __getattr__(self, name):
        return getattr(self.file, name)
    def write(self, held):
        global left
        left -= 1
        if left < 0:
            self.file.write(held[: len(held) // 2])
            self.file.flush()
            os._exit(9)
        self.file.write(held)
        self.file.flush()
carry_out = inplace._carry_out
inplace._carry_out = lambda link, work, journal, progress: carry_out(
    link, Torn(work), Torn(journal), progress
)
inplace.apply_in_place(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, bytes, bytes, Path]:
    """A model to change, its old and its new bytes, and a patch."""
    base, target, patch = (tmp_path / name for name in ("model", "target", "patch"))
    rng = np.random.default_rng(5)
    old = rng.integers(-127, 128, 1000, np.int8)
    new = np.where(rng.random(old.size) < 0.1, old + 3, old).astype(np.int8)
    save_safetensors(base, {"w": ("I8", old)})
    save_safetensors(target, {"w": ("I8", new)})
    make_patch(base, target, patch)
    wanted = target.read_bytes()
    target.unlink()
    return base, base.read_bytes(), wanted, patch


@pytest.mark.parametrize("numpy", [True, False])
@pytest.mark.parametrize("kind", ["sparse", "hashed"])
def test_a_model_changes_in_place_and_back(
    kind: str, numpy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "NUMPY", numpy)
    model, target, patch = sample(kind, tmp_path)
    old, inode = model.read_bytes(), model.stat().st_ino
    apply_in_place(model, patch)
    assert model.read_bytes() == target.read_bytes()
    assert applied(model)
    roll_back(model)
    assert model.read_bytes() == old
    apply_in_place(model, patch)
    commit(model)
    assert model.read_bytes() == target.read_bytes()
    assert model.stat().st_ino == inode
    assert not journal_of(model).exists()
    roll_back(model)  # there is nothing to put back
    assert model.read_bytes() == target.read_bytes()


def test_power_fails_at_every_step_and_the_model_is_the_old_or_the_new_one(
    files: tuple[Path, bytes, bytes, Path],
) -> None:
    model, old, new, patch = files
    halfway = 0
    for step in range(200):
        ended = subprocess.run(
            [sys.executable, "-c", CUT, model, patch, str(step)], check=False, capture_output=True
        )
        if ended.returncode == 0:
            break
        assert ended.returncode == 9, ended.stderr
        halfway += model.read_bytes() not in (old, new)
        if not applied(model):
            roll_back(model)
            assert model.read_bytes() == old
            assert not journal_of(model).exists()
        else:
            assert model.read_bytes() == new
            roll_back(model)
    assert step > 20
    assert halfway > 5
    assert model.read_bytes() == new


def test_the_next_run_puts_back_what_a_power_cut_left(
    files: tuple[Path, bytes, bytes, Path],
) -> None:
    model, _, new, patch = files
    subprocess.run([sys.executable, "-c", CUT, model, patch, "12"], check=False)
    assert journal_of(model).exists()
    apply_in_place(model, patch)
    assert model.read_bytes() == new


def test_power_may_fail_while_the_old_model_is_put_back(
    files: tuple[Path, bytes, bytes, Path],
) -> None:
    model, old, _, patch = files
    subprocess.run([sys.executable, "-c", CUT, model, patch, "14"], check=False)
    journal = journal_of(model).read_bytes()
    for _ in range(2):
        journal_of(model).write_bytes(journal)
        roll_back(model)
        assert model.read_bytes() == old


def test_a_change_that_is_not_committed_bars_the_next(
    files: tuple[Path, bytes, bytes, Path],
) -> None:
    model, _, new, patch = files
    apply_in_place(model, patch)
    with pytest.raises(Unsuitable, match="not committed"):
        apply_in_place(model, patch)
    assert model.read_bytes() == new
    assert applied(model)


def test_a_change_that_was_cut_off_is_not_committed(
    files: tuple[Path, bytes, bytes, Path],
) -> None:
    model, _, _, patch = files
    subprocess.run([sys.executable, "-c", CUT, model, patch, "12"], check=False)
    with pytest.raises(Unsuitable, match="cut off"):
        commit(model)
    assert journal_of(model).exists()


def test_a_wrong_base_a_lying_digest_and_a_bad_patch_leave_the_model_as_it_was(
    files: tuple[Path, bytes, bytes, Path],
) -> None:
    model, old, new, patch = files
    manifest, payloads = take_apart(patch.read_bytes())
    for field, value in (("prefix_sha256", "0" * 64), ("payload_sha256", "0" * 64)):
        lie = manifest | {"sections": [s | {field: value} for s in manifest["sections"]]}
        liar = patch.with_name("lie")
        liar.write_bytes(put_together(spell(lie), payloads))
        with pytest.raises(Corrupt):
            apply_in_place(model, liar)
        assert (model.read_bytes(), journal_of(model).exists()) == (old, False)
    model.write_bytes(new)
    with pytest.raises(WrongBase):
        apply_in_place(model, patch)
    assert (model.read_bytes(), journal_of(model).exists()) == (new, False)


def test_a_patch_that_changes_the_length_needs_a_second_file(tmp_path: Path) -> None:
    model, _, patch = sample("exact", tmp_path)
    with pytest.raises(Unsuitable, match="second file"):
        apply_in_place(model, patch)


def test_a_spoilt_journal_says_so_and_stays(files: tuple[Path, bytes, bytes, Path]) -> None:
    model, _, _, patch = files
    apply_in_place(model, patch)
    journal = bytearray(journal_of(model).read_bytes())
    journal[-1] ^= 1
    journal_of(model).write_bytes(journal)
    with pytest.raises(Corrupt, match="undo journal"):
        roll_back(model)
    assert journal_of(model).exists()


def test_a_journal_whose_head_is_spoilt_is_not_thrown_away(
    files: tuple[Path, bytes, bytes, Path],
) -> None:
    model, _, _, patch = files
    apply_in_place(model, patch)
    journal_of(model).write_bytes(b"\0" + journal_of(model).read_bytes()[1:])
    for act in (roll_back, commit):
        with pytest.raises(Corrupt, match="no undo journal"):
            act(model)
    assert journal_of(model).exists()


def test_a_cancelled_run_puts_the_old_model_back(files: tuple[Path, bytes, bytes, Path]) -> None:
    model, old, _, patch = files

    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply_in_place(model, patch, progress=cancel)
    assert (model.read_bytes(), journal_of(model).exists()) == (old, False)


def test_a_model_that_is_a_link_is_refused(files: tuple[Path, bytes, bytes, Path]) -> None:
    model, _, _, patch = files
    link = model.with_name("link")
    link.symlink_to(model)
    with pytest.raises(NeuralDiffError):
        apply_in_place(link, patch)
