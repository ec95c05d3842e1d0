"""Layouts that only a format's reader on the maker side will use: nibbles, blocks, offset binary.

The patches are written by hand; a device of this version already applies them.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_diff import encode, stream, view
from neural_diff.apply import apply
from neural_diff.draft import Draft
from neural_diff.hashed import locate_one
from neural_diff.region import Blocked, Region

BLOCKS = 40
SCALES = Region("scales", 16, BLOCKS, 16, "f16", layout=Blocked(18, 0, 1, "low"))
CODES = Region("codes", 16, BLOCKS * 32, 4, "int", 8, -8, 7, Blocked(18, 2, 32, "low"))


def digest(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()


def nibbles(file: bytes) -> list[int]:
    """Gives the codes' raw values the slow way: low nibble first, block after block."""
    found = []
    for block in range(BLOCKS):
        for byte in file[16 + block * 18 + 2 : 16 + block * 18 + 18]:
            found += [byte & 15, byte >> 4]
    return found


def stored(raws: list[int]) -> bytes:
    return bytes(low | high << 4 for low, high in zip(raws[::2], raws[1::2], strict=True))


@pytest.mark.parametrize("numpy", [True, False])
@pytest.mark.parametrize("block_elements", [32, 100, 1 << 18])
def test_blocks_of_scales_and_nibbles_change_in_one_file(
    numpy: bool, block_elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "NUMPY", numpy)
    monkeypatch.setattr(stream, "PIECE_BYTES", block_elements)
    rng = np.random.default_rng(1)
    old = rng.bytes(16 + 18 * BLOCKS + 5)
    raws = nibbles(old)
    changed = sorted(rng.choice(len(raws), 90, replace=False).tolist())
    new_raws = list(raws)
    for place in changed:
        new_raws[place] = (raws[place] + int(rng.integers(1, 16))) % 16
    new = bytearray(old)
    for block in range(BLOCKS):
        start = 16 + block * 18
        new[start + 2 : start + 18] = stored(new_raws[block * 32 : (block + 1) * 32])
    new[16 + 18 * 3] ^= 1
    halves = [
        np.array([int.from_bytes(file[16 + 18 * b : 18 + 18 * b], "little") for b in range(BLOCKS)])
        for file in (old, bytes(new))
    ]
    before, after = (values.astype("<u2") for values in halves)
    base, patch, target = (tmp_path / name for name in ("base", "patch", "target"))
    base.write_bytes(old)
    draft = Draft()
    given_scales = encode.smallest(SCALES, before, after, np.array([3]))
    draft.add(SCALES, 0, BLOCKS, given_scales)
    codes = [np.array(side, np.uint8) for side in (raws, new_raws)]
    given_codes = next(encode._tries(CODES, *codes, np.array(changed)))
    draft.add(CODES, 0, CODES.count, given_codes)
    draft.write(patch, digest(old), digest(bytes(new)), np.frombuffer(new, np.uint8), {})
    apply(base, [patch], target)
    assert target.read_bytes() == bytes(new)


@pytest.mark.parametrize("numpy", [True, False])
def test_a_region_may_be_hashed_and_then_corrected(
    numpy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "NUMPY", numpy)
    region = Region("w", 4, 100, 8, "int", 0, -127, 127)
    old, new = bytes(104), bytearray(104)
    draft = Draft()
    hashed = encode.hashed(np.array([5], np.int16), 3, 0)
    moved = bytes(5 * locate_one(3, place, 1, 0)[1] & 255 for place in range(100))
    draft.add(region, 0, 100, hashed)
    values = np.frombuffer(moved, np.uint8)
    fixed = values.copy()
    fixed[[7, 60]] = 0
    draft.add(region, 0, 100, encode.smallest(region, values, fixed, np.array([7, 60])))
    new[4:] = fixed.tobytes()
    after = np.frombuffer(new, np.uint8)
    patch = draft.write(tmp_path / "patch", digest(old), digest(bytes(new)), after, {})
    assert patch.kind == "hashed"
    (tmp_path / "base").write_bytes(old)
    apply(tmp_path / "base", [tmp_path / "patch"], tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == bytes(new)


@given(st.data(), st.sampled_from(["low", "high"]), st.sampled_from([4, 8, 16]))
def test_elements_taken_out_and_put_back_leave_a_window_unchanged(
    data: st.DataObject, order: str, width: int
) -> None:
    per_block = data.draw(st.integers(1, 8)) * 2
    size = per_block * width // 8
    first, gap, blocks = (data.draw(st.integers(low, 5)) for low in (0, 0, 1))
    layout = Blocked(first + size + gap, first, per_block, order)  # type: ignore[arg-type]
    region = Region("w", 0, per_block * blocks, width, "int", layout=layout)
    held = bytearray(data.draw(st.binary(min_size=region.span_bytes, max_size=region.span_bytes)))
    window = bytearray(held)
    elements = view.elements_of(region, window)
    assert len(elements) == region.count * region.element_bytes
    assert view.put_elements(region, elements, window) == view.stored_of(region, held)
    assert window == held
    if width == 4:
        byte = held[first]
        pair = [byte & 15, byte >> 4]
        assert list(elements[:2]) == (pair if order == "low" else pair[::-1])
    untouched = bytearray(held)
    view.put_elements(region, bytearray(len(elements)), untouched)
    gaps = [
        place for place in range(len(held)) if not first <= place % layout.stride < first + size
    ]
    assert all(untouched[place] == held[place] for place in gaps)


def test_a_window_of_nibbles_begins_at_its_byte() -> None:
    region = Region("w", 10, 8, 4, "int", 8, -8, 7)
    assert view.bytes_of(region, 2) == 1
    assert view.bytes_of(CODES, 64) == 36
    assert view.elements_in(CODES, 36) == 64
