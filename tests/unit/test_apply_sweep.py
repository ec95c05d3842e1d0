"""Sweeping: what a power cut left of a run for the same target goes, and nothing else."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from neural_diff import apply as applying
from neural_diff.apply import apply
from neural_diff.errors import WrongBase
from tests.unit.patch_files import everything_in, sample

NOT_OURS = [
    ".target.0123456789abcdef.part.old",
    ".target.0123456789ABCDEF.part",
    ".target.0123456789abcde.part",
    ".target2.0123456789abcdef.part",
    ".target.part",
    ".base.0123456789abcdef.part",
    "target.0123456789abcdef.part",
]


def test_only_what_a_run_for_the_same_target_left_is_swept(tmp_path: Path) -> None:
    base, target, patch = sample("sparse", tmp_path)
    for name in [*NOT_OURS, ".target.0123456789abcdef.part"]:
        (tmp_path / name).write_bytes(b"half a model")
    (tmp_path / ".target.aaaaaaaaaaaaaaaa.part").mkdir()
    (tmp_path / ".target.bbbbbbbbbbbbbbbb.part").symlink_to(base)
    apply(base, [patch], target)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"base", "target", "patch", *NOT_OURS} | {
        ".target.aaaaaaaaaaaaaaaa.part",
        ".target.bbbbbbbbbbbbbbbb.part",
    }


def test_what_is_left_of_a_name_with_signs_of_a_pattern_is_swept_and_no_more(
    tmp_path: Path,
) -> None:
    base, _, patch = sample("sparse", tmp_path)
    for name in ("a+(b.bin", "aa(bxbin"):
        (tmp_path / f".{name}.0123456789abcdef.part").write_bytes(b"half a model")
    apply(base, [patch], tmp_path / "a+(b.bin")
    assert [path.name for path in tmp_path.glob("*.part")] == [".aa(bxbin.0123456789abcdef.part"]


def test_a_run_that_is_refused_sweeps_nothing(tmp_path: Path) -> None:
    base, target, patch = sample("sparse", tmp_path)
    (tmp_path / ".target.0123456789abcdef.part").write_bytes(b"half a model")
    base.write_bytes(base.read_bytes()[:-1])
    before = everything_in(tmp_path)
    with pytest.raises(WrongBase):
        apply(base, [patch], target)
    assert everything_in(tmp_path) == before


def test_what_is_left_is_swept_before_the_room_on_the_disk_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, target, patch = sample("sparse", tmp_path)
    left = tmp_path / ".target.0123456789abcdef.part"
    left.write_bytes(b"half a model")
    monkeypatch.setattr(
        applying.os,
        "statvfs",
        lambda _: SimpleNamespace(f_bavail=0 if left.exists() else 1 << 20, f_frsize=1),
    )
    apply(base, [patch], target)


def test_a_run_that_still_goes_on_is_not_swept(tmp_path: Path) -> None:
    base, target, patch = sample("sparse", tmp_path)
    wanted = target.read_bytes()

    def run_another(*_: int) -> None:
        if target.exists():
            target.unlink()
            apply(base, [patch], target)
            assert target.read_bytes() == wanted

    apply(base, [patch], target, progress=run_another)
    assert target.read_bytes() == wanted
    assert not list(tmp_path.glob(".target.*.part"))
