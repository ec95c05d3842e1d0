"""Numbers of a stream as numpy arrays: what `codec.numbers` does, faster."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neural_diff import codec
from neural_diff.codec import VALUE_LITERAL_BITS
from neural_diff.view_numpy import Integers, Raw

_TOKENS = 1 << 14
"""At a time: arrays as small as theirs are not mapped anew by the operating system each time."""


def signed(
    tokens: bytes, bits: bytes, signs: bytes, least: int, dtype: np.dtype[Any], width: int
) -> Raw:
    """Decodes magnitudes of `least` or more, and a sign bit for each that is not zero.

    They come modulo what the unsigned `dtype` holds; `width` bits bound the magnitudes.
    """
    found = numbers(tokens, bits, VALUE_LITERAL_BITS)
    codec.check_magnitude(int(found.max()) + least, width)
    raw = found.astype(dtype)
    raw += dtype.type(least)
    # Places by number: to give by a mask costs seven times as much, to give all a third.
    given = slice(None) if least else np.flatnonzero(raw)
    count = len(raw[given])
    codec.check_bits(signs, count)
    minus, bit = np.zeros(len(raw), dtype), np.frombuffer(signs, np.uint8)
    minus[given] = np.unpackbits(bit, count=count, bitorder="little")
    # Minus x is the complement of x, plus one.
    raw ^= -minus
    raw += minus
    return raw


def numbers(tokens: bytes, bits: bytes, literal_bits: int) -> NDArray[np.uint32]:
    """Decodes hybrid tokens to numbers below 2^32."""
    token = np.frombuffer(tokens, np.uint8)
    lowest, extra, masks = _table(literal_bits)
    codec.check_token(int(token.max(initial=0)), literal_bits)
    longer = token >= 1 << literal_bits
    if 2 * np.count_nonzero(longer) > len(token):
        # Picking the literals out costs more than to treat them as numbers with no raw bits.
        return _with_bits(token, bits, lowest, extra, masks)
    found = token.astype(np.uint32)
    places = np.flatnonzero(longer)
    found[places] = _with_bits(token.take(places), bits, lowest, extra, masks)
    return found


def _with_bits(
    token: NDArray[np.uint8], bits: bytes, lowest: Raw, extra: Integers, masks: Raw
) -> NDArray[np.uint32]:
    # The 32 bits where a number begins and the 32 after them hold it, wherever it begins; no number
    # needs more than four bytes of them.
    most = bits[: 4 * len(token)]
    words = np.frombuffer(most + bytes(8 + -len(most) % 4), "<u4").astype(np.uint64)
    pairs = words[:-1] | words[1:] << np.uint64(32)
    found, used = np.empty(len(token), np.uint32), 0
    for low in range(0, len(token), _TOKENS):
        some = token[low : low + _TOKENS].astype(np.intp)
        need = extra.take(some)
        starts = np.cumsum(need, dtype=np.int64)
        starts += used
        used = int(starts[-1])
        starts -= need
        if used > 8 * len(bits):
            break
        held = pairs.take(starts >> 5)
        starts &= 31
        held >>= starts.view(np.uint64)
        number = held.astype(np.uint32)
        number &= masks.take(some)
        number += lowest.take(some)
        found[low : low + _TOKENS] = number
    codec.check_bits(bits, used)
    return found


@cache
def _table(literal_bits: int) -> tuple[Raw, Integers, Raw]:
    lowest, extra = codec.token_table(literal_bits)
    masks = [(1 << bits) - 1 for bits in extra]
    return np.array(lowest, np.uint32), np.array(extra, np.int64), np.array(masks, np.uint32)
