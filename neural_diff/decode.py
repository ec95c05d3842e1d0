"""Turns a section into a change of elements, with the standard library alone.

This is the decoder of devices without numpy and the oracle that `decode_numpy` is tested against;
what the streams of a section are, `section` says. A change is carried out block by block, from the
first element of the section to the last, so that memory holds one section's streams and one block.
"""

import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from itertools import accumulate, compress, count, pairwise
from operator import add, xor

from neural_diff import codec
from neural_diff.codec import GAP_LITERAL_BITS, VALUE_LITERAL_BITS, numbers
from neural_diff.hashed import check_bucket, locate_one
from neural_diff.region import Region
from neural_diff.section import BLOCK_ELEMENTS, BLOCKS, CLASS_GAPS, Section
from neural_diff.view import ordinal, plane_join

Change = Callable[[bytearray, int], None]
"""Changes a block of elements in place; the second argument is the index of its first element,
counted from the section's first. Blocks must come in order, each once."""

Integers = Sequence[int]
_Work = Callable[[MutableSequence[int], int], None]  # the same, of elements as integers
_TYPES = {1: "B", 2: "H", 4: "I"}  # of an array, by the bytes of an element
_BITS = [bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256)]


def change_of(
    section: Section, region: Region, streams: Sequence[bytes], back: bool = False
) -> Change:
    """Decodes a section's streams to a change; `back` undoes what the section adds.

    Raises:
        Malformed: the streams break a rule of their codec.
    """
    if section.way == "replace":
        return _on_integers(_replace(section, region, streams), region)
    if section.op == "hashed":
        return _on_integers(_hashed(section, region, streams), region)
    return _sparse(section, region, streams, back)


def _sparse(section: Section, region: Region, streams: Sequence[bytes], back: bool) -> Change:
    table = None
    if section.classes > 1:
        codec.check_table(streams[0], section.classes)
        table, streams = streams[0].ljust(256, b"\0"), streams[1:]
    places, streams = _positions(section, streams)
    mask, adds = (1 << region.width) - 1, section.op == "add"
    if adds:
        values = _residues(section, region, streams)
    else:
        values = [_integers(plane_join(streams[0], region), region)]
    if back:
        values = [[-one & mask for one in some] for some in values]
    put = _add if adds else _set
    pick = _ranked if section.codec == CLASS_GAPS else _placed
    used = [0] * section.classes

    def change(elements: bytearray, first: int) -> None:
        # What classes are looked up by: the highest byte of every old element.
        keys = _keys(elements, region) if table else elements
        count = len(elements) // region.element_bytes
        raw = elements if region.width <= 8 else _integers(elements, region)
        for at, value in list(pick(places, values, table, used, first, keys, count)):
            put(raw, at, value, region)
        if isinstance(raw, array):
            elements[:] = _little_endian(raw).tobytes()
        if table and first + count == section.count:
            needed = [len(some) for some in values]
            if section.codec == CLASS_GAPS:
                needed = [ranks[-1] + 1 if len(ranks) else 0 for ranks in places]
            codec.check_used(needed, used)

    return change


def _add(raw: MutableSequence[int], places: Integers, residues: Integers, region: Region) -> None:
    mask = (1 << region.width) - 1
    if region.is_float:
        for place, residue in zip(places, residues, strict=True):
            raw[place] = ordinal(ordinal(raw[place], region) + residue & mask, region)
        return
    for place, residue in zip(places, residues, strict=True):
        raw[place] = raw[place] + residue & mask


def _set(raw: MutableSequence[int], places: Integers, given: Integers, region: Region) -> None:
    for place, new in zip(places, given, strict=True):
        raw[place] = new


def _placed(
    places: list[Integers],
    values: list[Integers],
    table: bytes | None,
    used: list[int],
    first: int,
    keys: bytearray,
    count: int,
) -> Iterator[tuple[Integers, Integers]]:
    """Gives which of `count` elements from `first` on change, and the values, class by class."""
    low, high = (bisect_left(places[0], place) for place in (first, first + count))
    at = array("I", [place - first for place in places[0][low:high]])
    if table is None:
        yield at, values[0][low:high]
        return
    classes = bytes(map(keys.__getitem__, at)).translate(table)
    for number, value in enumerate(values):
        some = array("I", compress(at, classes.translate(_is(number))))
        start, used[number] = used[number], used[number] + len(some)
        codec.check_used([used[number]], [len(value)])
        yield some, value[start : used[number]]


def _ranked(
    places: list[Integers],
    values: list[Integers],
    table: bytes | None,
    used: list[int],
    first: int,
    keys: bytearray,
    count: int,
) -> Iterator[tuple[Integers, Integers]]:
    """Gives the same where places are ranks among the elements of a class."""
    assert table is not None
    classes = keys.translate(table)
    for number, (ranks, value) in enumerate(zip(places, values, strict=True)):
        members = array("I", compress(range(count), classes.translate(_is(number))))
        start, used[number] = used[number], used[number] + len(members)
        low, high = (bisect_left(ranks, rank) for rank in (start, used[number]))
        yield array("I", [members[rank - start] for rank in ranks[low:high]]), value[low:high]


