"""Resuming: what a power cut left is used as far as it is right, and no further."""

import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neural_diff import difference, stream
from neural_diff.apply import apply
from neural_diff.make import make_patch
from neural_diff.packed import Encoded
from neural_diff.patch import read_patch
from neural_diff.region import Region
from tests.unit.patch_files import put_together, save_safetensors, take_apart
from tests.unit.ways import ALL_WAYS, KINDS, changed, drafted, raws, said, with_raws

CUT = """
import os, sys
from pathlib import Path
from neural_diff import stream
from neural_diff.apply import apply
stream.PIECE_BYTES = 256
def cut(done, total):
    if done >= int(sys.argv[4]):
        os._exit(9)
apply(Path(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3]), progress=cut)
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """A base, a target and a patch of many sections between them."""
    monkeypatch.setattr(difference, "_SECTION_CHANGES", 100)
    monkeypatch.setattr(difference, "RUN_GRAIN", 1)
    base, target, patch = (tmp_path / name for name in ("base", "target", "patch"))
    rng = np.random.default_rng(5)
    old = rng.integers(-127, 128, 1 << 16, np.int8)
    new = np.where(rng.random(old.size) < 0.05, old + 3, old).astype(np.int8)
    save_safetensors(base, {"w": ("I8", old)})
    save_safetensors(target, {"w": ("I8", new)})
    assert len(make_patch(base, target, patch).sections) > 20
    return base, target, patch


def left_by_a_power_cut(base: Path, patch: Path, target: Path, at: int) -> Path:
    """Ends a run at a byte of the new file; gives what it leaves."""
    arguments = [sys.executable, "-c", CUT, base, patch, target, str(at)]
    ended = subprocess.run(arguments, check=False)
    assert ended.returncode == 9
    (part,) = target.parent.glob(".new.*.part")
    return part


def decoded_sections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records which sections are decoded from now on."""
    seen: list[int] = []
    decode = stream.Changes._decode

    def record(self: stream.Changes, section: object) -> object:
        seen.append(self._patch.sections.index(section))  # type: ignore[arg-type]
        return decode(self, section)  # type: ignore[arg-type]

    monkeypatch.setattr(stream.Changes, "_decode", record)
    return seen


def test_a_run_goes_on_from_the_last_section_that_is_right(
    files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, target, patch = files
    new = base.parent / "new"
    left_by_a_power_cut(base, patch, new, 50_000)
    seen = decoded_sections(monkeypatch)
    apply(base, [patch], new)
    assert new.read_bytes() == target.read_bytes()
    assert seen[0] > 10
    assert not list(base.parent.glob("*.part"))


@pytest.mark.parametrize("spoilt", [0, 9_000, 40_000])
def test_what_is_not_right_is_made_again(
    spoilt: int, files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, target, patch = files
    new = base.parent / "new"
    part = left_by_a_power_cut(base, patch, new, 50_000)
    held = bytearray(part.read_bytes())
    held[min(spoilt, len(held) - 1)] ^= 1
    part.write_bytes(held)
    seen = decoded_sections(monkeypatch)
    apply(base, [patch], new)
    assert new.read_bytes() == target.read_bytes()
    with patch.open("rb") as file:
        made = read_patch(file, patch.stat().st_size)
    start = made.regions[0].file_offset
    spoilt_section = sum(start + section.end <= spoilt for section in made.sections)
    assert seen[0] <= spoilt_section


def test_a_part_longer_than_the_file_does_no_harm(files: tuple[Path, Path, Path]) -> None:
    base, target, patch = files
    new = base.parent / "new"
    part = left_by_a_power_cut(base, patch, new, 30_000)
    part.write_bytes(target.read_bytes() + b"more")
    apply(base, [patch], new)
    assert new.read_bytes() == target.read_bytes()


def test_a_resumed_run_still_refuses_another_base(files: tuple[Path, Path, Path]) -> None:
    base, _, patch = files
    new = base.parent / "new"
    left_by_a_power_cut(base, patch, new, 50_000)
    wrong = bytearray(base.read_bytes())
    wrong[300] ^= 1
    base.write_bytes(wrong)
    with pytest.raises(Exception, match="SHA-256"):
        apply(base, [patch], new)
    assert not new.exists()


def test_what_progress_raises_cancels_and_leaves_nothing(files: tuple[Path, Path, Path]) -> None:
    base, _, patch = files
    before = sorted(base.parent.iterdir())

    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(base, [patch], base.parent / "new", progress=cancel)
    assert sorted(base.parent.iterdir()) == before


@pytest.mark.parametrize("at", [9_000, 20_000])
def test_a_section_with_a_digest_of_its_own_is_not_begun_in_its_middle(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such digests are of the first kernel; the section beside it says where a run may go on."""
    monkeypatch.setattr(stream, "PIECE_BYTES", 256)
    region, old = Region("w", 0, 1 << 15, 8, "int", lo=-128, hi=127), bytes(1 << 15)
    new = bytes([1]) + bytes(254) + bytes([2]) + bytes((1 << 15) - 256)
    sections = [
        (region, 0, 1 << 15, one_way("gaps", region, old, new[:1] + bytes((1 << 15) - 1))),
        (region, 0, 256, one_way("set gaps", region, old[:256], bytes(255) + bytes([2]))),
    ]
    manifest, payloads = take_apart(drafted(sections, old, new))
    del manifest["sections"][0]["prefix_sha256"]
    manifest["sections"][0]["result_sha256"] = sha256(new[:1] + bytes((1 << 15) - 1)).hexdigest()
    base, patch, target = (tmp_path / name for name in ("base", "patch", "new"))
    base.write_bytes(old)
    patch.write_bytes(put_together(manifest, payloads))
    left_by_a_power_cut(base, patch, target, at)
    apply(base, [patch], target)
    assert target.read_bytes() == new


def one_way(way: str, region: Region, old: bytes, new: bytes) -> Encoded:
    return said(way, region, np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8))


@pytest.mark.attack("D19")
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 16, 72, 1000]), st.booleans())
def test_d19_a_run_goes_on_from_whatever_was_left(seed: int, pieces: int, numpy: bool) -> None:
    rng = np.random.default_rng(seed)
    kind, width = KINDS[rng.integers(len(KINDS))]
    region, old = Region("w", 3, 240, width, kind), rng.bytes(1000)
    before = raws(region, old)
    after = changed(rng, before, width, 0.2, "anywhere", True)
    sections = [
        (region, start, 40, said(str(rng.choice(ALL_WAYS)), region, before[part], after[part], 5))
        for start in range(0, 240, 40)
        if (before[part := slice(start, start + 40)] != after[part]).any()
    ]
    new = with_raws(region, old, after)
    left = bytearray(new[: rng.integers(1001)] + rng.bytes(int(rng.integers(3)) * 40))
    if left and rng.random() < 0.3:
        left[rng.integers(len(left))] ^= 1
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream, "PIECE_BYTES", pieces)
        patched.setattr(stream, "NUMPY", numpy)
        base, patch, target = (Path(name) / part for part in ("base", "patch", "new"))
        base.write_bytes(old)
        patch.write_bytes(drafted(sections, old, new))
        (Path(name) / f".new.{sha256(new).hexdigest()[:16]}.part").write_bytes(left)
        apply(base, [patch], target)
        assert target.read_bytes() == new
        assert not list(Path(name).glob("*.part"))
