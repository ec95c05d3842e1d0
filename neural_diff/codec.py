"""Streams of a payload, and numbers as hybrid tokens.

A stream is stored as it is (raw), as one byte that repeats (constant), or deflated; the device
needs nothing but a bounded inflate. The maker deflates numbers with `Z_HUFFMAN_ONLY`: matches
found by chance in noise cost more than they save (measured: 9-13 % over the entropy bound with
matches, 0.6-2.6 % without).

A number below 2^literal_bits is its own token. A greater one, 2^e ≤ n < 2^(e+1), has a token of e
and the two bits after the leading one; the other e - 2 bits go to a stream of raw bits, lowest
bit first. The tokens are what deflate compresses; the raw bits are noise already.

Positions are gaps between successive elements, so they increase by construction; one comparison
of their sum with the section's length bounds them all. Differences and buckets are magnitudes and
sign bits; a difference has a magnitude of one or more: it cannot say zero.
"""

import zlib
from array import array
from collections.abc import Sequence
from functools import cache

from neural_diff.errors import Malformed
from neural_diff.section import CONSTANT, DEFLATE, RAW, Stream

GAP_LITERAL_BITS = 4
VALUE_LITERAL_BITS = 3
_NUMBER_BITS_MAX = 32


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


def pack(decoded: bytes) -> tuple[Stream, bytes]:
    """Codes a stream in the smallest of the three ways (maker side)."""
    length = len(decoded)
    if length and decoded.count(decoded[0]) == length:
        return Stream(CONSTANT, 1, length), decoded[:1]
    coding, stored = RAW, decoded
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
        tried = deflate(decoded, strategy)
        if len(tried) < len(stored):
            coding, stored = DEFLATE, tried
    return Stream(coding, len(stored), length), stored


@cache
def token_table(literal_bits: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Gives for every token the smallest number it stands for and how many raw bits follow."""
    lowest, extra = list(range(1 << literal_bits)), [0] * (1 << literal_bits)
    for exponent in range(literal_bits, _NUMBER_BITS_MAX):
        for mantissa in range(4):
            lowest.append((4 + mantissa) << (exponent - 2))
            extra.append(exponent - 2)
    return tuple(lowest), tuple(extra)


def raw_bit_counts(tokens: bytes, literal_bits: int) -> bytes:
    """Gives for every token how many raw bits it asks for; refuses unknown tokens."""
    extra = bytes(token_table(literal_bits)[1])
    if unknown := tokens.translate(None, bytes(range(len(extra)))):
        raise Malformed(f"token {unknown[0]} does not exist; the patch was made wrongly")
    return tokens.translate(extra.ljust(256, b"\0"))


def check_bits(bits: bytes, total: int) -> None:
    """Refuses raw bits of another length, or with anything but zeros after the last."""
    if len(bits) != -(-total // 8) or (total % 8 and bits[-1] >> total % 8):
        raise Malformed(f"{len(bits)} bytes of raw bits where {total} bits are needed")


def numbers(tokens: bytes, bits: bytes, literal_bits: int) -> "array[int]":
    """Decodes hybrid tokens to numbers below 2^32 (the plain decoder)."""
    needs = raw_bit_counts(tokens, literal_bits)
    check_bits(bits, sum(needs))
    lowest = token_table(literal_bits)[0]
    found = array("I", map(lowest.__getitem__, tokens))
    held = held_bits = at = 0
    for place, need in enumerate(needs):
        if not need:
            continue
        if held_bits < need:
            held |= int.from_bytes(bits[at : at + 6], "little") << held_bits
            held_bits += 48
            at += 6
        found[place] += held & ((1 << need) - 1)
        held >>= need
        held_bits -= need
    return found


def signed(streams: Sequence[bytes], least: int, width: int) -> "array[int]":
    """Decodes magnitudes of `least` or more, and a sign bit for each that is not zero.

    They come as two's complement of 32 bits: congruent to the number modulo 2^width.
    """
    tokens, bits, signs = streams
    found = numbers(tokens, bits, VALUE_LITERAL_BITS)
    check_magnitude(max(found) + least, width)
    check_bits(signs, len(found) if least else len(found) - found.count(0))
    at = 0
    for place, less in enumerate(found):
        if magnitude := less + least:
            negative = signs[at >> 3] >> (at & 7) & 1
            found[place] = (-magnitude if negative else magnitude) & 0xFFFFFFFF
            at += 1
    return found


def check_last(last: int, count: int) -> None:
    """Refuses positions that leave a section of `count` elements."""
    if last >= count:
        raise Malformed(f"a section of {count} elements changes its element {last}")


def check_magnitude(largest: int, width: int) -> None:
    """Refuses a distance that 2^width values cannot have."""
    if largest > 1 << (width - 1):
        raise Malformed(f"a change by {largest} does not fit in {width} bits")


def inflate(stored: bytes, length_max: int) -> bytes:
    """Inflates one whole deflated stream to at most `length_max` bytes."""
    # One byte more is asked for than allowed: a bomb is noticed without being unpacked.
    stream = zlib.decompressobj(-15)
    try:
        decoded = stream.decompress(stored, length_max + 1)
    except zlib.error as error:
        raise Malformed(f"a stream is not deflate ({error})") from None
    if len(decoded) > length_max or not stream.eof or stream.unused_data:
        raise Malformed(f"a stream does not inflate to at most {length_max} bytes, and no rest")
    return decoded


def deflate(decoded: bytes, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """Deflates a stream, without zlib's head and checksum."""
    press = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
    return press.compress(decoded) + press.flush()
