"""Finds what differs between two files and adds it to a draft (maker side).

First the bytes of the old file are put where the new one has them (`alignment`): tensors go by
name, the bytes of unknown files by likeness. Then tensors are compared element by element and all
other bytes as 8-bit integers; what the old file has nowhere is given as it is. Tensors that follow
each other and have the same type are one region, so that a section may go across them.
"""

import mmap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from math import lcm
from typing import BinaryIO

import numpy as np

from neural_diff import encode, view
from neural_diff.alignment import Bytes
from neural_diff.classes import RUN_GRAIN
from neural_diff.draft import Draft
from neural_diff.limits import SECTION_ELEMENTS_MAX
from neural_diff.patch import Move
from neural_diff.region import Part, Region
from neural_diff.section import BLOCK_ELEMENTS
from neural_diff.view_numpy import Integers, Raw, elements_of

# A section is cut after so many changes, to keep a device's memory low; 4-bit ones need less of it.
_SECTION_CHANGES = 3 << 15
_SECTION_CHANGES_4_BIT = 1 << 18
_SECTION_BYTES = 300  # that a section costs: in the manifest, and for codes of its own
_EXACT_SECTION_BYTES = 1 << 20
_EXACT_SECTIONS = 1 << 10  # of one file; a greater file has greater sections
_COMPARED_BYTES = 64 << 20  # at a time


def bytes_of(file: BinaryIO) -> Bytes:
    """Gives the bytes of an open file, shape (size,), read when they are looked at."""
    file.seek(0)
    if not file.read(1):
        return np.empty(0, np.uint8)
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def placed(old: Bytes, size: int, moves: Sequence[Move]) -> Bytes:
    """Gives the old bytes where the new file of `size` bytes has them, and zeros between."""
    if len(old) == size and not moves:
        return old
    found = np.zeros(size, np.uint8)
    for to, start, length in moves or [Move(0, 0, min(len(old), size))]:
        found[to : to + length] = old[start : start + length]
    return found


def add_difference(
    draft: Draft, regions: Sequence[Region], moves: Sequence[Move], old: Bytes, new: Bytes
) -> Iterator[int]:
    """Adds all that differs; gives the bytes of the new file that are done.

    `old` is placed as the new file has it; `moves` says which of it the old file really gives.
    """
    end = 0
    for region in merged(_sayable(regions, old, new)):
        for low, high, given in _between(end, region.file_offset, moves):
            _add_bytes(draft, low, high, given, old, new)
        add_elements(draft, region, old, new)
        end = max(end, region.file_offset + region.span_bytes)
        yield end
    for low, high, given in _between(end, len(new), moves):
        _add_bytes(draft, low, high, given, old, new)