def _keys(elements: bytearray, region: Region) -> bytearray:
    """Gives what classes are looked up by: an element's highest byte, a float's below its sign."""
    size = region.element_bytes
    highest = elements[size - 1 :: size]
    if not region.is_float:
        return highest
    return bytearray(
        (high << 1 | low >> 7) & 255
        for high, low in zip(highest, elements[size - 2 :: size], strict=True)
    )


def _positions(
    section: Section, streams: Sequence[bytes]
) -> tuple[list[Integers], Sequence[bytes]]:
    """Gives the changed places of each class (of one, if not class-gaps), and the other streams.

    Places count from the section's first element or, of class-gaps, within the class.
    """
    if section.codec == CLASS_GAPS:
        tokens, bits, *values = codec.joined(streams, section.classes)
        gaps = numbers(b"".join(tokens), bits, GAP_LITERAL_BITS)
        found: list[Integers] = []
        for start, end in _bounds(tokens):
            found.append(_rising(gaps[start:end], section.count))
        return found, values
    gaps = numbers(streams[0], streams[1], GAP_LITERAL_BITS)
    if section.codec != BLOCKS:
        return [_rising(gaps, section.count)], streams[2:]
    codec.check_blocks(streams[2], section.changes)
    starts = _rising(gaps, -(-section.count // BLOCK_ELEMENTS))
    bits = b"".join(map(_BITS.__getitem__, streams[2]))
    places = array("I")
    for number, start in enumerate(starts):
        block = bits[number * BLOCK_ELEMENTS : (number + 1) * BLOCK_ELEMENTS]
        places.extend(compress(range(start * BLOCK_ELEMENTS, (start + 1) * BLOCK_ELEMENTS), block))
    codec.check_last(places[-1], section.count)
    return [places], streams[3:]


def _rising(gaps: Sequence[int], count_max: int) -> "array[int]":
    """Gives the places that gaps lead to; refuses any that is not below `count_max`."""
    codec.check_last(sum(gaps) + len(gaps) - 1, count_max)
    return array("I", map(add, accumulate(gaps), count()))


def _residues(section: Section, region: Region, streams: Sequence[bytes]) -> list[Integers]:
    """Decodes what is added modulo 2^width, for each class."""
    if "paired" in section.params:
        return list(codec.unpaired(streams, section.changes))
    tokens, bits, signs = codec.joined(streams, section.classes)
    given, minus = _signed(b"".join(tokens), bits, signs, 1, region.width)
    mask = (1 << region.width) - 1
    found = array(
        _TYPES[region.element_bytes],
        [mask - one if less else one + 1 for one, less in zip(given, minus, strict=False)],
    )
    return [found[start:end] for start, end in _bounds(tokens)]


def _bounds(streams: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    return pairwise(accumulate(map(len, streams), initial=0))


def _replace(section: Section, region: Region, streams: Sequence[bytes]) -> _Work:
    new = _integers(plane_join(streams[0], region), region)
    flip = section.params["xor"]

    def work(raw: MutableSequence[int], first: int) -> None:
        given = new[first : first + len(raw)]
        raw[:] = array(new.typecode, map(xor, raw, given)) if flip else given

    return work


def _hashed(section: Section, region: Region, streams: Sequence[bytes]) -> _Work:
    tokens, bits, signs = streams
    given, minus = _signed(codec.bucket_tokens(section, tokens), bits, signs, 0, 16)
    less = iter(minus)
    buckets = [one and (-one if next(less) else one) for one in given]
    check_bucket(max(buckets))
    seed, fraction_bits = section.params["seed"], section.params["fraction_bits"]
    mask, half = (1 << region.width) - 1, 1 << (region.width - 1)

    def work(raw: MutableSequence[int], first: int) -> None:
        for number, old in enumerate(raw):
            code = ((old - region.bias + half) & mask) - half
            place, sign, dither = locate_one(seed, first + number, len(buckets), fraction_bits)
            code += (sign * buckets[place] + dither) >> fraction_bits
            raw[number] = (min(max(code, region.lo), region.hi) + region.bias) & mask

    return work


def _signed(
    tokens: bytes, bits: bytes, signs: bytes, least: int, width: int
) -> tuple[list[int], bytes]:
    """Decodes magnitudes less `least`, and a sign byte for each that is not zero (1: minus)."""
    found = numbers(tokens, bits, VALUE_LITERAL_BITS)
    codec.check_magnitude(max(found) + least, width)
    codec.check_bits(signs, len(found) if least else len(found) - found.count(0))
    return found, b"".join(map(_BITS.__getitem__, signs))


def _on_integers(work: _Work, region: Region) -> Change:
    def change(elements: bytearray, first: int) -> None:
        raw = _integers(elements, region)
        work(raw, first)
        elements[:] = _little_endian(raw).tobytes()

    return change


def _is(number: int) -> bytes:
    return bytes(byte == number for byte in range(256))


def _integers(elements: bytearray, region: Region) -> "array[int]":
    return _little_endian(array(_TYPES[region.element_bytes], elements))


def _little_endian(words: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        words.byteswap()
    return words
