"""Says where the bytes of a new file are in the old one (maker side).

Of two files whose tensors are known, a tensor is where the tensor of its name is. Of others the
likeness decides: windows of 16 bytes that both files have, and each of them once, are anchors; runs
of anchors that are the same distance apart become moves, and where two runs meet the cut is put so
that most bytes agree. A window is looked at if its own hash says so, so both files choose alike
without comparing every byte with every other (as in rsync and its successors).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from neural_diff.limits import MOVES_MAX
from neural_diff.patch import Move
from neural_diff.region import Region

_WINDOW_BYTES = 16
_CHOSEN = 1 << 58  # a window is chosen if its hash is below: one of 64
_STEP_BYTES = 1 << 22
_ANCHORS_MIN = 3  # of a run, below which it is taken for chance
_ALIKE_SHARE = 0.5  # of the bytes at the same place, from which nothing is looked for elsewhere

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]


def by_name(
    before: Sequence[Region], after: Sequence[Region]
) -> tuple[list[Region], tuple[Move, ...]]:
    """Gives the tensors that both files have, as they lie in the new one, and the moves there.

    No moves are given if every tensor has kept its place.
    """
    had = {region.name: region for region in before}
    same = [
        region
        for region in after
        if region.name in had and _type_of(region) == _type_of(had[region.name])
    ]
    places = {
        (region.file_offset, had[region.name].file_offset, region.span_bytes) for region in same
    }
    if all(to == start for to, start, _ in places):
        return same, ()
    moves: list[Move] = []
    for to, start, length in sorted(places):
        last = moves[-1] if moves else None
        if last and last.to_offset - last.from_offset == to - start:
            # What lies between two tensors that moved together moved with them.
            moves[-1] = Move(last.to_offset, last.from_offset, to + length - last.to_offset)
        else:
            moves.append(Move(to, start, length))
    return (same, tuple(moves)) if len(moves) <= MOVES_MAX else ([], ())


def by_likeness(old: Bytes, new: Bytes) -> tuple[Move, ...]:
    """Gives the moves that put the bytes of an unknown old file where the new one has them.

    No moves are given if most bytes are where they were.
    """
    both = min(len(old), len(new))
    if both < _WINDOW_BYTES:
        return ()
    alike = np.count_nonzero(old[:both] == new[:both])
    if len(old) == len(new) and alike >= _ALIKE_SHARE * both:
        return ()
    runs = _runs(*_anchors(old, new))
    if not runs or len(runs) > MOVES_MAX:
        return ()
    moves = tuple(_moves(runs, old, new))
    if not may_move(moves, len(old)):
        # Far apart in a much longer file: what lies between two runs is left out.
        ends = [min(run[1], after[0]) for run, after in pairwise([*runs, (len(new), 0, 0)])]
        within = zip(runs, ends, strict=True)
        moves = tuple(Move(start, start + by, end - start) for (start, _, by), end in within)
    gained = sum(
        np.count_nonzero(old[start : start + length] == new[to : to + length])
        for to, start, length in moves
    )
    return moves if gained > alike and may_move(moves, len(old)) else ()


def may_move(moves: Sequence[Move], old_size: int) -> bool:
    """Whether the moves give no more bytes than a patch may take of an old file of that size."""
    return sum(move.length for move in moves) <= 2 * old_size


def _type_of(region: Region) -> tuple[object, ...]:
    return (region.count, region.width, region.kind, region.bias, region.layout)


def _anchors(old: Bytes, new: Bytes) -> tuple[Integers, Integers]:
    """Gives where both files have the same window, in the new and in the old, by the new."""
    (old_hash, old_at), (new_hash, new_at) = (_chosen(data) for data in (old, new))
    _, at_old, at_new = np.intersect1d(old_hash, new_hash, assume_unique=True, return_indices=True)
    order = np.argsort(new_at[at_new], kind="stable")
    return new_at[at_new][order], old_at[at_old][order]


def _chosen(data: Bytes) -> tuple[NDArray[np.uint64], Integers]:
    """Gives the hashes of the chosen windows that occur once, and where they begin."""
    hashes, places = [], []
    for first in range(0, len(data), _STEP_BYTES):
        part = data[first : first + _STEP_BYTES + _WINDOW_BYTES - 1]
        mixed, reach, factor = part.astype(np.uint64), 1, 0x9E3779B97F4A7C15
        while reach < _WINDOW_BYTES:
            mixed = mixed[:-reach] * np.uint64(factor) + mixed[reach:]
            reach, factor = reach * 2, factor * factor & (1 << 64) - 1
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        at = np.flatnonzero(mixed < np.uint64(_CHOSEN))
        hashes.append(mixed[at])
        places.append(at + first)
    hashed, at, count = np.unique(np.concatenate(hashes), return_index=True, return_counts=True)
    return hashed[count == 1], np.concatenate(places)[at[count == 1]]


def _runs(to: Integers, start: Integers) -> list[tuple[int, int, int]]:
    """Gives runs of anchors the same distance apart: first and last place, and the distance."""
    lengths = np.diff(np.r_[0, _turns(start - to), len(to)])
    keep = np.repeat(lengths >= _ANCHORS_MIN, lengths)
    to, start = to[keep], start[keep]
    if not len(to):
        return []
    edges = np.r_[0, _turns(start - to), len(to)]
    return [
        (int(to[a]), int(to[b - 1]) + _WINDOW_BYTES, int(start[a] - to[a]))
        for a, b in pairwise(edges)
    ]


def _turns(distance: Integers) -> Integers:
    """Gives the places from which a distance is another one than before."""
    return np.flatnonzero(np.diff(distance)) + 1


def _moves(runs: Sequence[tuple[int, int, int]], old: Bytes, new: Bytes) -> Iterator[Move]:
    """Lets the runs meet where most bytes agree, and cuts off what the old file does not have."""
    cuts = [0]
    for (_, left_end, left), (right_start, _, right) in pairwise(runs):
        low, high = min(left_end, right_start), right_start
        won = np.cumsum(
            _agreeing(old, new, low, high, left).astype(np.int64)
            - _agreeing(old, new, low, high, right)
        )
        cuts.append(low + int(np.argmax(np.r_[0, won])))
    cuts.append(len(new))
    for (_, _, distance), start, end in zip(runs, cuts[:-1], cuts[1:], strict=True):
        low, high = max(start, -distance), min(end, len(old) - distance)
        if low < high:
            yield Move(low, low + distance, high - low)


def _agreeing(old: Bytes, new: Bytes, low: int, high: int, distance: int) -> NDArray[np.bool_]:
    """Says of each byte [low, high) of the new file whether the old has it at that distance."""
    found = np.zeros(high - low, np.bool_)
    first, last = max(low, -distance), min(high, len(old) - distance)
    if first < last:
        same = new[first:last] == old[first + distance : last + distance]
        found[first - low : last - low] = same
    return found
