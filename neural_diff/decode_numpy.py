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
    check_last,
    check_magnitude,
    raw_bit_counts,
    token_table,
)
from neural_diff.decode import Change
from neural_diff.hashed import check_bucket, locate
from neural_diff.region import Region
from neural_diff.section import Section
from neural_diff.view import ordinal, plane_join

_HASHED_STEP = 1 << 16  # elements; what one step needs stays in the processor's cache

Integers = NDArray[np.int64]
Raw = NDArray[np.unsignedinteger]


def change_of(section: Section, region: Region, streams: Sequence[bytes]) -> Change:
    """Decodes a section's streams to a change.

    Raises:
        Malformed: the streams break a rule of their codec.
    """
    return _CHANGES[section.way](section, region, streams)


def elements_of(stored: bytearray | NDArray[np.uint8], region: Region) -> Raw:
    """Gives elements as unsigned integers of shape (count,) that share the memory of `stored`."""
    return np.frombuffer(stored, f"<u{region.element_bytes}")


def _add(section: Section, region: Region, streams: Sequence[bytes]) -> Change:
    places = _positions(section, streams)
    residues = _signed(streams[2:], least=1, width=region.width).astype(f"<u{region.element_bytes}")
    mask = (1 << region.width) - 1

    def change(elements: bytearray, first: int) -> None:
        raw = elements_of(elements, region)
        low, high = np.searchsorted(places, (first, first + len(raw)))
        at = places[low:high] - first
        new = (ordinal(raw[at], region) + residues[low:high]) & mask
        raw[at] = ordinal(new, region)

    return change


def _set(section: Section, region: Region, streams: Sequence[bytes]) -> Change:
    places = _positions(section, streams)
    new = elements_of(plane_join(streams[2], region), region)

    def change(elements: bytearray, first: int) -> None:
        raw = elements_of(elements, region)
        low, high = np.searchsorted(places, (first, first + len(raw)))
        raw[places[low:high] - first] = new[low:high]

    return change


def _replace(section: Section, region: Region, streams: Sequence[bytes]) -> Change:
    new = elements_of(plane_join(streams[0], region), region)
    flip = section.params["xor"]

    def change(elements: bytearray, first: int) -> None:
        raw = elements_of(elements, region)
        given = new[first : first + len(raw)]
        raw[:] = raw ^ given if flip else given

    return change


def _hashed(section: Section, region: Region, streams: Sequence[bytes]) -> Change:
    buckets = _buckets(streams)
    seed, fraction_bits = section.params["seed"], section.params["fraction_bits"]
    mask = (1 << region.width) - 1
    half = 1 << (region.width - 1)
    wide = np.dtype(np.int64 if region.width == 32 else np.int32)

    def change(elements: bytearray, first: int) -> None:
        raw = elements_of(elements, region)
        for low in range(0, len(raw), _HASHED_STEP):
            some = raw[low : low + _HASHED_STEP]
            place, sign, dither = locate(seed, first + low, len(some), len(buckets), fraction_bits)
            # Subtracting `half` modulo 2^width after adding it is what sign-extends.
            code = (some.astype(wide) + (half - region.bias)) & mask
            code -= half
            code += (sign * buckets[place] + dither) >> fraction_bits
            np.clip(code, region.lo, region.hi, out=code)
            some[:] = (code + region.bias) & mask

    return change


_CHANGES = {"add": _add, "set": _set, "replace": _replace, "hashed": _hashed}


def _positions(section: Section, streams: Sequence[bytes]) -> Integers:
    gaps = _numbers(streams[0], streams[1], GAP_LITERAL_BITS)
    # At most 4 Mi gaps below 2^32: the sum stays below 2^54.
    check_last(int(gaps.sum()) + len(gaps) - 1, section.count)
    return np.cumsum(gaps + 1) - 1


def _buckets(streams: Sequence[bytes]) -> NDArray[np.int32]:
    found = _signed(streams, least=0, width=16)
    check_bucket(int(found.max()))
    return found.astype(np.int32)


def _signed(streams: Sequence[bytes], least: int, width: int) -> Integers:
    """Decodes magnitudes of `least` or more, and a sign bit for each that is not zero."""
    tokens, bits, signs = streams
    found = _numbers(tokens, bits, VALUE_LITERAL_BITS) + least
    check_magnitude(int(found.max()), width)
    given = found != 0
    count = int(np.count_nonzero(given))
    check_bits(signs, count)
    # From a mask of those that have a sign to a mask of those whose sign is minus.
    given[given] = np.unpackbits(np.frombuffer(signs, np.uint8), count=count, bitorder="little")
    np.negative(found, out=found, where=given)
    return found


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
