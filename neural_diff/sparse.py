"""Sparse changes: which elements, and by how much (plain Python; the oracle of `decode_numpy`).

Positions are gaps between successive elements, so they increase by construction; one comparison
of their sum with the section's length bounds them all. An ADD carries the distance to the new
value modulo 2^width as a magnitude from 1 to 2^(width-1) and a sign: it cannot say zero. A SET
carries the new raw values, split into planes of bytes (all first bytes, then all second bytes).

A float is added to as its ordinal, a monotone integer: bits whose sign is set have all other bits
flipped. The map is its own inverse.
"""

from array import array
from collections.abc import Sequence

from neural_diff.codec import GAP_LITERAL_BITS, VALUE_LITERAL_BITS, check_bits, numbers
from neural_diff.errors import Malformed
from neural_diff.region import Region
from neural_diff.section import Section


def positions(section: Section, streams: Sequence[bytes]) -> "array[int]":
    """Gives the changed elements, counted from the section's first, strictly increasing."""
    found = numbers(streams[0], streams[1], GAP_LITERAL_BITS)
    check_last(sum(found) + len(found) - 1, section)
    reached = -1
    for place, gap in enumerate(found):
        reached += gap + 1
        found[place] = reached
    return found


def residues(streams: Sequence[bytes], width: int) -> "array[int]":
    """Gives what an ADD adds modulo 2^width, each from 1 to 2^width - 1."""
    found = numbers(streams[2], streams[3], VALUE_LITERAL_BITS)
    check_magnitude(max(found) + 1, width)
    signs = streams[4]
    check_bits(signs, len(found))
    for place, less in enumerate(found):
        negative = signs[place >> 3] >> (place & 7) & 1
        found[place] = (1 << width) - less - 1 if negative else less + 1
    return found


def check_last(last: int, section: Section) -> None:
    """Refuses positions that leave the section."""
    if last >= section.count:
        raise Malformed(f"a section of {section.count} elements changes its element {last}")


def check_magnitude(largest: int, width: int) -> None:
    """Refuses a distance that 2^width values cannot have."""
    if largest > 1 << (width - 1):
        raise Malformed(f"a change by {largest} does not fit in {width} bits")


def ordinal(raw: int, width: int) -> int:
    """Maps the bits of a float to a monotone integer modulo 2^width, and back."""
    half = 1 << (width - 1)
    return raw ^ (half - 1) if raw & half else raw


def plane_split(raw: bytes, size: int) -> bytes:
    """Puts all first bytes of elements of `size` bytes first, then all second bytes, and so on."""
    return b"".join(raw[byte::size] for byte in range(size))


def plane_join(planes: bytes, size: int) -> bytearray:
    """Undoes `plane_split`."""
    raw = bytearray(len(planes))
    count = len(planes) // size
    for byte in range(size):
        raw[byte::size] = planes[byte * count : (byte + 1) * count]
    return raw


def is_float(region: Region) -> bool:
    """Whether elements are added to as ordinals."""
    return region.kind in ("f16", "bf16", "f32")


def check_raw(raw: bytes | bytearray, width: int) -> None:
    """Refuses a 4-bit element with anything in its upper half."""
    if width == 4 and raw and max(raw) > 15:
        raise Malformed(f"a 4-bit element cannot be {max(raw)}")
