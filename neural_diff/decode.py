"""Turns a section into a change of elements, with the standard library alone.

This is the decoder of devices without numpy and the oracle that `decode_numpy` is tested against;
what the streams of a section are, `section` says. A change is carried out block by block, from the
first element of the section to the last, so that memory holds one section's streams and one block.
"""

import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from itertools import accumulate, compress
from operator import xor

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
        table, streams = codec.class_table(section, streams[0]), streams[1:]
    places, streams = _positions(section, streams, table or b"")
    mask, adds = (1 << region.width) - 1, section.op == "add"
    if adds:
        values: Sequence[Integers] = _residues(section, region, streams)
    else:
        values = [_integers(plane_join(streams[0], region), region)]
    if back:
        values = [[-one & mask for one in some] for some in values]
    put = _add if adds else _set
    told = codec.Told(section, places, values, table)
    pick = _ranked if told.ranked else _placed

    def change(elements: bytearray, first: int) -> None:
        # What classes are looked up by: the highest byte of every old element.
        keys = _keys(elements, region) if told.table else elements
        count = len(elements) // region.element_bytes
        raw = elements if region.width <= 8 else _integers(elements, region)
        for at, value, start in list(pick(told, first, keys, count)):
            put(raw, at, value, start, region)
        if isinstance(raw, array):
            elements[:] = _little_endian(raw).tobytes()
        told.check_end(first + count)

    return change


def _add(raw: MutableSequence[int], at: Integers, given: Integers, first: int, of: Region) -> None:
    mask = (1 << of.width) - 1
    if of.is_float:
        for place, residue in zip(at, given, strict=True):
            raw[place - first] = ordinal(ordinal(raw[place - first], of) + residue & mask, of)
        return
    for place, residue in zip(at, given, strict=True):
        place -= first
        raw[place] = raw[place] + residue & mask


def _set(raw: MutableSequence[int], at: Integers, given: Integers, first: int, of: Region) -> None:
    for place, new in zip(at, given, strict=True):
        raw[place - first] = new


def _placed(
    told: codec.Told, first: int, keys: bytearray, count: int
) -> Iterator[tuple[Integers, Integers, int]]:
    """Gives which of `count` elements from `first` on change, and the values, class by class.

    The third is from where places count; to subtract it from each before takes longer.
    """
    within = [_between(places, first, first + count) for places in told.places]
    if told.table is None:
        for places, value, here in zip(told.places, told.values, within, strict=True):
            yield places[here], value[here], first
        return
    at = array("I", [place - first for place in told.places[0][within[0]]])
    classes = bytes(map(keys.__getitem__, at)).translate(told.table)
    for number, value in enumerate(told.values):
        some = array("I", compress(at, classes.translate(_is(number))))
        start = told.use(number, len(some))
        yield some, value[start : start + len(some)], 0


def _ranked(
    told: codec.Told, first: int, keys: bytearray, count: int
) -> Iterator[tuple[Integers, Integers, int]]:
    """Gives the same where places are ranks among the elements of a class."""
    assert told.table is not None
    classes = keys.translate(told.table)
    for number, (ranks, value) in enumerate(zip(told.places, told.values, strict=True)):
        members = array("I", compress(range(count), classes.translate(_is(number))))
        start = told.use(number, len(members))
        here = _between(ranks, start, start + len(members))
        yield array("I", [members[rank - start] for rank in ranks[here]]), value[here], 0


def _between(rising: Integers, low: int, high: int) -> slice:
    """Gives where numbers of [low, high) are among numbers that rise."""
    return slice(bisect_left(rising, low), bisect_left(rising, high))


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
    section: Section, streams: Sequence[bytes], table: bytes
) -> tuple[list[Integers], Sequence[bytes]]:
    """Gives the changed places of each class (of one, if not class-gaps), and the other streams.

    Places count from the section's first element or, where old values tell, within the class.
    """
    if section.codec == CLASS_GAPS:
        tokens, (bits, *values) = streams[: section.classes], streams[section.classes :]
        found: list[Integers] = [*_rising(tokens, bits, section.count)]
        return (list(_in_runs(found, table, section)) if section.runs else found), values
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


def _in_runs(ranked: list[Integers], table: bytes, section: Section) -> Iterator[Integers]:
    """Turns ranks among the elements of a class of runs into places."""
    run, classes = section.params["run"], range(section.classes)
    starts = [[at * run for at, one in enumerate(table) if one == number] for number in classes]
    codec.check_used(codec.reached(ranked), [run * len(some) for some in starts])
    for some, ranks in zip(starts, ranked, strict=True):
        places = array("I", [some[rank // run] + rank % run for rank in ranks])
        codec.check_last(places[-1] if places else -1, section.count)
        yield places


def _rising(streams: Sequence[bytes], bits: bytes, limit: int) -> "list[array[int]]":
    """Gives the places that each stream's gaps lead to; refuses any that is not below a limit."""
    found, last = [array("I") for _ in streams], [-1] * len(streams)
    for number, gaps in numbers(streams, bits, GAP_LITERAL_BITS, 1):
        gaps[0] += last[number]
        last[number] = sum(gaps)
        if last[number] < limit:
            found[number].extend(accumulate(gaps))
    for reached in last:
        codec.check_last(reached, limit)
    return found


def _residues(section: Section, region: Region, streams: Sequence[bytes]) -> "Sequence[Integers]":
    """Decodes what is added modulo 2^width, for each class."""
    if "paired" in section.params:
        return list(codec.unpaired(streams, section.changes))
    tokens, (bits, signs) = streams[: section.classes], streams[section.classes :]
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
