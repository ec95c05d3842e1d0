"""Three decoders say the same: numpy's, the standard library's, and one written from the page."""

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neural_diff.make import make_hashed
from neural_diff.region import Region
from tests.unit.patch_files import DTYPES, save_buckets, save_safetensors, take_apart
from tests.unit.ways import (
    ALL_WAYS,
    KINDS,
    answer,
    blocked,
    changed,
    drafted,
    made,
    raws,
    sections_of,
    with_raws,
)

PATTERNS = ["anywhere", "clustered", "by magnitude"]
often = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
seldom = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**32 - 1)
shares = st.sampled_from([0.001, 0.01, 0.05, 0.3, 1])
pieces = st.sampled_from([16, 72, 1 << 18])


@st.composite
def shapes(draw: st.DrawFn) -> list[tuple[Region, str, int, float, str, bool]]:
    """Some regions with gaps between, and of each: way, classes, and how much changes how."""
    found, end = [], draw(st.integers(0, 9))
    for number in range(draw(st.integers(1, 4))):
        kind, width = draw(st.sampled_from(KINDS))
        layout = draw(st.sampled_from(["contiguous", "low", "high"]))
        size = draw(st.integers(1, 130))
        if layout != "contiguous" and kind == "int" and width < 32:
            region = blocked(end, -(-size // 8), layout, width)
        else:
            region = Region(f"w{number}", end, 2 * size, width, kind)
        end += region.span_bytes + draw(st.integers(0, 9))
        way, pattern = draw(st.sampled_from(ALL_WAYS)), draw(st.sampled_from(PATTERNS))
        found.append(
            (region, way, draw(st.integers(2, 16)), draw(shares), pattern, draw(st.booleans()))
        )
    return found


@often
@given(shapes(), seeds, pieces)
def test_every_way_to_say_a_difference_is_read_alike(
    shapes: list[tuple[Region, str, int, float, str, bool]], seed: int, piece: int
) -> None:
    rng = np.random.default_rng(seed)
    old = new = rng.bytes(shapes[-1][0].file_offset + shapes[-1][0].span_bytes + 3)
    for region, _, _, share, pattern, far in shapes:
        moved = changed(rng, raws(region, old), region.width, share, pattern, far)
        new = with_raws(region, new, moved)
    sections = [
        section
        for region, way, classes, *_ in shapes
        for section in sections_of(region, old, new, way, classes)
    ]
    assert answer(old, drafted(sections, old, new), pieces=piece) == new


@pytest.mark.parametrize("count", [2, 4, 30, 31 * 2])
@pytest.mark.parametrize("hits", [1, 2, 3])
@pytest.mark.parametrize("way", ["gaps", "blocks32", "class-gaps", "values by class"])
def test_residues_are_paired_whether_they_are_odd_or_even(way: str, hits: int, count: int) -> None:
    region, old = Region("q", 0, count, 4, "int"), bytes(count // 2)
    new = with_raws(region, old, [9] * min(hits, count))
    sections = list(sections_of(region, old, new, way, 2))
    assert "paired" in sections[0][3].params
    assert answer(old, drafted(sections, old, new)) == new


def tensors_of(rng: np.random.Generator, names: str, dtypes: list[str]) -> dict[str, Any]:
    found = {}
    for name, dtype in zip(names, dtypes, strict=True):
        kind = np.dtype(DTYPES[dtype])
        raw = rng.integers(0, 256, (int(rng.integers(1, 12)), 9, kind.itemsize), np.uint8)
        found[name] = (dtype, np.frombuffer(raw.tobytes(), kind))
    return found


def nudged(rng: np.random.Generator, array: Any, share: float) -> Any:
    raw = array.copy().view(f"u{array.itemsize}").reshape(-1)
    hit = rng.random(raw.size) < share
    raw[hit] += rng.integers(1, 5, int(hit.sum())).astype(raw.dtype)
    return raw.view(array.dtype)


def saved(tensors: dict[str, Any], metadata: dict[str, str]) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        return save_safetensors(Path(name) / "model", tensors, metadata).read_bytes()


@seldom
@given(
    seeds,
    st.lists(st.sampled_from(sorted(DTYPES)), min_size=4, max_size=4),
    st.sampled_from(["same", "added first", "removed first", "longer header", "turned round"]),
    shares,
    pieces,
)
def test_models_whose_tensors_moved_are_read_alike(
    seed: int, dtypes: list[str], fate: str, share: float, piece: int
) -> None:
    rng = np.random.default_rng(seed)
    before = tensors_of(rng, "abcd", dtypes)
    after = {name: (kind, nudged(rng, array, share)) for name, (kind, array) in before.items()}
    if fate == "added first":
        after = tensors_of(rng, "n", dtypes[:1]) | after
    elif fate == "removed first":
        del after["a"]
    elif fate == "turned round":
        after = dict(reversed(after.items()))
    header = {"v": "2" * 60 if fate == "longer header" else "2"}
    base, target = saved(before, {"v": "1"}), saved(after, header)
    assert answer(base, made(base, target), pieces=piece) == target


def edited(rng: np.random.Generator, old: bytes) -> bytes:
    """Cuts out, inserts, repeats, grows, shrinks or changes some bytes."""
    at, length = int(rng.integers(len(old))), int(rng.integers(1, 300))
    match rng.integers(6):
        case 0:
            return old[:at] + rng.bytes(length) + old[at:]
        case 1:
            return old[:at] + old[at + length :] or b"x"
        case 2:
            return old + old[at : at + length]
        case 3:
            return old[: max(at, 1)]
        case 4:
            return old + rng.bytes(length)
    held = np.frombuffer(old, np.uint8).copy()
    held[rng.integers(0, len(held), length)] += 1
    return held.tobytes()


@seldom
@given(seeds, st.integers(1, 8), pieces)
def test_a_chain_of_up_to_eight_patches_at_once_is_as_one_by_one(
    seed: int, links: int, piece: int
) -> None:
    rng = np.random.default_rng(seed)
    versions = [rng.bytes(6000)]
    for _ in range(links):
        versions.append(edited(rng, versions[-1]))
    patches = [made(*pair) for pair in pairwise(versions)]
    for (base, target), patch in zip(pairwise(versions), patches, strict=True):
        assert answer(base, patch, pieces=piece) == target
    assert answer(versions[0], *patches, pieces=piece) == versions[-1]


def test_bytes_inserted_into_an_unknown_container_are_moves() -> None:
    rng = np.random.default_rng(5)
    old = rng.bytes(60_000)
    new = old[:20_001] + rng.bytes(77) + old[20_001:40_000] + old[41_003:]
    patch = made(old, new)
    assert len(take_apart(patch)[0]["moves"]) == 3
    assert answer(old, patch, pieces=1000) == new


@seldom
@given(seeds, st.integers(0, 8), st.sampled_from([None, 0.0, 0.01, 0.5]), pieces)
def test_hashed_models_and_their_corrections_are_read_alike(
    seed: int, fraction_bits: int, corrected: float | None, piece: int
) -> None:
    rng = np.random.default_rng(seed)
    old = {name: ("I8", rng.integers(-128, 128, 200, np.int8)) for name in "ab"}
    values = {
        name: rng.integers(-300, 301, int(rng.integers(1, 200))).astype(np.int16) for name in "ab"
    }
    with tempfile.TemporaryDirectory() as name:
        base, out, target, wanted = (Path(name) / part for part in ("b", "p", "t", "w"))
        save_safetensors(base, old, {"v": "1"})
        buckets = save_buckets(Path(name) / "k", values, fraction_bits=str(fraction_bits))
        make_hashed(base, buckets, out, target)
        if corrected is not None:
            held = np.frombuffer(target.read_bytes(), np.uint8).copy()
            weights = held[-400:]
            weights[rng.random(400) < corrected] += 3
            wanted.write_bytes(held.tobytes())
            make_hashed(base, buckets, out, target, wanted=wanted)
        assert answer(base.read_bytes(), out.read_bytes(), pieces=piece) == target.read_bytes()
