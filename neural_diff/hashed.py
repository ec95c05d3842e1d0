"""Hashed changes: every element of a region is moved by a bucket that its index hashes to.

    h = fmix32(index * 0x9E3779B1 + seed)     modulo 2^32
    k = (h * buckets) >> 32                   the bucket (multiply-shift range reduction)
    x = bucket[k], negated if h & 1           sign hash (Chen et al., HashedNets, 2015)
    t = (h >> 1) & (2^fraction_bits - 1)      dither
    code' = clamp(code + floor((x + t) / 2^fraction_bits), lo, hi)

fmix32 is the finaliser of MurmurHash3 (Appleby). The multiplication matters: fmix32(i + seed) puts
elements some lags apart into the same bucket 20-60 times too often. Dither comes from the lowest
bits, the bucket from the highest, so with at most 2^22 buckets they are independent; over the
dither, the mean of floor((x + t) / 2^F) is x / 2^F, so a bucket of less than a step moves the
right share of its elements. Only integers: the same bytes on every machine.
"""

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from neural_diff.errors import Malformed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_INDEX_MULTIPLIER = 0x9E3779B1
_MASK = 0xFFFFFFFF


def locate(
    seed: int, start: int, count: int, buckets: int, fraction_bits: int, dtype: Any = "i4"
) -> "tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]":
    """Gives bucket, sign (1 or -1) and dither of elements [start, start + count), with numpy.

    Three arrays of shape (count,): int64, and two of the signed integers `dtype`.
    """
    import numpy as np

    # Modulo 2^32 as everywhere; the products of the first indices are the same for every step.
    offset = (start * _INDEX_MULTIPLIER + seed) & _MASK
    mixed = fmix32(_products(count) + np.uint32(offset))
    wide = mixed.astype(np.uint64)
    wide *= np.uint64(buckets)
    wide >>= np.uint64(32)
    lowest = mixed.astype(dtype)
    sign = (lowest & 1) * -2
    sign += 1
    lowest >>= 1
    lowest &= (1 << fraction_bits) - 1
    return wide.view(np.int64), sign, lowest


def locate_one(seed: int, index: int, buckets: int, fraction_bits: int) -> tuple[int, int, int]:
    """Gives bucket, sign and dither of one element: the reference for `locate`."""
    mixed = fmix32((index * _INDEX_MULTIPLIER + seed) & _MASK)
    sign = -1 if mixed & 1 else 1
    return (mixed * buckets) >> 32, sign, (mixed >> 1) & ((1 << fraction_bits) - 1)


def fmix32(value: Any) -> Any:
    """Mixes 32 bits so that each bit of the result depends on all of them (MurmurHash3).

    `value` is an integer below 2^32, or a numpy array of uint32, which is mixed in place.
    """
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value ^= value >> shift
        value *= multiplier
        if isinstance(value, int):
            value &= _MASK
    value ^= value >> 16
    return value


@lru_cache(maxsize=2)
def _products(count: int) -> "NDArray[np.uint32]":
    import numpy as np

    return (np.arange(count, dtype=np.uint64) * np.uint64(_INDEX_MULTIPLIER)).astype(np.uint32)


def region_seed(patch_seed: bytes, name: str) -> int:
    """Gives the seed of a region: the first four bytes of SHA-256(patch seed ‖ region name)."""
    return int.from_bytes(hashlib.sha256(patch_seed + name.encode()).digest()[:4], "little")


def check_bucket(highest: int) -> None:
    """Refuses a positive bucket of 2^15, whose magnitude only a negative int16 can have."""
    if highest > 0x7FFF:
        raise Malformed(f"a bucket of {highest} is no 16-bit number")
