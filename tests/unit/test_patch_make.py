"""Making: any two files, the smallest patch that gives the target back, always the same bytes."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from neural_diff import difference, link, make, stream
from neural_diff.apply import apply
from neural_diff.describe import describe
from neural_diff.errors import Corrupt, Malformed
from neural_diff.hashed import locate, region_seed
from neural_diff.make import make_hashed, make_patch
from neural_diff.region import Blocked, Region, check_places
from tests.unit.patch_files import (
    DTYPES,
    PATCH_SEED,
    everything_in,
    sample,
    save_buckets,
    save_safetensors,
)


@st.composite
def file_pairs(draw: st.DrawFn) -> tuple[dict[str, tuple[str, np.ndarray]], ...]:
    """Tensors before and after: changed, dropped, added or of another shape."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    before, after = {}, {}
    for name in "abcd"[: draw(st.integers(1, 4))]:
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        kind = np.dtype(DTYPES[dtype])
        shape = tuple(draw(st.lists(st.integers(0, 20), max_size=2)))
        raw = rng.integers(0, 256, (*shape, kind.itemsize), np.uint8)
        new = raw.copy()
        hit = rng.random(new.shape) < draw(st.sampled_from([0, 0.01, 0.2, 1]))
        new[hit] = rng.integers(0, 256, int(hit.sum()))
        fate = draw(st.sampled_from(["keep", "keep", "keep", "drop", "add"]))
        if fate != "add":
            before[name] = (dtype, raw)
        if fate != "drop":
            after[name] = (dtype, new)
    return before, after


def save(path: Path, tensors: dict[str, tuple[str, np.ndarray]], version: str) -> None:
    typed = {
        name: (dtype, np.frombuffer(raw.tobytes(), DTYPES[dtype]).reshape(raw.shape[:-1]))
        for name, (dtype, raw) in tensors.items()
    }
    save_safetensors(path, typed, {"version": version})


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(file_pairs(), st.sampled_from(["1", "2", "2.0-beta"]), st.booleans())
def test_any_two_models_make_a_patch_that_both_decoders_apply(
    pair: tuple[dict[str, tuple[str, np.ndarray]], ...], version: str, numpy: bool
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        base, target, patch, new = (Path(name) / part for part in ("base", "to", "p", "new"))
        save(base, pair[0], "1")
        save(target, pair[1], version)
        made = make_patch(base, target, patch)
        assert patch.stat().st_size < target.stat().st_size + 700 + 350 * len(made.sections)
        patched.setattr(stream, "NUMPY", numpy)
        apply(base, [patch], new)
        assert new.read_bytes() == target.read_bytes()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=3000), st.binary(min_size=1, max_size=3000), st.integers(0, 3000))
