"""Numbers of a stream as numpy arrays: what `codec.numbers` does, faster."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neural_diff import codec
from neural_diff.codec import VALUE_LITERAL_BITS
from neural_diff.view_numpy import Raw

_TOKENS = 1 << 13
"""At a time: what they need stays in the processor's cache."""


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
    codec.check_token(int(token.max(initial=0)), literal_bits)
    longer = token >= 1 << literal_bits
    if 2 * np.count_nonzero(longer) > len(token):
        # Picking the literals out costs more than to treat them as numbers with no raw bits.
        return _with_bits(token, bits, literal_bits)
    found = token.astype(np.uint32)
    places = np.flatnonzero(longer)
    found[places] = _with_bits(token.take(places), bits, literal_bits)
    return found


def _with_bits(token: NDArray[np.uint8], bits: bytes, literal_bits: int) -> NDArray[np.uint32]:
    # The 32 bits where a number begins and the 32 after them hold it, wherever it begins; no number
    # needs more than four bytes of them.
    most = bits[: 4 * len(token)]
    words = np.frombuffer(most + bytes(8 + -len(most) % 4), "<u4").astype(np.uint64)
    pairs = words[:-1] | words[1:] << np.uint64(32)
    # `codec.token_table` as arithmetic, which a register does for many tokens at once.
    longer = token >= 1 << literal_bits
    extra = ((token >> 2) + np.uint8(literal_bits - 2 - (1 << literal_bits - 2) & 255)) * longer
    leading = token & 3 | 4
    leading ^= (leading ^ token) * ~longer
    found, used = np.empty(len(token), np.uint32), 0
    room = np.empty((3, _TOKENS + 1), np.int64)
    for low in range(0, len(token), _TOKENS):
        shift = extra[low : low + _TOKENS].astype(np.uint32)
        ends, word, held = room[:, : len(shift) + 1]
        word, held = word[:-1], held[:-1].view(np.uint64)
        ends[0], ends[1:] = used, shift
        np.cumsum(ends, out=ends)
        used = int(ends[-1])
        if used > 8 * len(bits):
            break
        # None is out of bounds, and "wrap" is the way that does not look at each.
        pairs.take(np.right_shift(ends[:-1], 5, out=word), out=held, mode="wrap")
        ends &= 31
        held >>= ends[:-1].view(np.uint64)
        number = found[low : low + _TOKENS]
        number[:] = held
        # The leading bits take the place of what is above the number's own.
        above = number >> shift
        above ^= leading[low : low + _TOKENS]
        above <<= shift
        number ^= above
    codec.check_bits(bits, used)
    return found
