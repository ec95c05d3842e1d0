"""Turns a section into a change of elements, with numpy: the same bytes as `decode`, faster.

Whatever `decode` refuses this refuses too, by the same checks. All arithmetic that may wrap is
modulo a power of two on unsigned types; what may not is bounded before it is cast.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from neural_diff import codec
from neural_diff.codec import GAP_LITERAL_BITS
from neural_diff.codec_numpy import numbers, signed
from neural_diff.hashed import check_bucket, locate
from neural_diff.picked_numpy import pick_of
from neural_diff.region import Region
from neural_diff.section import BLOCK_ELEMENTS, BLOCKS, CLASS_GAPS, Section
from neural_diff.view import ordinal, plane_join
from neural_diff.view_numpy import Raw, elements_of, keys_of

_GAPS = 1 << 13  # of eight bytes each at a time
_STEP = 1 << 16  # elements; what one step needs stays in the processor's cache

Change = Callable[[bytearray, int], None]
Places = NDArray[np.uint32]  # of elements, or ranks: a section has at most 2^32


def change_of(
    section: Section, region: Region, streams: Sequence[bytes], back: bool = False
) -> Change:
    """Decodes a section's streams to a change; `back` undoes what the section adds.

    Raises:
        Malformed: the streams break a rule of their codec.
    """
    if section.way == "replace":
        return _replace(section, region, streams)
    if section.op == "hashed":
        return _hashed(section, region, streams)
    return _sparse(section, region, streams, back)


def positions_of(
    section: Section, streams: Sequence[bytes], table: bytes
) -> tuple[list[Places], Sequence[bytes]]:
    """Gives the changed places of each class (of one, if not class-gaps), and the other streams.

    Places count from the section's first element or, where old values tell, within the class.
    """
    if section.codec == CLASS_GAPS:
        tokens, (bits, *values) = streams[: section.classes], streams[section.classes :]
        gaps = numbers(b"".join(tokens), bits, GAP_LITERAL_BITS)
        found = [_rising(gaps[start:end], section.count) for start, end in _bounds(tokens)]
        return (list(_in_runs(found, table, section)) if section.runs else found), values
    if section.codec == BLOCKS:
        codec.check_blocks(streams[2], section.changes)
    gaps = numbers(streams[0], streams[1], GAP_LITERAL_BITS)
    if section.codec != BLOCKS:
        return [_rising(gaps, section.count)], streams[2:]
    starts = _rising(gaps, -(-section.count // BLOCK_ELEMENTS)) * np.uint32(BLOCK_ELEMENTS)
    flags = np.unpackbits(np.frombuffer(streams[2], np.uint8), bitorder="little")
    within = np.flatnonzero(flags).astype(np.uint32)
    places = starts[within // BLOCK_ELEMENTS] + within % BLOCK_ELEMENTS
    codec.check_last(int(places[-1]), section.count)
    return [places], streams[3:]


def _in_runs(ranked: list[Places], table: bytes, section: Section) -> Iterator[Places]:
    """Turns ranks among the elements of a class of runs into places."""
    run, of = section.params["run"], np.frombuffer(table, np.uint8)
    starts = [np.flatnonzero(of == number) * run for number in range(section.classes)]
    codec.check_used(codec.reached(ranked), [run * len(some) for some in starts])
    for some, ranks in zip(starts, ranked, strict=True):
        places = some[ranks // run] + ranks % run
        codec.check_last(int(places[-1]) if len(places) else -1, section.count)
        yield places.astype(np.uint32)


def _sparse(section: Section, region: Region, streams: Sequence[bytes], back: bool) -> Change:
    table = None
    if section.classes > 1:
        table, streams = codec.class_table(section, streams[0]), streams[1:]
    places, streams = positions_of(section, streams, table or b"")
    mask, adds = (1 << region.width) - 1, section.op == "add"
    if adds:
        values = _residues(section, region, streams)
        if back:
            values = [((some ^ mask) + 1 & mask).astype(some.dtype) for some in values]
    else:
        values = [elements_of(plane_join(streams[0], region), region)]
    told = codec.Told(section, places, values, table)
    pick = pick_of(told, region)
    # Elements looked at in one go; 4-bit ones mostly need a sort, which takes 16 bytes each.
    step = 1 << (17 if region.width == 4 else 18)

    def change(elements: bytearray, first: int) -> None:
        raw = elements_of(elements, region)
        for low in range(0, len(raw), step):
            some = raw[low : low + step]
            at, value = pick(first + low, keys_of(some, region))
            if adds:
                value = ordinal(ordinal(some.take(at), region) + value & mask, region)
            some[at] = value
        told.check_end(first + len(raw))

    return change


def _residues(section: Section, region: Region, streams: Sequence[bytes]) -> list[Raw]:
    """Decodes what is added modulo 2^width, for each class."""
    if "paired" in section.params:
        return [np.frombuffer(some, np.uint8) for some in codec.unpaired(streams, section.changes)]
    tokens, (bits, signs) = streams[: section.classes], streams[section.classes :]
    dtype = np.dtype(f"<u{region.element_bytes}")
    raw = signed(b"".join(tokens), bits, signs, 1, dtype, region.width)
    return [raw[start:end] for start, end in _bounds(tokens)]


def _bounds(streams: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    return pairwise(accumulate(map(len, streams), initial=0))


def _rising(gaps: Places, limit: int) -> Places:
    """Turns gaps into the places that they lead to; refuses any that is not below a limit."""
    last = -1
    for low in range(0, len(gaps), _GAPS):
        # At most 1 Mi gaps below 2^32: the sum stays below 2^53.
        found = gaps[low : low + _GAPS].astype(np.int64)
        found += 1
        found[0] += last
        gaps[low : low + _GAPS] = np.cumsum(found, out=found)
        last = int(found[-1])
    codec.check_last(last, limit)
    return gaps


def _replace(section: Section, region: Region, streams: Sequence[bytes]) -> Change:
    new = elements_of(plane_join(streams[0], region), region)
    flip = section.params["xor"]

    def change(elements: bytearray, first: int) -> None:
        raw = elements_of(elements, region)
        given = new[first : first + len(raw)]
        raw[:] = raw ^ given if flip else given

    return change


def _hashed(section: Section, region: Region, streams: Sequence[bytes]) -> Change:
    tokens, bits, signs = streams
    tokens = codec.bucket_tokens(section, tokens)
    found = signed(tokens, bits, signs, 0, np.dtype(np.uint32), 16).view(np.int32)
    check_bucket(int(found.max()))
    buckets = found.astype(np.int16)
    seed, fraction_bits = section.params["seed"], section.params["fraction_bits"]
    mask, half = (1 << region.width) - 1, 1 << (region.width - 1)
    # What is looked up at random should fit the processor's cache, and what is added a register:
    # two bytes hold any sum of an 8-bit code, dither and a bucket of up to 2^14.
    small = region.width <= 8 and max(int(buckets.max()), -int(buckets.min())) <= 1 << 14
    wide = np.dtype(np.int16 if small else np.int64 if region.width == 32 else np.int32)
    as_stored = region.bias == 0 and region.width >= 8

    def change(elements: bytearray, first: int) -> None:
        raw = elements_of(elements, region)
        for low in range(0, len(raw), _STEP):
            some = raw[low : low + _STEP]
            at = (seed, first + low, len(some), len(buckets), fraction_bits)
            place, sign, dither = locate(*at, wide)
            # No place is out of bounds; "wrap" is the way that does not look twice.
            code = buckets.take(place, mode="wrap").astype(wide, copy=False)
            code *= sign
            if fraction_bits:
                code += dither
                code >>= fraction_bits
            if as_stored:
                code += some.view(f"<i{region.element_bytes}")
            else:
                # Subtracting `half` modulo 2^width after adding it is what sign-extends.
                code += ((some.astype(wide) + (half - region.bias)) & mask) - half
            np.clip(code, region.lo, region.hi, out=code)
            some[:] = code if as_stored else (code + region.bias) & mask

    return change
