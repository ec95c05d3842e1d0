"""Finds what differs between two files and adds it to a draft (maker side).

Tensors that both files have at the same place are compared element by element; of all other bytes
those near a difference are given literally.
"""

import hashlib
import mmap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from neural_diff import encode
from neural_diff.decode_numpy import elements_of
from neural_diff.draft import Draft
from neural_diff.layout import is_safetensors, regions_of
from neural_diff.limits import SECTION_ELEMENTS_MAX
from neural_diff.region import Region

_SECTION_CHANGES = 1 << 18  # a section is cut after so many, to keep a device's memory low
_EXACT_SECTION_BYTES = 1 << 20
_EXACT_SECTIONS = 1 << 10  # of one file; a greater file has greater sections
_GRAIN_BYTES = 1 << 10  # differences closer than this go into one exact region
_EXACT_REGIONS = 512
_COMPARED_BYTES = 64 << 20  # at a time

Bytes = NDArray[np.uint8]
Run = tuple[int, int]  # first byte and the one after the last


def bytes_of(file: BinaryIO) -> Bytes:
    """Gives the bytes of an open file, shape (size,), read when they are looked at."""
    file.seek(0)
    if not file.read(1):
        return np.empty(0, np.uint8)
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def regions_to_compare(base: Path, target: Path, old: Bytes, new: Bytes) -> list[Region]:
    """Gives the tensors both files have at the same place, and the changed bytes between them.

    Raises:
        Malformed: a file begins as safetensors does but is none.
    """
    tensors: list[Region] = []
    if is_safetensors(base) and is_safetensors(target):
        before = {entry.region for entry in regions_of(base)}
        tensors = [entry.region for entry in regions_of(target) if entry.region in before]
    starts = [0, *(region.file_offset + region.stored_bytes for region in tensors)]
    holes = list(zip(starts, [*(region.file_offset for region in tensors), len(new)], strict=True))
    grain = _GRAIN_BYTES
    while True:
        literal = [
            _bytes_region(start, end)
            for hole in holes
            for start, end in _changed_runs(old, new, *hole, grain)
        ]
        if len(literal) <= _EXACT_REGIONS:
            return sorted(tensors + literal, key=lambda region: region.file_offset)
        grain *= 4


def add_difference(draft: Draft, region: Region, old: Bytes, new: Bytes) -> None:
    """Adds the sections that change a region's elements from `old` to `new`, if any do."""
    if region.kind == "bytes":
        add_exact(draft, region.file_offset, new[: region.file_offset + region.count])
        return
    held = slice(region.file_offset, region.file_offset + region.stored_bytes)
    before, after = elements_of(old[held], region), elements_of(new[held], region)
    for first in range(0, region.count, SECTION_ELEMENTS_MAX):
        last = min(first + SECTION_ELEMENTS_MAX, region.count)
        changed = np.flatnonzero(before[first:last] != after[first:last]) + first
        cuts = [first, *changed[_SECTION_CHANGES::_SECTION_CHANGES].tolist(), last]
        for start, end in pairwise(cuts):
            some = changed[np.searchsorted(changed, start) : np.searchsorted(changed, end)]
            if len(some):
                given = encode.smallest(region, before[start:end], after[start:end], some - start)
                result = hashlib.sha256(after[start:end].tobytes()).hexdigest()
                draft.add(region, start, end - start, given, result)


def add_exact(draft: Draft, start: int, new: Bytes) -> None:
    """Adds sections that give the bytes from `start` to the end of `new` literally."""
    region = _bytes_region(start, len(new))
    step = min(max(_EXACT_SECTION_BYTES, -(-len(new) // _EXACT_SECTIONS)), SECTION_ELEMENTS_MAX)
    for first in range(0, region.count, step):
        data = new[start + first : start + first + step].tobytes()
        result = hashlib.sha256(data).hexdigest()
        draft.add(region, first, len(data), encode.literal(data), result)


def _changed_runs(old: Bytes, new: Bytes, start: int, end: int, grain: int) -> list[Run]:
    """Gives runs of bytes within [start, end) that hold all differences, apart by a grain."""
    apart: list[Run] = []
    for first, last in _differences(old, new, start, end, grain):
        if apart and first - apart[-1][1] <= grain:
            first, _ = apart.pop()
        apart.append((first, last))
    return apart


def _differences(old: Bytes, new: Bytes, start: int, end: int, grain: int) -> Iterator[Run]:
    both = min(end, len(old))
    for low in range(start, both, _COMPARED_BYTES):
        high = min(low + _COMPARED_BYTES, both)
        differs = np.flatnonzero(old[low:high] != new[low:high]) + low
        cuts = np.flatnonzero(np.diff(differs) > grain) + 1
        if len(differs):
            firsts, lasts = differs[np.r_[0, cuts]], differs[np.r_[cuts, 0] - 1]
            yield from zip(firsts.tolist(), (lasts + 1).tolist(), strict=True)
    if both < end:
        yield max(start, both), end


def _bytes_region(start: int, end: int) -> Region:
    return Region(f"bytes {start}", start, end - start, 8, "bytes")
