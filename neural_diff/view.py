"""A region's elements, and the bytes of the file that hold them.

Elements are handled as whole bytes, little-endian, in storage order: a 4-bit element takes one
byte while it is worked on, and the gaps of a blocked layout are left out and later left alone.
In a stream they are split into planes: all first bytes, then all second bytes, and so on.

A float is added to as its ordinal, a monotone integer: bits whose sign is set have all other bits
flipped. The map is its own inverse.
"""

from typing import Any

from neural_diff.errors import Malformed
from neural_diff.region import Region

LOW_HALF = bytes(byte & 15 for byte in range(256))
HIGH_HALF = bytes(byte >> 4 for byte in range(256))


def elements_in(region: Region, length: int) -> int:
    """Gives how many elements a window of so many bytes holds."""
    if region.layout:
        return length // region.layout.stride * region.layout.per_block
    return length * 8 // region.width


def bytes_of(region: Region, elements: int) -> int:
    """Gives how many bytes of the file hold that many elements: the inverse of `elements_in`."""
    if region.layout:
        return elements // region.layout.per_block * region.layout.stride
    return elements * region.width // 8


def elements_of(region: Region, held: bytearray) -> bytearray:
    """Takes the elements out of a window of the file; they may be the window itself."""
    stored = stored_of(region, held)
    if region.width != 4:
        return stored
    elements = bytearray(2 * len(stored))
    high_first = int(_nibble_order(region) == "high")
    elements[high_first::2] = stored.translate(LOW_HALF)
    elements[1 - high_first :: 2] = stored.translate(HIGH_HALF)
    return elements


def put_elements(region: Region, elements: bytearray, held: bytearray) -> bytearray:
    """Puts elements back into their window, in place; gives the bytes that store them."""
    stored = elements
    if region.width == 4:
        high_first = int(_nibble_order(region) == "high")
        low = int.from_bytes(elements[high_first::2], "little")
        high = int.from_bytes(elements[1 - high_first :: 2], "little")
        stored = bytearray((low | high << 4).to_bytes(len(elements) // 2, "little"))
    layout = region.layout
    if layout is None:
        if stored is not held:
            held[:] = stored
        return stored
    size = layout.per_block * region.width // 8
    for block in range(len(held) // layout.stride):
        place = block * layout.stride + layout.first
        held[place : place + size] = stored[block * size : (block + 1) * size]
    return stored


def stored_of(region: Region, held: bytearray) -> bytearray:
    """Gives the bytes that store the elements, without the gaps of a blocked layout."""
    layout = region.layout
    if layout is None:
        return held
    size = layout.per_block * region.width // 8
    places = range(layout.first, len(held), layout.stride)
    return bytearray().join(held[place : place + size] for place in places)


def ordinal(raw: Any, region: Region) -> Any:
    """Maps the bits of a float to a monotone integer modulo 2^width, and back; others stay.

    `raw` is one element or a numpy array of them, unsigned and of the region's width.
    """
    if not region.is_float:
        return raw
    sign = region.width - 1
    return raw ^ (raw >> sign) * ((1 << sign) - 1)


def plane_split(raw: bytes, size: int) -> bytes:
    """Puts all first bytes of elements of `size` bytes first, then all second bytes, and so on."""
    return b"".join(raw[byte::size] for byte in range(size))


def plane_join(planes: bytes, region: Region) -> bytearray:
    """Undoes `plane_split`; refuses a 4-bit element with anything in its upper half."""
    size = region.element_bytes
    raw = bytearray(len(planes))
    count = len(planes) // size
    for byte in range(size):
        raw[byte::size] = planes[byte * count : (byte + 1) * count]
    if region.width == 4 and raw and max(raw) > 15:
        raise Malformed(f"a 4-bit element cannot be {max(raw)}")
    return raw


def _nibble_order(region: Region) -> str:
    return region.layout.nibble_order if region.layout else "low"
