"""Turns a section into a change of elements, with the standard library alone.

This is the decoder of devices without numpy and the oracle that `decode_numpy` is tested against;
what the streams of a section are, `section` says. A change is carried out block by block, from the
first element of the section to the last, so that memory holds one section's streams and one block.
"""

import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from itertools import accumulate, compress, count
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
_STEP = 1 << 13  # numbers that are whole objects of the language at a time
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
        values: Sequence[Integers] = _residues(section, region, streams)
    else:
        values = [_integers(plane_join(streams[0], region), region)]
    if back:
        values = [[-one & mask for one in some] for some in values]
    put = _add if adds else _set
    if section.codec == CLASS_GAPS:
        codec.check_alike(places, values)
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
    values: Sequence[Integers],
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
    values: Sequence[Integers],
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
        return list(_rising(tokens, bits, section.count)), values
    limit = section.count if section.codec != BLOCKS else -(-section.count // BLOCK_ELEMENTS)
    if section.codec == BLOCKS:
        codec.check_blocks(streams[2], section.changes)
    (places,) = _rising(streams[:1], streams[1], limit)
    if section.codec != BLOCKS:
        return [places], streams[2:]
    within, bitmaps = array("I"), streams[2]
    for number, start in enumerate(places):
        block = b"".join(map(_BITS.__getitem__, bitmaps[4 * number : 4 * number + 4]))
        first = start * BLOCK_ELEMENTS
        within.extend(compress(range(first, first + BLOCK_ELEMENTS), block))
    codec.check_last(within[-1], section.count)
    return [within], streams[3:]


def _rising(streams: Sequence[bytes], bits: bytes, limit: int) -> "list[array[int]]":
    """Gives the places that each stream's gaps lead to; refuses any that is not below a limit."""
    found, last = [array("I") for _ in streams], [-1] * len(streams)
    for number, gaps in numbers(streams, bits, GAP_LITERAL_BITS):
        places = list(map(add, accumulate(gaps), count(last[number] + 1)))
        last[number] = places[-1]
        if places[-1] < limit:
            found[number].extend(places)
    for reached in last:
        codec.check_last(reached, limit)
    return found


def _residues(section: Section, region: Region, streams: Sequence[bytes]) -> "Sequence[Integers]":
    """Decodes what is added modulo 2^width, for each class."""
    if "paired" in section.params:
        return list(codec.unpaired(streams, section.changes))
    tokens, bits, signs = codec.joined(streams, section.classes)
    mask = (1 << region.width) - 1
    found = [array(_TYPES[region.element_bytes]) for _ in tokens]
    # Of magnitude less one and sign, together a byte if the element is one.
    table = bytes([*range(1, 129), *(mask - one & 255 for one in range(128))])
    for number, given, minus in _signed(tokens, bits, signs, 1, region.width):
        if region.element_bytes == 1:
            both = int.from_bytes(bytes(given), "little") | int.from_bytes(minus, "little") << 7
            found[number].frombytes(both.to_bytes(len(given), "little").translate(table))
            continue
        pairs = zip(given, minus, strict=True)
        found[number].extend([mask - one if less else one + 1 for one, less in pairs])
    return found


def _replace(section: Section, region: Region, streams: Sequence[bytes]) -> _Work:
    new = _integers(plane_join(streams[0], region), region)
    flip = section.params["xor"]

    def work(raw: MutableSequence[int], first: int) -> None:
        given = new[first : first + len(raw)]
        raw[:] = array(new.typecode, map(xor, raw, given)) if flip else given

    return work


def _hashed(section: Section, region: Region, streams: Sequence[bytes]) -> _Work:
    tokens, bits, signs = streams
    buckets: list[int] = []
    tokens = codec.bucket_tokens(section, tokens)
    for _, given, minus in _signed([tokens], bits, signs, 0, 16):
        less = iter(minus)
        buckets += [one and (-one if next(less) else one) for one in given]
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
    tokens: Sequence[bytes], bits: bytes, signs: bytes, least: int, width: int
) -> Iterator[tuple[int, list[int], bytes]]:
    """Decodes magnitudes less `least`, and a sign byte for each that is not zero (1: minus)."""
    largest = used = 0
    # Signs that are missing are noticed at the end, after a magnitude that is too large.
    less = b"".join(map(_BITS.__getitem__, signs)).ljust(sum(map(len, tokens)), b"\0")
    for number, given in numbers(tokens, bits, VALUE_LITERAL_BITS):
        largest = max(largest, max(given))
        signed = len(given) if least else len(given) - given.count(0)
        if largest + least <= 1 << (width - 1):
            yield number, given, less[used : used + signed]
        used += signed
    codec.check_magnitude(largest + least, width)
    codec.check_bits(signs, used)


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
