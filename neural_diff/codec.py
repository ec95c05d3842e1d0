"""Streams of a payload, and numbers as hybrid tokens.

A stream is stored as it is (raw), as one byte that repeats (constant), or deflated; the device
needs nothing but a bounded inflate.

A number below 2^literal_bits is its own token. A greater one, 2^e ≤ n < 2^(e+1), has a token of e
and the two bits after the leading one; the other e - 2 bits go to a stream of raw bits, lowest
bit first. The tokens are what deflate compresses; the raw bits are noise already.

Positions are gaps between successive elements, so they increase by construction; one comparison
of their sum with the section's length bounds them all. Differences and buckets are magnitudes and
sign bits; a difference has a magnitude of one or more: it cannot say zero.
"""

import zlib
from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate, compress
from typing import Any

from neural_diff.errors import Malformed
from neural_diff.section import CLASS_GAPS, CONSTANT, DEFLATE, Section, Stream
from neural_diff.view import HIGH_HALF, LOW_HALF

GAP_LITERAL_BITS = 4
VALUE_LITERAL_BITS = 3
_NUMBER_BITS_MAX = 32
_STEP = 1 << 11  # numbers that the plain decoder holds as objects at a time
_PLACES = list(range(_STEP))


def unpack(streams: tuple[Stream, ...], payload: bytes) -> list[bytes]:
    """Decodes every stream of a payload, each to exactly the length declared for it.

    Raises:
        Malformed: a deflated stream is no deflate, or is longer or shorter than declared.
    """
    found, start = [], 0
    for number, stream in enumerate(streams):
        stored = payload[start : start + stream.stored_bytes]
        start += stream.stored_bytes
        if stream.coding == CONSTANT:
            stored *= stream.decoded_bytes
        elif stream.coding == DEFLATE:
            stored = inflate(stored, stream.decoded_bytes)
            if len(stored) != stream.decoded_bytes:
                raise Malformed(f"stream {number} is shorter than declared")
        found.append(stored)
    return found


