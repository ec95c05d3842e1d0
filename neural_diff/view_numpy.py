"""A region's elements as numpy arrays: what `view` does, faster."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neural_diff.region import Region

Raw = NDArray[np.unsignedinteger]
Integers = NDArray[np.int64]


def elements_of(stored: bytearray | NDArray[np.uint8], region: Region) -> Raw:
    """Gives elements as unsigned integers of shape (count,) that share the memory of `stored`."""
    return np.frombuffer(stored, f"<u{region.element_bytes}")


def taken_out(region: Region, held: bytearray) -> Any:
    """Takes the elements out of a window of the file, as `view.elements_of` does."""
    if region.layout is None and region.width != 4:
        return held
    stored = _stored(region, held)
    if region.width != 4:
        return stored.ravel()
    # Both elements of a byte at once, in a word: to write every other byte takes far longer.
    words = stored.ravel().astype("<u2")
    words = words << 8 | words >> 4 if _high_first(region) else words << 4 | words
    words &= 0x0F0F
    return words.astype("<u2", copy=False).view(np.uint8)


def put_back(region: Region, elements: Any, held: bytearray) -> Any:
    """Puts elements back into their window, as `view.put_elements` does."""
    if region.layout is None and region.width != 4:
        return held
    stored, given = _stored(region, held), elements
    if region.width == 4:
        words = elements.view("<u2")
        words = words << 4 | words >> 8 if _high_first(region) else words >> 4 | words
        given = words.astype(np.uint8)
    stored[...] = given.reshape(stored.shape)
    return given


def _stored(region: Region, held: bytearray) -> NDArray[np.uint8]:
    """Gives the bytes of a window that store elements, a row for each block."""
    data = np.frombuffer(held, np.uint8)
    if region.layout is None:
        return data
    first, size = region.layout.first, region.layout.per_block * region.width // 8
    return data.reshape(-1, region.layout.stride)[:, first : first + size]


def _high_first(region: Region) -> bool:
    return region.layout is not None and region.layout.nibble_order == "high"


def keys_of(raw: Raw, region: Region) -> NDArray[np.uint8]:
    """Gives what classes are looked up by: an element's highest byte, a float's below its sign."""
    if region.is_float:
        return (raw >> (region.width - 9)).astype(np.uint8)
    return raw.view(np.uint8)[raw.itemsize - 1 :: raw.itemsize]


def sizes_of(keys: NDArray[np.uint8], region: Region) -> NDArray[np.uint8]:
    """Gives how large what `keys_of` gives is: the magnitude of a code, the exponent of a float."""
    if region.is_float:
        return keys
    codes = keys << 4 if region.width == 4 else keys
    codes = codes ^ 128 if region.bias else codes
    return np.abs(codes.view(np.int8)).view(np.uint8)
