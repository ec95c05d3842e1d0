"""Encodes the difference of two runs of elements as sections (maker side).

Every encoding that can say the difference is tried and the smallest kept, the first of equals, so
that the same input gives the same bytes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neural_diff.codec import GAP_LITERAL_BITS, VALUE_LITERAL_BITS, pack, token_table
from neural_diff.decode_numpy import Integers, Raw
from neural_diff.region import Region
from neural_diff.section import GAPS, HASHED, REPLACE, Op, Section, Stream
from neural_diff.view import ordinal, plane_split

_DENSE_SHARE = 0.5  # of elements changed, from which giving all of them may be smaller


@dataclass(frozen=True, slots=True)
class Encoded:
    """A payload and what a section must say to have it decoded."""

    op: Op
    codec: int
    params: dict[str, int]
    streams: tuple[Stream, ...]
    payload: bytes

    def section(self, region: int, start: int, count: int, result_sha256: str) -> Section:
        """Gives the section that says so of elements [start, start + count) of a region."""
        digest = hashlib.sha256(self.payload).hexdigest()
        return Section(
            *(region, start, count, self.op, self.codec, self.params, self.streams),
            *(len(self.payload), digest, result_sha256),
        )


def smallest(region: Region, old: Raw, new: Raw, changed: Integers) -> Encoded:
    """Gives the smallest encoding of the step from `old` to `new`.

    `old` and `new` are raw elements of shape (count,), unsigned and of the region's width;
    `changed` the indices at which they differ, at least one.
    """
    return min(_tries(region, old, new, changed), key=lambda tried: len(tried.payload))


def hashed(buckets: NDArray[np.int16], seed: int, fraction_bits: int) -> Encoded:
    """Encodes the buckets of a hashed section; `buckets` has shape (K,)."""
    params = {"buckets": len(buckets), "fraction_bits": fraction_bits, "seed": seed}
    return _encoded("hashed", HASHED, params, *_split_signed(buckets.astype(np.int64), 0))


def literal(data: bytes) -> Encoded:
    """Encodes bytes as they are, for an exact section."""
    return _encoded("exact", REPLACE, {"xor": 0}, data)


def _tries(region: Region, old: Raw, new: Raw, changed: Integers) -> Iterator[Encoded]:
    params = {"changes": len(changed)}
    gaps = _split_numbers(np.diff(changed, prepend=-1) - 1, GAP_LITERAL_BITS)
    distance = _signed_distance(old[changed], new[changed], region)
    yield _encoded("add", GAPS, params, *gaps, *_split_signed(distance, 1))
    size = region.element_bytes
    yield _encoded("set", GAPS, params, *gaps, plane_split(new[changed].tobytes(), size))
    if len(changed) >= _DENSE_SHARE * len(old):
        yield _encoded("set", REPLACE, {"xor": 0}, plane_split(new.tobytes(), size))
        yield _encoded("set", REPLACE, {"xor": 1}, plane_split((old ^ new).tobytes(), size))


def _encoded(op: Op, codec: int, params: dict[str, int], *decoded: bytes) -> Encoded:
    packed = [pack(stream) for stream in decoded]
    streams = tuple(stream for stream, _ in packed)
    return Encoded(op, codec, params, streams, b"".join(stored for _, stored in packed))


def _signed_distance(old: Raw, new: Raw, region: Region) -> Integers:
    """Gives the shortest way from old to new modulo 2^width; floats by their ordinals."""
    half = 1 << (region.width - 1)
    before, after = (ordinal(raw, region).astype(np.int64) for raw in (old, new))
    distance: Integers = ((after - before + half) & (2 * half - 1)) - half
    return distance


def _split_signed(values: Integers, least: int) -> tuple[bytes, bytes, bytes]:
    """Splits numbers of magnitude `least` or more into tokens, raw bits and signs (see `codec`)."""
    magnitudes = _split_numbers(np.abs(values) - least, VALUE_LITERAL_BITS)
    return *magnitudes, _pack_flags(values[values != 0] < 0)


def _split_numbers(values: Integers, literal_bits: int) -> tuple[bytes, bytes]:
    """Splits numbers below 2^32 into hybrid tokens and raw bits (see `codec`)."""
    lowest, extra = (np.array(column) for column in token_table(literal_bits))
    tokens = np.searchsorted(lowest, values, side="right") - 1
    need = extra[tokens]
    total = int(need.sum())
    # One entry per raw bit: which number it belongs to, and which of its bits it is.
    owner = np.repeat(np.arange(len(values)), need)
    which = np.arange(total) - np.repeat(np.cumsum(need) - need, need)
    bits = ((values - lowest[tokens])[owner] >> which) & 1
    return tokens.astype(np.uint8).tobytes(), _pack_flags(bits.astype(np.bool_))


def _pack_flags(flags: NDArray[np.bool_]) -> bytes:
    return np.packbits(flags, bitorder="little").tobytes()
