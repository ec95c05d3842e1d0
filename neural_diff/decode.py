"""Turns a section into a change of elements, with the standard library alone.

This is the decoder of devices without numpy and the oracle that `decode_numpy` is tested against.
A change is applied block by block, so that memory holds one section's streams and one block.
"""

import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from operator import xor

from neural_diff.codec import GAP_LITERAL_BITS, check_last, numbers, signed
from neural_diff.hashed import check_bucket, locate_one
from neural_diff.region import Region
from neural_diff.section import Section
from neural_diff.view import ordinal, plane_join

Change = Callable[[bytearray, int], None]
"""Changes a block of elements in place; the second argument is the index of its first element,
counted from the section's first."""

_Work = Callable[["array[int]", int], None]  # the same, of elements as integers


def change_of(section: Section, region: Region, streams: Sequence[bytes]) -> Change:
    """Decodes a section's streams to a change.

    Raises:
        Malformed: the streams break a rule of their codec.
    """
    work = _WORKS[section.way](section, region, streams)

    def change(elements: bytearray, first: int) -> None:
        raw = _integers(elements, region)
        work(raw, first)
        elements[:] = _little_endian(raw).tobytes()

    return change


def _add(section: Section, region: Region, streams: Sequence[bytes]) -> _Work:
    places = _positions(section, streams)
    distances = signed(streams[2:], least=1, width=region.width)
    mask, is_float = (1 << region.width) - 1, region.is_float

    def work(raw: "array[int]", first: int) -> None:
        some = _within(places, first, len(raw))
        for place, distance in zip(places[some], distances[some], strict=True):
            if is_float:
                new = ordinal(raw[place - first], region) + distance & mask
                raw[place - first] = ordinal(new, region)
            else:
                raw[place - first] = raw[place - first] + distance & mask

    return work


def _set(section: Section, region: Region, streams: Sequence[bytes]) -> _Work:
    places = _positions(section, streams)
    new = _integers(plane_join(streams[2], region), region)

    def work(raw: "array[int]", first: int) -> None:
        some = _within(places, first, len(raw))
        for place, value in zip(places[some], new[some], strict=True):
            raw[place - first] = value

    return work


def _replace(section: Section, region: Region, streams: Sequence[bytes]) -> _Work:
    new = _integers(plane_join(streams[0], region), region)
    flip = section.params["xor"]

    def work(raw: "array[int]", first: int) -> None:
        given = new[first : first + len(raw)]
        raw[:] = array(raw.typecode, map(xor, raw, given)) if flip else given

    return work


def _hashed(section: Section, region: Region, streams: Sequence[bytes]) -> _Work:
    # The same bits, read as signed.
    buckets = array("i", signed(streams, least=0, width=16).tobytes())
    check_bucket(max(buckets))
    seed, fraction_bits = section.params["seed"], section.params["fraction_bits"]
    mask, half = (1 << region.width) - 1, 1 << (region.width - 1)

    def work(raw: "array[int]", first: int) -> None:
        for number, old in enumerate(raw):
            code = ((old - region.bias + half) & mask) - half
            place, sign, dither = locate_one(seed, first + number, len(buckets), fraction_bits)
            code += (sign * buckets[place] + dither) >> fraction_bits
            raw[number] = (min(max(code, region.lo), region.hi) + region.bias) & mask

    return work


_WORKS = {"add": _add, "set": _set, "replace": _replace, "hashed": _hashed}


def _positions(section: Section, streams: Sequence[bytes]) -> "array[int]":
    """Gives the changed elements, counted from the section's first, strictly increasing."""
    found = numbers(streams[0], streams[1], GAP_LITERAL_BITS)
    check_last(sum(found) + len(found) - 1, section.count)
    reached = -1
    for place, gap in enumerate(found):
        reached += gap + 1
        found[place] = reached
    return found


def _within(places: "array[int]", first: int, count: int) -> slice:
    """Gives which of the places lie in a block."""
    return slice(bisect_left(places, first), bisect_left(places, first + count))


def _integers(elements: bytearray, region: Region) -> "array[int]":
    return _little_endian(array({1: "B", 2: "H", 4: "I"}[region.element_bytes], elements))


def _little_endian(words: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        words.byteswap()
    return words
