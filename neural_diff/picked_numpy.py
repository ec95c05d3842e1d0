"""Which elements of a piece a sparse section changes, and the value of each, with numpy.

Where places are ranks among the elements of a class of old values, every element must be looked at,
whatever changes. Classes that are ranges of sizes cost little: a register full of elements is
compared at once, and counted 64 to a word. Other tables cost a sort.
"""

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from neural_diff.codec import Told
from neural_diff.region import Region
from neural_diff.view_numpy import Integers, Raw, sizes_of

_LANES = np.uint64(0x0101010101010101)  # a one in each byte
_TOPS = np.uint64(0x8080808080808080)
_FLAGS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
# Of a byte and a rank among its flags (8 * byte + rank): which flag that is.
_NTH = np.argsort(1 - _FLAGS, axis=1, kind="stable").astype(np.uint8).ravel()

Pick = Callable[[int, NDArray[np.uint8]], tuple[Integers, Raw]]
"""Gives which of the elements from one on, given their keys, change; and the value of each."""


def pick_of(told: Told, region: Region) -> Pick:
    """Gives the way to pick what changes that suits a section."""
    if not told.ranked:
        return partial(_placed, told)
    of = np.frombuffer(told.table or b"", np.uint8)[: 16 if region.width == 4 else 256]
    sizes = sizes_of(np.arange(len(of), dtype=np.uint8), region)
    least = [sizes[of >= number].min(initial=255) for number in range(1, len(told.values))]
    if (np.searchsorted(least, sizes, side="right") == of).all():
        return partial(_by_size, told, region, least)
    return partial(_sorted, told)


def _placed(told: Told, first: int, keys: NDArray[np.uint8]) -> tuple[Integers, Raw]:
    ends = first, first + len(keys)
    of = [slice(*(bisect_left(some, end) for end in ends)) for some in told.places]
    at = _joined([some[n] for some, n in zip(told.places, of, strict=True)]).astype(np.int64)
    at -= first
    if told.table is None:
        return at, _joined([some[n] for some, n in zip(told.values, of, strict=True)])
    order, bounds = _grouped(told, keys.take(at))
    counts = [high - low for low, high in pairwise(bounds)]
    starts = [told.use(number, count) for number, count in enumerate(counts)]
    given = zip(told.values, starts, counts, strict=True)
    found = [values[start : start + count] for values, start, count in given]
    return at.take(order), np.concatenate(found)


def _joined(parts: list[Raw]) -> Raw:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _sorted(told: Told, first: int, keys: NDArray[np.uint8]) -> tuple[Integers, Raw]:
    members, bounds = _grouped(told, keys)
    rank, found = _due(told, bounds)
    return members.take(rank), found


def _grouped(told: Told, keys: NDArray[np.uint8]) -> tuple[Integers, list[int]]:
    """Gives the elements of each class in order, one class after the other, and where each begins.

    A stable sort of numbers of 8 bits is one by radix, at 1.5 ns each.
    """
    classes = np.frombuffer(keys.tobytes().translate(told.table), np.uint8)
    order = np.argsort(classes, kind="stable")
    edges = np.arange(len(told.values) + 1, dtype=np.uint8)
    return order, np.searchsorted(classes, edges, sorter=order).tolist()


def _by_size(
    told: Told, region: Region, least: list[np.uint8], first: int, keys: NDArray[np.uint8]
) -> tuple[Integers, Raw]:
    sizes, count, row = sizes_of(keys, region), len(keys), -(-len(keys) // 64)
    # Rows of flags, 64 to a word: of no element; of those below each class but the first; of all.
    flags = np.zeros((len(least) + 2, 8 * row), np.uint8)
    for below, size in zip(flags[1:], least, strict=False):
        below[: -(-count // 8)] = np.packbits(sizes < size, bitorder="little")
    flags[-1] = 255
    words = flags.view("<u8")
    words[-1, -1] >>= -count % 64
    members = (words[1:] ^ words[:-1]).ravel()
    ends = np.bitwise_count(members).cumsum(dtype=np.int64)
    rank, found = _due(told, [0, *ends[row - 1 :: row].tolist()])
    # The word that a rank falls into; how many flags it has up to the end of each of its bytes; the
    # byte, after all of those whose flags come before the rank; and the flag within the byte.
    at = ends.searchsorted(rank, side="right")
    word = members.take(at)
    upto = np.bitwise_count(word.view(np.uint8)).view(np.uint64) * _LANES
    rank -= ends.take(at)
    rest = rank.view(np.uint64) + (upto >> np.uint64(56))
    before = (rest * _LANES | _TOPS) - upto & _TOPS
    shift = np.bitwise_count(before).astype(np.uint64) << np.uint64(3)
    rest -= upto << np.uint64(8) >> shift & np.uint64(255)
    rest |= (word >> shift & np.uint64(255)) << np.uint64(3)
    at %= row
    at <<= 6
    at += shift.view(np.int64)
    at += _NTH.take(rest.view(np.int64))
    return at, found


def _due(told: Told, bounds: list[int]) -> tuple[Integers, Raw]:
    """Takes the ranks that are reached, class by class, and their values.

    They come as ranks among all elements, those of one class after those of another (`bounds`).
    """
    ranked, found, left = [], [], []
    for number, (low, high) in enumerate(pairwise(bounds)):
        start = told.use(number, high - low)
        ranks, values = told.places[number], told.values[number]
        reached = bisect_left(ranks, told.used[number])
        ranked.append(ranks[:reached].astype(np.int64) + (low - start))
        found.append(values[:reached])
        left.append((ranks[reached:], values[reached:]))
    told.places, told.values = zip(*left, strict=True)
    return np.concatenate(ranked), np.concatenate(found)