def add_elements(draft: Draft, region: Region, old: Bytes, new: Bytes) -> None:
    """Adds the sections that change a region's elements from `old` to `new`, if any do."""
    step = _COMPARED_BYTES // region.unit * region.unit
    runs = [(first, min(first + step, region.count)) for first in range(0, region.count, step)]
    sides = ([_elements(region, data, *run) for data in (old, new)] for run in runs)
    changed = np.flatnonzero(np.concatenate([before != after for before, after in sides]))
    grain = lcm(region.unit, BLOCK_ELEMENTS)
    coarse = lcm(grain, RUN_GRAIN)
    for low, high in pairwise(_cuts(region, changed, coarse)):
        some = changed[slice(*np.searchsorted(changed, (low, high)))]
        if len(some):
            start = low + (int(some[0]) - low) // coarse * coarse
            end = min(low - (low - int(some[-1]) - 1) // grain * grain, high)
            before, after = (_elements(region, data, start, end) for data in (old, new))
            draft.add(
                region, start, end - start, encode.smallest(region, before, after, some - start)
            )


def _cuts(region: Region, changed: Integers, grain: int) -> list[int]:
    """Cuts elements into sections: before a tensor where a code of its own pays, and by changes.

    It pays if the entropy of where the changes are is lower, apart, by more than a section costs.
    """
    counts = np.array([part.count for part in region.parts] or [region.count])
    starts = np.cumsum(counts) - counts
    moved = np.diff(np.searchsorted(changed, [*starts, region.count]))
    joined, bounds = np.zeros(2), [0]
    for start, part in zip(starts.tolist(), np.stack([counts, moved], axis=1), strict=True):
        apart = _support_bits(*joined) + _support_bits(*part)
        if _support_bits(*(joined + part)) > apart + 8 * _SECTION_BYTES:
            bounds.append(start)
            joined = np.zeros(2)
        joined = joined + part
    cuts = {*bounds, region.count}
    most = _SECTION_CHANGES_4_BIT if region.width == 4 else _SECTION_CHANGES
    for low, high in pairwise(sorted(cuts)):
        some = changed[slice(*np.searchsorted(changed, (low, high)))]
        pieces = max(-(-len(some) // most), 1)
        for piece in range(1, pieces):
            cuts.add(low + (int(some[len(some) * piece // pieces]) - low) // grain * grain)
    return sorted(cuts)


def _support_bits(count: float, changes: float) -> float:
    """Gives the entropy of which of `count` elements change, if all are as likely to."""
    if not 0 < changes < count:
        return 0.0
    share = changes / count
    return float(-count * (share * np.log2(share) + (1 - share) * np.log2(1 - share)))


def add_exact(draft: Draft, start: int, end: int, new: Bytes) -> None:
    """Adds sections that give the bytes [start, end) of `new` literally."""
    region = Region(f"bytes {start}", start, end - start, 8, "bytes")
    step = min(max(_EXACT_SECTION_BYTES, -(-region.count // _EXACT_SECTIONS)), SECTION_ELEMENTS_MAX)
    for first in range(0, region.count, step):
        data = new[start + first : min(start + first + step, end)].tobytes()
        draft.add(region, first, len(data), encode.literal(data))


def merged(regions: Iterable[Region]) -> Iterator[Region]:
    """Puts regions together that follow each other in the file and have the same type."""
    run: list[Region] = []
    for region in regions:
        if run and not _continues(run[-1], region):
            yield _as_one(run)
            run = []
        run.append(region)
    if run:
        yield _as_one(run)


def _continues(left: Region, right: Region) -> bool:
    alike = left._replace(name=right.name, file_offset=right.file_offset, count=right.count)
    follows = left.file_offset + left.span_bytes == right.file_offset
    return alike == right and follows and left.layout is None


def _as_one(run: list[Region]) -> Region:
    if len(run) == 1:
        return run[0]
    parts = tuple(Part(region.name, region.count) for region in run)
    name = f"{run[0].name[:200]} … {run[-1].name[:200]}"
    return run[0]._replace(name=name, count=sum(part.count for part in parts), parts=parts)


def _sayable(regions: Sequence[Region], old: Bytes, new: Bytes) -> Iterator[Region]:
    """Leaves out blocked regions between whose elements bytes differ that no region can say."""
    for _, group in groupby(regions, lambda region: region.file_offset):
        sharing = list(group)
        layout, span = sharing[0].layout, sharing[0].span_bytes
        if layout:
            covered = np.zeros(layout.stride, np.bool_)
            for region in sharing:
                assert region.layout
                first, size = region.layout.first, region.layout.per_block * region.width // 8
                covered[first : first + size] = True
            held = slice(sharing[0].file_offset, sharing[0].file_offset + span)
            before, after = (
                data[held].reshape(-1, layout.stride)[:, ~covered] for data in (old, new)
            )
            if not np.array_equal(before, after):
                continue
        yield from sharing


def _elements(region: Region, data: Bytes, start: int, end: int) -> Raw:
    """Gives elements [start, end) of a region as unsigned integers."""
    low, high = (region.file_offset + view.bytes_of(region, n) for n in (start, end))
    if region.layout is None and region.width != 4:
        return elements_of(data[low:high], region)
    return elements_of(view.elements_of(region, bytearray(data[low:high])), region)


def _between(start: int, end: int, moves: Sequence[Move]) -> Iterator[tuple[int, int, bool]]:
    """Cuts [start, end) of the new file into what the old one gives and what it does not."""
    for move in moves:
        low, high = max(start, move.to_offset), min(end, move.to_offset + move.length)
        if low < high:
            if start < low:
                yield start, low, False
            yield low, high, True
            start = high
    if start < end:
        yield start, end, False


def _add_bytes(draft: Draft, low: int, high: int, given: bool, old: Bytes, new: Bytes) -> None:
    if not given:
        add_exact(draft, low, high, new)
        return
    differs = [_differing(old, new, low, high, way) for way in (1, -1)]
    if differs[0] is not None and differs[1] is not None:
        start, count = differs[0], differs[1] + 1 - differs[0]
        region = Region(f"bytes {start}", start, count, 8, "int", lo=-128, hi=127)
        add_elements(draft, region, old, new)


def _differing(old: Bytes, new: Bytes, low: int, high: int, way: int) -> int | None:
    """Gives the first (way 1) or the last (way -1) byte of [low, high) that differs."""
    for start in range(low, high, _COMPARED_BYTES)[::way]:
        end = min(start + _COMPARED_BYTES, high)
        found = np.flatnonzero(old[start:end] != new[start:end])
        if len(found):
            return int(found[0 if way == 1 else -1]) + start
    return None