def test_any_two_files_make_a_patch(old: bytes, new: bytes, shared: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        base, target, patch = (Path(name) / part for part in ("base", "to", "patch"))
        base.write_bytes(old)
        target.write_bytes(old[:shared] + new)
        for file in (base, target):
            assume(file.read_bytes()[:4] != b"GGUF" and file.read_bytes()[4:8] != b"TFL3")
        make_patch(base, target, patch)
        apply(base, [patch], target)
        assert target.read_bytes() == old[:shared] + new


def test_equal_files_make_a_patch_of_no_section(tmp_path: Path) -> None:
    base, _, patch = sample("exact", tmp_path)
    made = make_patch(base, base, patch)
    assert (made.sections, made.kind) == ((), "exact")
    apply(base, [patch], tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == base.read_bytes()


@pytest.mark.parametrize("kind", ["sparse", "hashed", "exact"])
def test_the_same_input_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    rooms = [tmp_path / "one", tmp_path / "two"]
    for room in rooms:
        room.mkdir()
    one, two = (sample(kind, room)[2].read_bytes() for room in rooms)
    assert one == two


def test_a_model_without_likeness_makes_a_patch_no_greater_than_itself(tmp_path: Path) -> None:
    base, target, patch = (tmp_path / name for name in ("base", "to", "patch"))
    rng = np.random.default_rng(0)
    for path in (base, target):
        save_safetensors(path, {"w": ("I8", rng.integers(-127, 128, 1 << 20, np.int8))})
    make_patch(base, target, patch)
    assert patch.stat().st_size < 1.001 * target.stat().st_size


def test_a_large_sparse_difference_is_cut_into_sections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(difference, "_SECTION_CHANGES", 20)
    monkeypatch.setattr(difference, "RUN_GRAIN", 1)
    monkeypatch.setattr(difference, "SECTION_ELEMENTS_MAX", 100)
    monkeypatch.setattr(stream, "PIECE_BYTES", 16)
    base, target, patch = (tmp_path / name for name in ("base", "to", "patch"))
    rng = np.random.default_rng(0)
    old = rng.integers(-127, 128, 950, np.int8)
    new = np.where(rng.random(950) < 0.15, old + 1, old).astype(np.int8)
    save_safetensors(base, {"w": ("I8", old)})
    save_safetensors(target, {"w": ("I8", new)})
    made = make_patch(base, target, patch)
    assert len(made.regions) == 1
    assert len(made.sections) > 5
    assert max(section.changes for section in made.sections) <= 20 + 31
    for numpy in (True, False):
        monkeypatch.setattr(stream, "NUMPY", numpy)
        apply(base, [patch], tmp_path / "new")
        assert (tmp_path / "new").read_bytes() == target.read_bytes()


def test_tensors_that_change_at_other_rates_are_apart_whatever_their_lengths(
    tmp_path: Path,
) -> None:
    base, target, patch = (tmp_path / name for name in ("base", "to", "patch"))
    rng = np.random.default_rng(0)
    old = rng.integers(-120, 121, 133_633, np.int8)
    share = np.where(np.arange(len(old)) < 33_301, 0.4, 0.01)
    hit = rng.random(len(old)) < share
    hit[[33_300, 33_301]] = True
    for path, codes in ((base, old), (target, (old + hit).astype(np.int8))):
        save_safetensors(path, {"a": ("I8", codes[:33_301]), "b": ("I8", codes[33_301:])})
    made = make_patch(base, target, patch)
    assert [section.start for section in made.sections] == [0, 33_301]


def test_scattered_changes_of_an_unknown_file_are_one_region(tmp_path: Path) -> None:
    base, target, patch = (tmp_path / name for name in ("base", "to", "patch"))
    old = np.zeros(4 << 20, np.uint8)
    new = old.copy()
    new[:: 3 << 10] = 1
    base.write_bytes(old.tobytes())
    target.write_bytes(new.tobytes())
    assert len(make_patch(base, target, patch).regions) == 1
    assert patch.stat().st_size < 1000


def test_a_patch_whose_result_is_not_the_target_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, target, patch = sample("sparse", tmp_path)
    patch.unlink()
    before = everything_in(tmp_path)
    monkeypatch.setattr(stream.Changes, "_decode", lambda *_: lambda elements, first: None)
    with pytest.raises(Corrupt):
        make_patch(base, target, patch)
    assert everything_in(tmp_path) == before


def test_a_target_that_begins_as_safetensors_but_is_none_is_refused(tmp_path: Path) -> None:
    base, target, patch = sample("sparse", tmp_path)
    target.write_bytes(target.read_bytes()[:-1])
    patch.unlink()
    with pytest.raises(Malformed, match="tensors end at"):
        make_patch(base, target, patch)
    assert not patch.exists()


def test_an_empty_target_is_refused(tmp_path: Path) -> None:
    base, target, patch = sample("exact", tmp_path)
    target.write_bytes(b"")
    with pytest.raises(Malformed, match="size"):
        make_patch(base, target, patch)


def test_models_may_be_given_by_links(tmp_path: Path) -> None:
    base, target, patch = sample("sparse", tmp_path)
    (tmp_path / "link").symlink_to(base)
    assert make_patch(tmp_path / "link", target, patch).kind == "sparse"


def test_a_hashed_patch_moves_every_code_by_its_bucket(tmp_path: Path) -> None:
    old = np.array([[-128, -127, 127, 0]] * 64, np.int8)
    base, target, patch = (tmp_path / name for name in ("base", "to", "patch"))
    save_safetensors(base, {"w": ("I8", old), "s": ("F32", np.ones(3, np.float32))})
    values = np.arange(-10, 20, dtype=np.int16)
    buckets = save_buckets(tmp_path / "b", {"w": values}, lo="-127", hi="126")
    made = make_hashed(base, buckets, patch, target, provenance={"run": "7"})
    place, sign, _ = locate(region_seed(PATCH_SEED, "w"), 0, old.size, 30, 0)
    wanted = np.clip(old.reshape(-1) + sign * values[place], -127, 126).astype(np.int8)
    header = target.stat().st_size - old.size - 12
    assert target.read_bytes()[header : header + old.size] == wanted.tobytes()
    assert made.kind == "hashed"
    apply(base, [patch], tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == target.read_bytes()


def test_a_hashed_region_may_have_more_elements_than_a_section_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neural_diff.limits.SECTION_ELEMENTS_MAX", 60)
    assert sample("hashed", tmp_path)[2].exists()
    with pytest.raises(Malformed, match="count"):
        sample("exact", tmp_path)


@pytest.mark.parametrize(
    ("buckets", "metadata", "says"),
    [
        ({"x": [1]}, {}, "no int8 tensor 'x'"),
        ({"s": [1]}, {}, "no int8 tensor 's'"),
        ({"w": []}, {}, "0 buckets"),
        ({"w": [1] * 129}, {}, "129 buckets"),
        ({"w": [[1]]}, {}, "no int16 array"),
        ({"w": [1]}, {"patch_seed": "00"}, "out of range"),
        ({"w": [1]}, {"patch_seed": "zz" * 16}, "patch_seed"),
        ({"w": [1]}, {"fraction_bits": "9"}, "out of range"),
        ({"w": [1]}, {"lo": "-129"}, "out of range"),
        ({"w": [1]}, {"lo": "5", "hi": "4"}, "out of range"),
        ({"w": [1]}, {"hi": "a"}, "metadata needs"),
    ],
)
def test_buckets_that_do_not_fit_are_refused_and_nothing_is_written(
    buckets: dict[str, list[int]], metadata: dict[str, str], says: str, tmp_path: Path
) -> None:
    base, target, patch = sample("sparse", tmp_path)
    arrays = {name: np.array(values, np.int16) for name, values in buckets.items()}
    file = save_buckets(tmp_path / "b", arrays, **metadata)
    before = everything_in(tmp_path)
    with pytest.raises(Malformed, match=says):
        make_hashed(base, file, patch, target)
    assert everything_in(tmp_path) == before


def test_a_description_says_what_changes_and_what_it_costs(tmp_path: Path) -> None:
    _, target, patch = sample("sparse", tmp_path)
    said = describe(patch)
    assert said["kind"] == "sparse"
    assert said["patch_bytes"] == patch.stat().st_size
    assert said["to"] == {
        "size": target.stat().st_size,
        "sha256": link.sha256_of(target.open("rb")),
    }
    regions = {region["name"]: region for region in said["regions"]}  # type: ignore[attr-defined]
    assert (regions["w"]["changed"], regions["w"]["elements"]) == (4, 128)
    assert regions["w"]["density"] == 4 / 128
    assert regions["w"]["bits_per_change"] == 8 * regions["w"]["bytes"] / 4
    assert regions["w.scale"]["changed"] == 2
    json.dumps(said)


def test_a_description_of_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(os.urandom(100))
    with pytest.raises(Malformed):
        describe(tmp_path / "p")


def test_maker_and_tests_agree_on_what_a_patch_seed_is() -> None:
    assert len(PATCH_SEED) == make._PATCH_SEED_BYTES


def test_regions_may_share_blocks_but_not_bytes() -> None:
    scales = Region("s", 8, 4, 16, "f16", layout=Blocked(18, 0, 1, "low"))
    codes = Region("q", 8, 128, 4, "int", 8, -8, 7, Blocked(18, 2, 32, "low"))
    check_places((scales, codes), 80)
    for wrong in [
        (codes, scales),
        (scales, scales),
        (scales, Region("q", 10, 128, 4, "int", 8, -8, 7, Blocked(18, 2, 32, "low"))),
        (scales, Region("q", 8, 128, 4, "int", 8, -8, 7, Blocked(18, 1, 32, "low"))),
        (scales, Region("q", 20, 8, 8, "int")),
    ]:
        with pytest.raises(Malformed, match="overlap"):
            check_places(wrong, 200)
    with pytest.raises(Malformed, match="outside"):
        check_places((scales, codes), 79)
