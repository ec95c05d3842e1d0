"""Encodes the difference of two runs of elements as a section (maker side).

Every way to say the difference that can pay is tried and the smallest kept, the first of equals, so
that the same input gives the same bytes. Where the changes are and what they are is said apart, so
the ways are tried apart too: positions as gaps, as bitmaps of blocks, or as gaps within each class
of old values; values of all changes alike, or of each class with a code of its own.

What classes are worth a try, `classes` says.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from neural_diff.classes import ONE_CLASS, Counts, entropy_bits, run_tables, tokens_of
from neural_diff.codec import GAP_LITERAL_BITS, VALUE_LITERAL_BITS, token_table
from neural_diff.packed import Encoded, Packed, pack
from neural_diff.region import Region
from neural_diff.section import BLOCK_ELEMENTS, BLOCKS, CLASS_GAPS, GAPS, HASHED, REPLACE
from neural_diff.view import ordinal, plane_split
from neural_diff.view_numpy import Integers, Raw, keys_of

_DENSE_SHARE = 0.5  # of elements changed, from which giving all of them may be smaller


def smallest(region: Region, old: Raw, new: Raw, changed: Integers) -> Encoded:
    """Gives the smallest encoding of the step from `old` to `new`.

    `old` and `new` are raw elements of shape (count,), unsigned and of the region's width;
    `changed` the indices at which they differ, at least one.
    """
    return min(_tries(region, old, new, changed), key=lambda tried: tried.cost)


def hashed(buckets: NDArray[np.int16], seed: int, fraction_bits: int) -> Encoded:
    """Encodes the buckets of a hashed section; `buckets` has shape (K,)."""
    params = {"buckets": len(buckets), "fraction_bits": fraction_bits, "seed": seed}
    tokens, *rest = _split_signed(buckets.astype(np.int64), 0)
    tries = [Encoded("hashed", HASHED, params, _packed([tokens, *rest]))]
    if max(tokens) < 16:
        pairs = _pair(np.frombuffer(tokens, np.uint8))
        tries.append(Encoded("hashed", HASHED, params | {"paired": 1}, _packed([pairs, *rest])))
    return min(tries, key=lambda tried: tried.cost)


def literal(data: bytes) -> Encoded:
    """Encodes bytes as they are, for an exact section."""
    return Encoded("exact", REPLACE, {"xor": 0}, _packed([data]))


def _tries(region: Region, old: Raw, new: Raw, changed: Integers) -> Iterator[Encoded]:
    distance = _signed_distance(old[changed], new[changed], region)
    dense = len(changed) >= _DENSE_SHARE * len(old)
    counts = Counts.of(old, changed, distance, region)
    # Unless the elements themselves are less than what would be said of their changes:
    if not dense or counts.bits(ONE_CLASS) < _literal_bits(new):
        yield from _sparse_tries(region, old, new, changed, distance, counts)
    if dense:
        # Which of the two is smaller is told by their entropies: coding both takes longer.
        flip, given = min(enumerate((new, old ^ new)), key=lambda tried: _literal_bits(tried[1]))
        planes = _packed([plane_split(given.tobytes(), region.element_bytes)])
        yield Encoded("set", REPLACE, {"xor": flip}, planes)


def _literal_bits(new: Raw) -> float:
    """Estimates what giving every element leads to, by the entropy of each of their bytes."""
    planes = new.view(np.uint8).reshape(-1, new.itemsize).T
    return sum(entropy_bits(np.bincount(plane, minlength=256)) for plane in planes)


def _sparse_tries(
    region: Region, old: Raw, new: Raw, changed: Integers, distance: Integers, counts: Counts
) -> Iterator[Encoded]:
    params = {"changes": len(changed)}
    places = min(_position_tries(changed, params), key=lambda tried: tried.cost)
    for values, said in _value_tries(region, [distance]):
        yield Encoded("add", places.codec, places.params | said, places.packed + values)
    if region.kind != "int" or len(changed) >= _DENSE_SHARE * len(old):
        planes = _packed([plane_split(new[changed].tobytes(), region.element_bytes)])
        yield Encoded("set", places.codec, places.params, places.packed + planes)
    # Values of all classes have the places that are the smallest, or ranks of their own.
    for table, run, ranked in (*counts.tables(), *run_tables(changed, len(old), 8 * places.cost)):
        yield from _classed(region, old, table, run, changed, distance, None if ranked else places)


def _classed(
    region: Region,
    old: Raw,
    table: NDArray[np.uint8],
    run: int,
    changed: Integers,
    distance: Integers,
    places: Encoded | None,
) -> Iterator[Encoded]:
    """Gives values by classes, of old values or of runs, and places given or by class as well."""
    lookup = pack(_pair(table) if run else table[: 16 if region.width == 4 else 256].tobytes())
    of = np.repeat(table, run)[: len(old)] if run else table[keys_of(old, region)]
    some = [np.flatnonzero(of[changed] == number) for number in range(int(of.max()) + 1)]
    if not places:
        ranks = (np.searchsorted(np.flatnonzero(of == n), changed[x]) for n, x in enumerate(some))
        gaps = [_gaps(each) for each in ranks]
        tokens, bits = _split_numbers(np.concatenate(gaps), GAP_LITERAL_BITS)
        packed = _packed([*_split_bytes(tokens, gaps), bits])
        places = Encoded("add", CLASS_GAPS, {"changes": len(changed)}, packed)
    params = places.params | {"classes": len(some)} | ({"run": run} if run else {})
    for values, paired in _value_tries(region, [distance[one] for one in some]):
        yield Encoded("add", places.codec, params | paired, (lookup, *places.packed, *values))


def _position_tries(changed: Integers, params: dict[str, int]) -> Iterator[Encoded]:
    gaps = _split_numbers(_gaps(changed), GAP_LITERAL_BITS)
    yield Encoded("add", GAPS, params, _packed(gaps))
    block = changed // BLOCK_ELEMENTS
    first = np.flatnonzero(np.diff(block, prepend=-1))
    flags = np.zeros((len(first), BLOCK_ELEMENTS), np.bool_)
    flags[np.cumsum(np.diff(block, prepend=-1) > 0) - 1, changed % BLOCK_ELEMENTS] = True
    active = _split_numbers(_gaps(block[first]), GAP_LITERAL_BITS)
    streams = [*active, _pack_flags(flags.reshape(-1))]
    yield Encoded("add", BLOCKS, params | {"blocks": len(first)}, _packed(streams))


def _gaps(places: Integers) -> Integers:
    return np.diff(places, prepend=-1) - 1


def _value_tries(
    region: Region, by_class: Sequence[Integers]
) -> Iterator[tuple[tuple[Packed, ...], dict[str, int]]]:
    """Gives the value streams of an `add` and their parameter: each class's tokens, or pairs."""
    tokens, bits, signs = _split_signed(np.concatenate(by_class), 1)
    yield _packed([*_split_bytes(tokens, by_class), bits, signs]), {}
    if region.width == 4:
        yield _packed([_pair(distance & 15) for distance in by_class]), {"paired": 1}


