"""Which classes of old values, or of rows, to tell apart when a change is encoded (maker side).

A class is a set of old values, as `view_numpy.keys_of` tells them apart. Three kinds of table are
looked at: values of a range of sizes together (it pays when changes follow magnitude, and costs a
device least), those that change equally often, or equally far (it pays for floats and for 4 bits);
each class gets about the same number of changes. The entropies of counts, and what the work of a
device is worth, say what a table leads to, so only the best need be tried in earnest; and the best
of another kind, of runs of elements.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neural_diff.codec import VALUE_LITERAL_BITS, token_table
from neural_diff.region import Region
from neural_diff.view_numpy import Integers, Raw, keys_of, sizes_of

# Lengths of runs that are looked at: what rows of a model usually have, multiples of the first.
_RUNS = (64, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096, 5120)
RUN_GRAIN = 15360  # elements, a multiple of most of them
KEYS_STEP = 1 << 20  # elements whose old values are counted, or ranked, at a time
ONE_CLASS = np.zeros(256, np.uint8)
_CODE_BYTES = 50  # of a class in the table, and of a code of its own
_TOKENS = 128
# What the work of a device is worth: to look up the class of a change; to look at every element,
# as ranks need, once for each class of sizes; or the sort that other classes need.
_CHANGE_BITS = 0.05
_LOOK_BITS = 6e-4
_SORT_LOOKS = 16

Tables = Iterator[tuple[NDArray[np.uint8], int, bool]]
"""A table of classes, the length of a run (0: of old values), and if positions go by it too."""


class Counts(NamedTuple):
    """How often each key of old values occurs and changes, and by which tokens (see `codec`)."""

    have: Integers  # shape (256,)
    moved: NDArray[np.int64]  # shape (256, tokens)
    distance: NDArray[np.float64]  # shape (256,): the mean of log2 of the distances
    size: NDArray[np.uint8]  # shape (256,): see `view_numpy.sizes_of`
    raw_bits: int  # of all changes

    @classmethod
    def of(cls, old: Raw, changed: Integers, distance: Integers, region: Region) -> "Counts":
        """Counts the old elements and the changes, which have shape (count,) and (changes,)."""
        have = np.zeros(256, np.int64)
        for first in range(0, len(old), KEYS_STEP):
            have += np.bincount(keys_of(old[first : first + KEYS_STEP], region), minlength=256)
        keys, size = keys_of(old[changed], region), np.abs(distance)
        # Of 4 bits, a change is said by its residue alone; else by a token and raw bits.
        tokens = distance & 15 if region.width == 4 else tokens_of(size - 1, VALUE_LITERAL_BITS)
        raw = 0 if region.width == 4 else np.array(token_table(VALUE_LITERAL_BITS)[1])[tokens] + 1
        moved = np.bincount(keys * np.int64(_TOKENS) + tokens, minlength=256 * _TOKENS)
        total = np.bincount(keys, np.log2(size), minlength=256)
        moved = moved.reshape(256, _TOKENS)
        distances = total / np.maximum(moved.sum(axis=1), 1)
        sizes = sizes_of(np.arange(256, dtype=np.uint8), region)
        return cls(have, moved, distances, sizes, int(np.sum(raw)))

    def bits(self, table: NDArray[np.uint8], looks: int = 0) -> float:
        """Estimates what a table of classes leads to, from the entropies of its parts.

        With `looks` of a device at every element, places are ranks within the classes.
        """
        classes = int(table.max()) + 1
        member = table == np.arange(classes)[:, None]
        moved = member @ self.moved
        changes = moved.sum(axis=1)
        values = entropy_bits(moved) + self.raw_bits
        have = member @ self.have
        support = [have, changes] if looks else [have.sum(), changes.sum()]
        places = entropy_bits(np.stack([support[1], support[0] - support[1]], axis=-1))
        codes = 8 * _CODE_BYTES * classes * (1 + (looks > 0))
        work = _LOOK_BITS * looks * have.sum() or _CHANGE_BITS * (classes > 1) * changes.sum()
        return float(values + places + codes + work)

    def tables(self) -> Tables:
        """Gives the best table of old values, if any pays."""
        changes = self.moved.sum(axis=1)
        rate = (changes + 8 * changes.sum() / self.have.sum()) / (self.have + 8)
        of_size = np.bincount(self.size, changes, minlength=256)
        tried = [(self.bits(ONE_CLASS), ONE_CLASS, 0)]
        for classes in (3, 4, 5, 8, 12, 16):
            for table, looks in (
                (_table(np.arange(256.0), of_size, classes)[self.size], classes),
                (_table(rate, changes, classes), _SORT_LOOKS),
                (_table(self.distance, changes, classes), 0),
            ):
                tried.append((self.bits(table, looks), table, looks))
        _, table, looks = min(tried, key=lambda one: one[0])
        if table.max():
            yield table, 0, bool(looks)


def run_tables(changed: Integers, count: int, known: float) -> Tables:
    """Gives the best table of runs of `count` elements, if any pays.

    A run is a row of a model, or a part of one: rows have scales, and change at their own rates.
    It must pay against the `known` bits of another way to say where the changes are.
    """
    alone = min(known, entropy_bits(np.array([count - len(changed), len(changed)])))
    tried = [(alone, ONE_CLASS, 0)]
    fine = np.bincount(changed // _RUNS[0], minlength=-(-count // _RUNS[0]))
    for run in (run for run in _RUNS if run <= count // 4):
        moved = np.add.reduceat(fine, np.arange(0, len(fine), run // _RUNS[0]))
        have = np.diff(np.append(np.arange(0, count, run), count))
        # By chance alone, rates of their own seem to gain 0.7 bits a run; to say a class costs one.
        if alone - entropy_bits(np.stack([moved, have - moved], axis=-1)) < 1.7 * len(have):
            continue
        for classes in (2, 3, 4):
            table = _table(moved / have, moved, classes)
            some, all_ = (np.bincount(table, of).astype(np.int64) for of in (moved, have))
            bits = entropy_bits(np.stack([some, all_ - some], axis=-1))
            bits += entropy_bits(np.bincount(table)) + 8 * _CODE_BYTES * (classes - 1)
            tried.append((bits, table, run))
    _, table, run = min(tried, key=lambda one: one[0])
    if run:
        yield table, run, True


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Gives the bits of an ideal code for symbols of these counts, a code of its own each row."""
    total = counts.sum(axis=-1, keepdims=True)
    share = counts / np.maximum(total, 1)
    return float(-(counts * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum())


def _table(order: NDArray[np.float64], moved: Integers, classes: int) -> NDArray[np.uint8]:
    """Puts the keys in an order and cuts it where each class has its share of the changes."""
    ranked = np.argsort(order, kind="stable")
    middle = np.cumsum(moved[ranked]) - moved[ranked] / 2
    table = np.zeros(len(order), np.uint8)
    table[ranked] = np.minimum(middle * classes // max(moved.sum(), 1), classes - 1)
    # Classes that no change belongs to are left out; keys without changes join a neighbour.
    used = np.unique(table[moved > 0])
    return np.minimum(np.searchsorted(used, table), len(used) - 1).astype(np.uint8)


def tokens_of(values: Integers, literal_bits: int) -> NDArray[np.uint8]:
    """Gives the hybrid tokens of numbers below 2^32 (see `codec`)."""
    lowest, few = _few_tokens(literal_bits)
    tokens = few.take(values, mode="clip")
    longer = np.flatnonzero(values >= len(few))
    tokens[longer] = np.searchsorted(lowest, values[longer], side="right") - 1
    return tokens


@cache
def _few_tokens(literal_bits: int) -> tuple[Integers, NDArray[np.uint8]]:
    lowest = np.array(token_table(literal_bits)[0])
    return lowest, (np.searchsorted(lowest, np.arange(1 << 12), side="right") - 1).astype(np.uint8)
