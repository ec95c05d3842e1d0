"""Turns a section into a change of elements, with numpy: the same bytes as `decode`, faster.

Whatever `decode` refuses this refuses too, by the same checks. All arithmetic that may wrap is
modulo a power of two on unsigned types; what may not is bounded before it is cast.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neural_diff.codec import (
    GAP_LITERAL_BITS,
    VALUE_LITERAL_BITS,
    check_bits,
    raw_bit_counts,
    token_table,
)
from neural_diff.decode import Change
from neural_diff.hashed import check_bucket, locate
from neural_diff.region import Region
from neural_diff.section import GAPS, HASHED, Section
from neural_diff.sparse import check_last, check_magnitude, check_raw, is_float, plane_join

_HASHED_STEP = 1 << 16  # elements; what one step needs stays in the processor's cache

Integers = NDArray[np.int64]


def change_of(section: Section, region: Region, streams: Sequence[bytes]) -> Change:
    """Decodes a section's streams to a change.

    Raises:
        Malformed: the streams break a rule of their codec.
    """
    if section.codec == HASHED:
        return _hashed(section, region, _bucket_values(streams))
    if section.codec != GAPS:
        return _replace(section, region, streams[0])
    if section.op == "set":
        return _set(region, _positions(section, streams), streams[2])
    return _add(region, _positions(section, streams), _residues(streams, region.width))


def _add(region: Region, places: Integers, distances: Integers) -> Change:
    kind = _kind(region)
    residues = distances.astype(kind)
    mask = kind.type((1 << region.width) - 1)

    def change(elements: bytearray, first: int) -> None:
        raw = np.frombuffer(elements, kind)
        low, high = np.searchsorted(places, (first, first + len(raw)))
        at = places[low:high] - first
        old = _ordinal(raw[at], region)
        raw[at] = _ordinal((old + residues[low:high]) & mask, region)

    return change


def _set(region: Region, places: Integers, planes: bytes) -> Change:
    new = np.frombuffer(_raw(region, planes), _kind(region))

    def change(elements: bytearray, first: int) -> None:
        raw = np.frombuffer(elements, new.dtype)
        low, high = np.searchsorted(places, (first, first + len(raw)))
        raw[places[low:high] - first] = new[low:high]

    return change


def _replace(section: Section, region: Region, planes: bytes) -> Change:
    new = np.frombuffer(_raw(region, planes), _kind(region))
    flip = section.params["xor"]

    def change(elements: bytearray, first: int) -> None:
        raw = np.frombuffer(elements, new.dtype)
        given = new[first : first + len(raw)]
        raw[:] = raw ^ given if flip else given

    return change


def _hashed(section: Section, region: Region, buckets: NDArray[np.int32]) -> Change:
    kind, seed = _kind(region), section.params["seed"]
    fraction_bits, lo, hi = section.params["fraction_bits"], region.lo, region.hi
    half = 1 << (region.width - 1)
    wide = np.dtype(np.int64 if region.width == 32 else np.int32)

    def change(elements: bytearray, first: int) -> None:
        raw = np.frombuffer(elements, kind)
        for low in range(0, len(raw), _HASHED_STEP):
            some = raw[low : low + _HASHED_STEP]
            place, sign, dither = locate(seed, first + low, len(some), len(buckets), fraction_bits)
            # Subtracting `half` modulo 2^width after adding it is what sign-extends.
            code = (some.astype(wide) + (half - region.bias)) & ((1 << region.width) - 1)
            code -= half
            code += (sign * buckets[place] + dither) >> fraction_bits
            np.clip(code, lo, hi, out=code)
            some[:] = ((code + region.bias) & ((1 << region.width) - 1)).astype(kind)

    return change


def _positions(section: Section, streams: Sequence[bytes]) -> Integers:
    gaps = _numbers(streams[0], streams[1], GAP_LITERAL_BITS)
    # At most 4 Mi gaps below 2^32: the sum stays below 2^54.
    check_last(int(gaps.sum()) + len(gaps) - 1, section)
    return np.cumsum(gaps + 1) - 1


def _residues(streams: Sequence[bytes], width: int) -> Integers:
    distances = _numbers(streams[2], streams[3], VALUE_LITERAL_BITS) + 1
    check_magnitude(int(distances.max()), width)
    negative = _flags(streams[4], len(distances))
    distances[negative] = (1 << width) - distances[negative]
    return distances


def _bucket_values(streams: Sequence[bytes]) -> NDArray[np.int32]:
    values = _numbers(streams[0], streams[1], VALUE_LITERAL_BITS)
    given = np.flatnonzero(values)
    negative = given[_flags(streams[2], len(given))]
    values[negative] *= -1
    check_bucket(max(int(values.max()), -1 - int(values.min())))
    return values.astype(np.int32)


def _numbers(tokens: bytes, bits: bytes, literal_bits: int) -> Integers:
    """Decodes hybrid tokens to numbers below 2^32."""
    needs = np.frombuffer(raw_bit_counts(tokens, literal_bits), np.uint8)
    check_bits(bits, int(needs.sum(dtype=np.int64)))
    lowest = np.array(token_table(literal_bits)[0])
    found: Integers = lowest[np.frombuffer(tokens, np.uint8)]
    longer = np.flatnonzero(needs)
    if not len(longer):
        return found
    need = needs[longer].astype(np.int64)
    after = np.cumsum(need)
    starts = after - need
    held = np.frombuffer(bits + bytes(8), np.uint8)
    first = starts >> 3
    word = held[first].astype(np.int64)
    for byte in range(1, (int(need.max()) + 14) // 8):
        word |= held[first + byte].astype(np.int64) << (8 * byte)
    found[longer] += (word >> (starts & 7)) & ((1 << need) - 1)
    return found


def _flags(bits: bytes, count: int) -> NDArray[np.bool_]:
    check_bits(bits, count)
    held = np.frombuffer(bits, np.uint8)
    return np.unpackbits(held, count=count, bitorder="little").view(np.bool_)


def _kind(region: Region) -> np.dtype[np.unsignedinteger]:
    return np.dtype(f"<u{region.element_bytes}")


def _raw(region: Region, planes: bytes) -> bytearray:
    raw = plane_join(planes, region.element_bytes)
    check_raw(raw, region.width)
    return raw


def _ordinal(raw: NDArray[np.unsignedinteger], region: Region) -> NDArray[np.unsignedinteger]:
    if not is_float(region):
        return raw
    half = 1 << (region.width - 1)
    return np.where(raw & raw.dtype.type(half), raw ^ raw.dtype.type(half - 1), raw)
