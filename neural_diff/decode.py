"""Turns a section into a change of elements, with the standard library alone.

This is the decoder of devices without numpy and the oracle that `decode_numpy` is tested against.
A change is applied block by block, so that memory holds one section's streams and one block.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence

from neural_diff.hashed import bucket_values, locate_one
from neural_diff.region import Region
from neural_diff.section import GAPS, HASHED, Section
from neural_diff.sparse import check_raw, is_float, ordinal, plane_join, positions, residues

Change = Callable[[bytearray, int], None]
"""Changes a block of elements in place; the second argument is the index of its first element,
counted from the section's first."""


def change_of(section: Section, region: Region, streams: Sequence[bytes]) -> Change:
    """Decodes a section's streams to a change.

    Raises:
        Malformed: the streams break a rule of their codec.
    """
    if section.codec == HASHED:
        return _hashed(section, region, bucket_values(streams))
    if section.codec != GAPS:
        return _replace(section, region, streams[0])
    if section.op == "set":
        return _set(region, positions(section, streams), streams[2])
    return _add(region, positions(section, streams), residues(streams, region.width))


def _add(region: Region, places: "array[int]", distances: "array[int]") -> Change:
    size, mask = region.element_bytes, (1 << region.width) - 1

    def add_bytes(elements: bytearray, first: int) -> None:
        low, high = _within(places, first, len(elements))
        for place, distance in zip(places[low:high], distances[low:high], strict=True):
            elements[place - first] = (elements[place - first] + distance) & mask

    def add_words(elements: bytearray, first: int) -> None:
        low, high = _within(places, first, len(elements) // size)
        for place, distance in zip(places[low:high], distances[low:high], strict=True):
            at = slice((place - first) * size, (place - first + 1) * size)
            raw = int.from_bytes(elements[at], "little")
            if is_float(region):
                raw = ordinal((ordinal(raw, region.width) + distance) & mask, region.width)
            else:
                raw = (raw + distance) & mask
            elements[at] = raw.to_bytes(size, "little")

    return add_bytes if size == 1 else add_words


def _set(region: Region, places: "array[int]", planes: bytes) -> Change:
    size = region.element_bytes
    raw = plane_join(planes, size)
    check_raw(raw, region.width)

    def change(elements: bytearray, first: int) -> None:
        low, high = _within(places, first, len(elements) // size)
        for number in range(low, high):
            at = (places[number] - first) * size
            elements[at : at + size] = raw[number * size : (number + 1) * size]

    return change


def _replace(section: Section, region: Region, planes: bytes) -> Change:
    size = region.element_bytes
    raw = plane_join(planes, size)
    check_raw(raw, region.width)
    flip = section.params["xor"]

    def change(elements: bytearray, first: int) -> None:
        new = raw[first * size : first * size + len(elements)]
        if flip:
            mixed = int.from_bytes(elements, "little") ^ int.from_bytes(new, "little")
            new[:] = mixed.to_bytes(len(elements), "little")
        elements[:] = new

    return change


def _hashed(section: Section, region: Region, buckets: "array[int]") -> Change:
    size, seed = region.element_bytes, section.params["seed"]
    fraction_bits, lo, hi = section.params["fraction_bits"], region.lo, region.hi
    mask, half = (1 << region.width) - 1, 1 << (region.width - 1)

    def change(elements: bytearray, first: int) -> None:
        for number in range(len(elements) // size):
            at = slice(number * size, (number + 1) * size)
            code = int.from_bytes(elements[at], "little") - region.bias
            code = ((code + half) & mask) - half
            place, sign, dither = locate_one(seed, first + number, len(buckets), fraction_bits)
            code += (sign * buckets[place] + dither) >> fraction_bits
            raw = (min(max(code, lo), hi) + region.bias) & mask
            elements[at] = raw.to_bytes(size, "little")

    return change


def _within(places: "array[int]", first: int, count: int) -> tuple[int, int]:
    """Gives which of the places lie in a block."""
    return bisect_left(places, first), bisect_left(places, first + count)