@cache
def token_table(literal_bits: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Gives for every token the smallest number it stands for and how many raw bits follow."""
    lowest, extra = list(range(1 << literal_bits)), [0] * (1 << literal_bits)
    for exponent in range(literal_bits, _NUMBER_BITS_MAX):
        for mantissa in range(4):
            lowest.append((4 + mantissa) << (exponent - 2))
            extra.append(exponent - 2)
    return tuple(lowest), tuple(extra)


def check_token(highest: int, literal_bits: int) -> None:
    """Refuses a token that stands for no number below 2^32."""
    if highest >= len(token_table(literal_bits)[0]):
        raise Malformed(f"token {highest} does not exist; the patch was made wrongly")


def check_bits(bits: bytes, total: int) -> None:
    """Refuses raw bits of another length, or with anything but zeros after the last."""
    if len(bits) != -(-total // 8) or (total % 8 and bits[-1] >> total % 8):
        raise Malformed(f"{len(bits)} bytes of raw bits where {total} bits are needed")


def numbers(
    streams: Sequence[bytes], bits: bytes, literal_bits: int, more: int = 0
) -> Iterator[tuple[int, list[int]]]:
    """Decodes streams of hybrid tokens to numbers below 2^32, and `more` (the plain decoder).

    Gives the number of a stream and some of its numbers, in order; only so many at a time are
    objects of the language, which take ten times the memory of what is kept.
    """
    lowest, extra = token_table(literal_bits)
    known, tables = bytes(range(len(extra))), bytes(extra).ljust(256, b"\0")
    check_token(max(max(some.translate(None, known), default=0) for some in streams), literal_bits)
    check_bits(bits, sum(sum(some.translate(tables)) for some in streams))
    rows = [
        _row(low + more, need) if any(token in some for some in streams) else ()
        for token, (low, need) in enumerate(zip(lowest, extra, strict=True))
    ]
    added, literals = bytes([*range(more, 256), *range(more)]), bytes(range(1 << literal_bits))
    wide, used = bytes(need > 8 for need in extra).ljust(256, b"\0"), 0
    for stream, first in ((n, f) for n, s in enumerate(streams) for f in range(0, len(s), _STEP)):
        tokens = streams[stream][first : first + _STEP]
        longer = tokens.translate(None, literals)
        # Picking the literals out of few costs more than to take them for numbers with no raw bits.
        some = tokens if 4 * len(longer) > len(tokens) else longer
        starts = list(accumulate(some.translate(tables), initial=used & 7))
        byte = _byte_at(bits[used >> 3 : (used + starts[-1] >> 3) + 1])
        used += starts[-1] - starts[0]
        found = [rows[token][byte[at]] for token, at in zip(some, starts, strict=False)]
        for place in compress(_PLACES, some.translate(wide)):
            upper = byte[starts[place] + 8 : starts[place] + 25 : 8]
            mask = (1 << extra[some[place]]) - 1
            found[place] += int.from_bytes(upper, "little") << 8 & mask
        if some is longer:
            found, rest = list(tokens.translate(added)), found
            places = compress(_PLACES, tokens.translate(tables))
            for place, number in zip(places, rest, strict=False):
                found[place] = number
        yield stream, found


@cache
def _row(least: int, need: int) -> tuple[int, ...]:
    """Gives the number of a token by the next byte of raw bits, of which it needs so many."""
    told = min(need, 8)
    return tuple(range(least, least + (1 << told))) * (256 >> told)


def _byte_at(bits: bytes) -> bytearray:
    """Gives, for every bit, the byte that begins there."""
    found, word = bytearray(8 * len(bits) + 32), int.from_bytes(bits, "little")
    for shift in range(8):
        found[shift : 8 * len(bits) : 8] = (word >> shift).to_bytes(len(bits), "little")
    return found


def halves(pairs: bytes) -> bytearray:
    """Takes numbers of 4 bits out of bytes that hold two, the first in the low half."""
    found = bytearray(2 * len(pairs))
    found[::2], found[1::2] = pairs.translate(LOW_HALF), pairs.translate(HIGH_HALF)
    return found


def bucket_tokens(section: Section, stream: bytes) -> bytes:
    """Gives the token of every bucket, which may have come in pairs."""
    return _first(stream, section.params["buckets"]) if "paired" in section.params else stream


def class_table(section: Section, stream: bytes) -> bytes:
    """Gives the class of every old value, or of every run, which come in pairs.

    Refuses a table that names a class that does not exist.
    """
    table = _first(stream, section.runs) if section.runs else stream
    if max(table) >= section.classes:
        raise Malformed(f"the table of {section.classes} classes names class {max(table)}")
    return table


def _first(pairs: bytes, count: int) -> bytes:
    """Takes so many numbers of 4 bits out of pairs; refuses any after the last."""
    found = halves(pairs)
    if any(found[count:]):
        raise Malformed(f"a number follows the last of {count}")
    return bytes(found[:count])


def unpaired(streams: Sequence[bytes], changes: int) -> list[bytes]:
    """Takes residues of 4 bits out of bytes that hold two, the first in the low half.

    Refuses them if there are not as many as changes, or if one of them is zero.
    """
    found = []
    for pairs in streams:
        residues = halves(pairs)
        found.append(bytes(residues[:-1] if residues and not residues[-1] else residues))
    if sum(map(len, found)) != changes or any(0 in residues for residues in found):
        raise Malformed(f"residues are not {changes}, or one changes nothing")
    return found


class Told:
    """What a sparse section says, and how many elements of each class have come by.

    `places` and `values` are those of each class (or of one). `table` gives the class of an old
    value; it is None if classes do not depend on old values.
    """

    def __init__(
        self, section: Section, places: Sequence[Any], values: Sequence[Any], table: bytes | None
    ) -> None:
        """Refuses classes that do not have as many values as places."""
        self.places, self.values, self.used = places, values, [0] * section.classes
        self.table = table.ljust(256, b"\0") if table and section.looks else None
        self.ranked = self.table is not None and section.codec == CLASS_GAPS
        self._count = section.count
        if section.codec == CLASS_GAPS and list(map(len, places)) != list(map(len, values)):
            raise Malformed("a class does not have as many places as values")
        self._needed = reached(places) if self.ranked else list(map(len, values))

    def use(self, number: int, count: int) -> int:
        """Counts elements of a class, or changed ones of it; gives how many there were before."""
        before = self.used[number]
        self.used[number] += count
        if not self.ranked and self.used[number] > self._needed[number]:
            check_used(self.used, self._needed)
        return before

    def check_end(self, end: int) -> None:
        """Refuses, at the end of the section, what no element has taken."""
        if self.table and end == self._count:
            check_used(self._needed, self.used)


def reached(ranked: Sequence[Any]) -> list[int]:
    """Gives how many elements of each class ranks ask for."""
    return [int(ranks[-1]) + 1 if len(ranks) else 0 for ranks in ranked]


def check_used(needed: Sequence[int], given: Sequence[int]) -> None:
    """Refuses classes that have fewer elements than are to change, or values that none takes."""
    for number, (wanted, found) in enumerate(zip(needed, given, strict=True)):
        if wanted > found:
            raise Malformed(f"class {number}: {wanted} are needed, {found} given")


def check_blocks(bitmaps: bytes, changes: int) -> None:
    """Refuses bitmaps of another number of changes, or a block without any."""
    given = int.from_bytes(bitmaps, "little").bit_count()
    if given != changes or 0 in array("I", bitmaps):
        raise Malformed(f"bitmaps of {given} changes where {changes} are, or an empty one")


def check_last(last: int, count: int) -> None:
    """Refuses positions that leave a section of `count` elements."""
    if last >= count:
        raise Malformed(f"a section of {count} elements changes its element {last}")


def check_magnitude(largest: int, width: int) -> None:
    """Refuses a distance that 2^width values cannot have."""
    if largest > 1 << (width - 1):
        raise Malformed(f"a change by {largest} does not fit in {width} bits")


def inflate(stored: bytes, length_max: int) -> bytes:
    """Inflates one whole deflated stream to at most `length_max` bytes, with nothing after it."""
    decoded, rest = inflate_first(stored, length_max)
    if rest:
        raise Malformed(f"{len(rest)} bytes follow a stream that has ended")
    return decoded


def inflate_first(stored: bytes, length_max: int) -> tuple[bytes, bytes]:
    """Inflates a deflated stream to at most `length_max` bytes; gives what follows it as well."""
    # One byte more is asked for than allowed: a bomb is noticed without being unpacked.
    stream = zlib.decompressobj(-15)
    try:
        decoded = stream.decompress(stored, length_max + 1)
    except zlib.error as error:
        raise Malformed(f"a stream is not deflate ({error})") from None
    if len(decoded) > length_max or not stream.eof:
        raise Malformed(f"a stream does not inflate to at most {length_max} bytes")
    return decoded, stream.unused_data


def deflate(decoded: bytes, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """Deflates a stream, without zlib's head and checksum."""
    press = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
    return press.compress(decoded) + press.flush()
