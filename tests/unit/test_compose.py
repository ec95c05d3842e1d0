"""Chains become one patch, additions go back, and what cannot says so."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neural_diff import stream
from neural_diff.apply import apply
from neural_diff.compose import invert, squash
from neural_diff.describe import describe
from neural_diff.errors import Corrupt, Unsuitable, WrongBase
from neural_diff.make import make_hashed, make_patch
from tests.unit.patch_files import everything_in, sample, save_buckets, save_safetensors


def versions(
    room: Path, count: int, density: float, seed: int = 3
) -> tuple[list[Path], list[Path]]:
    """Makes files of one model, each changed a little from the one before, and their patches."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-100, 100, (40, 64), np.int8)
    files, patches = [], []
    for number in range(count):
        scales = rng.random(40, np.float32) if number == count - 1 else np.ones(40, np.float32)
        files.append(room / f"v{number}")
        save_safetensors(files[-1], {"w": ("I8", codes), "w.scale": ("F32", scales)})
        codes = codes + (rng.random(codes.shape) < density) * rng.integers(-3, 4, codes.shape)
        codes = codes.astype(np.int8)
    for old, new in pairwise(files):
        patches.append(room / f"{old.name}_{new.name}")
        make_patch(old, new, patches[-1])
    return files, patches


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(2, 9), st.sampled_from([0.01, 0.2, 0.9]), st.integers(0, 999), st.booleans())
def test_a_chain_fused_equals_a_chain_one_by_one_equals_its_squash(
    tmp_path_factory: pytest.TempPathFactory, count: int, density: float, seed: int, numpy: bool
) -> None:
    room = tmp_path_factory.mktemp("chain")
    files, patches = versions(room, count, density, seed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream, "NUMPY", numpy)
        patched.setattr(stream, "PIECE_BYTES", 100)
        apply(files[0], patches, room / "fused")
    assert (room / "fused").read_bytes() == files[-1].read_bytes()
    squash(files[0], patches, room / "one")
    make_patch(files[0], files[-1], room / "direct")
    assert (room / "one").read_bytes() == (room / "direct").read_bytes()


def test_a_chain_of_grown_and_moved_files_is_squashed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {name: ("I8", rng.integers(-9, 9, 500, np.int8)) for name in "abc"}
    files = [save_safetensors(tmp_path / f"v{n}", tensors, {"v": "1" * 20**n}) for n in range(3)]
    patches = [tmp_path / "p0", tmp_path / "p1"]
    for patch, old, new in zip(patches, files, files[1:], strict=False):
        assert make_patch(old, new, patch).moves
    apply(files[0], patches, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == files[2].read_bytes()
    assert squash(files[0], patches, tmp_path / "one").moves


@pytest.mark.parametrize("numpy", [True, False])
def test_a_patch_of_additions_goes_back_without_its_base(
    numpy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "NUMPY", numpy)
    files, patches = versions(tmp_path, 4, 0.02)
    assert describe(patches[0])["goes_back"]
    apply(files[2], patches[:2], tmp_path / "old", back=True)
    assert (tmp_path / "old").read_bytes() == files[0].read_bytes()
    invert(files[1], patches[0], tmp_path / "undo")
    apply(files[1], [tmp_path / "undo"], tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == files[0].read_bytes()


def test_floats_go_back_through_their_ordinals(tmp_path: Path) -> None:
    old = np.random.default_rng(1).normal(size=400).astype(np.float16)
    new = old.copy()
    new.view(np.uint16)[::9] += 1
    new[5] = -new[5]
    one, two = (
        save_safetensors(tmp_path / name, {"w": ("F16", values)})
        for name, values in (("one", old), ("two", new))
    )
    make_patch(one, two, tmp_path / "patch")
    invert(two, tmp_path / "patch", tmp_path / "undo")
    apply(two, [tmp_path / "undo"], tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == one.read_bytes()


@pytest.mark.parametrize("kind", ["hashed", "exact"])
def test_a_patch_that_does_not_go_back_says_why(kind: str, tmp_path: Path) -> None:
    _, target, patch = sample(kind, tmp_path)
    before = everything_in(tmp_path)
    with pytest.raises(Unsuitable, match="does not go back"):
        invert(target, patch, tmp_path / "undo")
    assert everything_in(tmp_path) == before


def test_going_back_from_another_file_is_refused(tmp_path: Path) -> None:
    files, patches = versions(tmp_path, 3, 0.02)
    with pytest.raises(WrongBase):
        apply(files[0], patches[:1], tmp_path / "old", back=True)


def test_buckets_that_lead_elsewhere_are_corrected(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    codes = rng.integers(-127, 128, 3000, np.int8)
    base = save_safetensors(tmp_path / "base", {"w": ("I8", codes)})
    buckets = save_buckets(tmp_path / "b", {"w": rng.integers(-9, 10, 60).astype(np.int16)})
    make_hashed(base, buckets, tmp_path / "plain", tmp_path / "moved")
    wanted = bytearray((tmp_path / "moved").read_bytes())
    wanted[-1000] ^= 5
    (tmp_path / "wanted").write_bytes(wanted)
    made = make_hashed(
        base, buckets, tmp_path / "patch", tmp_path / "new", wanted=tmp_path / "wanted"
    )
    assert [section.op for section in made.sections] == ["hashed", "add"]
    apply(base, [tmp_path / "patch"], tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == bytes(wanted)
    (tmp_path / "wanted").write_bytes(wanted[:-1] + bytes([wanted[-1] ^ 1, 0]))
    with pytest.raises(Exception, match="as long as"):
        make_hashed(base, buckets, tmp_path / "p", tmp_path / "n", wanted=tmp_path / "wanted")


def test_corrections_outside_the_hashed_tensors_are_refused(tmp_path: Path) -> None:
    codes = np.zeros(300, np.int8)
    base = save_safetensors(tmp_path / "base", {"w": ("I8", codes), "x": ("I8", codes)})
    buckets = save_buckets(tmp_path / "b", {"w": np.ones(9, np.int16)})
    make_hashed(base, buckets, tmp_path / "plain", tmp_path / "moved")
    wanted = bytearray((tmp_path / "moved").read_bytes())
    wanted[-1] ^= 5
    (tmp_path / "wanted").write_bytes(wanted)
    with pytest.raises(Corrupt):
        make_hashed(base, buckets, tmp_path / "p", tmp_path / "n", wanted=tmp_path / "wanted")
    assert not (tmp_path / "p").exists()


def test_tensors_that_share_a_region_are_described_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    old = {name: ("I8", rng.integers(-99, 99, 4000, np.int8)) for name in ("a", "b", "c")}
    new = {name: (dtype, codes.copy()) for name, (dtype, codes) in old.items()}
    new["a"][1][:40] += 1
    new["c"][1][::100] += 2
    files = [save_safetensors(tmp_path / name, model) for name, model in (("1", old), ("2", new))]
    make_patch(*files, tmp_path / "patch")
    rows = describe(tmp_path / "patch")["regions"]
    assert [(row["name"], row["changed"]) for row in rows] == [("a", 40), ("b", 0), ("c", 40)]
    assert rows[2]["density"] == 0.01