def _split_bytes(tokens: bytes, like: Sequence[Integers]) -> list[bytes]:
    ends = accumulate(map(len, like), initial=0)
    return [tokens[start:end] for start, end in pairwise(ends)]


def _pair(small: Integers | NDArray[np.uint8]) -> bytes:
    """Puts numbers below 16 into bytes, two in each; pairs come closer to the entropy."""
    even = np.append(small, np.zeros(len(small) % 2, np.uint8)).astype(np.uint8)
    return (even[::2] | even[1::2] << 4).tobytes()


def _packed(decoded: Sequence[bytes]) -> tuple[Packed, ...]:
    return tuple(pack(stream) for stream in decoded)


def _signed_distance(old: Raw, new: Raw, region: Region) -> Integers:
    """Gives the shortest way from old to new modulo 2^width; floats by their ordinals."""
    half = 1 << (region.width - 1)
    before, after = (ordinal(raw, region).astype(np.int64) for raw in (old, new))
    distance: Integers = ((after - before + half) & (2 * half - 1)) - half
    return distance


def _split_signed(values: Integers, least: int) -> tuple[bytes, bytes, bytes]:
    """Splits numbers of magnitude `least` or more into tokens, raw bits and signs (see `codec`)."""
    magnitudes = _split_numbers(np.abs(values) - least, VALUE_LITERAL_BITS)
    return *magnitudes, _pack_flags(values[values != 0] < 0)


def _split_numbers(values: Integers, literal_bits: int) -> tuple[bytes, bytes]:
    """Splits numbers below 2^32 into hybrid tokens and raw bits (see `codec`)."""
    tokens = tokens_of(values, literal_bits)
    longer = np.flatnonzero(tokens >= 1 << literal_bits)
    lowest, extra = (np.array(column) for column in token_table(literal_bits))
    need = extra[tokens[longer]]
    rest = (values[longer] - lowest[tokens[longer]]).astype("<u4")
    width = -(-int(need.max(initial=0)) // 8)
    held = np.ascontiguousarray(rest.view(np.uint8).reshape(-1, 4)[:, :width])
    bits = np.unpackbits(held, axis=1, bitorder="little")
    return tokens.tobytes(), _pack_flags(bits[np.arange(8 * width) < need[:, None]])


def _pack_flags(flags: NDArray[np.bool_] | NDArray[np.uint8]) -> bytes:
    return np.packbits(flags, bitorder="little").tobytes()
