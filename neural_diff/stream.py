"""A patch as a stream: old bytes go in, new bytes come out, piece by piece in file order.

A **piece** is a stretch of the new file within which the sections that change it stay the same, and
no longer than what a processor's cache holds. Stages are fused by letting one take from another:
a chain of patches is one pass over the file, whatever its length, and memory holds a piece and the
open sections of each stage. Only the last stage of a chain checks the digests of sections.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from neural_diff import codec, decode, view
from neural_diff.errors import Corrupt, NeuralDiffError, WrongBase
from neural_diff.patch import Move, Patch
from neural_diff.region import Region
from neural_diff.section import Section

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

    from neural_diff.ahead import Begin

NUMPY = find_spec("numpy") is not None
"""Whether numpy decodes. It is loaded when a section is decoded, not by importing this module."""

PIECE_BYTES = 1 << (18 if NUMPY else 17)

# The C library of Linux gives what is free at the end of its heap back, and every page of it costs
# a fault when it is asked for anew, unless it has seen a larger block come and go (mallopt(3)).
bytes(1 << 22)

Take = Callable[[int], bytearray]
"""Gives the next bytes of a file, exactly as many as asked for, for the caller to change."""


class Piece(NamedTuple):
    """A stretch of the new file, and (section, its first element here) of all that change it."""

    offset: int
    length: int
    work: tuple[tuple[int, int], ...] = ()


def pieces_of(patch: Patch) -> Iterator[Piece]:
    """Gives the pieces that a patch's new file consists of, in file order."""
    end = 0
    for regions, sections in _groups(patch):
        begin, span = regions[0].file_offset, regions[0].span_bytes
        yield from (Piece(at, length) for at, length in _cut(end, begin))
        layout = regions[0].layout
        unit = layout.stride if layout else regions[0].element_bytes
        active: list[int] = []
        waiting = sorted(sections, key=lambda number: (sections[number].low, number))
        edges = {edge for _, low, high in sections.values() for edge in (low, high)} | {0, span}
        for start, stop in pairwise(sorted(edges)):
            active = [number for number in active if sections[number].high > start]
            while waiting and sections[waiting[0]].low == start:
                active.append(waiting.pop(0))
            for at, length in _cut(start, stop, unit, begin):
                work = (
                    (n, view.elements_in(sections[n].region, at - sections[n].low))
                    for n in sorted(active)
                )
                yield Piece(begin + at, length, tuple(work))
        end = begin + span
    yield from (Piece(at, length) for at, length in _cut(end, patch.to_size))


class _Span(NamedTuple):
    """Where a section lies: its region, and bytes from the region's first."""

    region: Region
    low: int
    high: int


def _groups(patch: Patch) -> Iterator[tuple[list[Region], dict[int, _Span]]]:
    """Gives regions that share the same blocks together, and where their sections lie."""
    at = 0
    for _, group in groupby(enumerate(patch.regions), lambda pair: pair[1].file_offset):
        numbers, regions = zip(*group, strict=True)
        sections = {}
        while at < len(patch.sections) and patch.sections[at].region <= numbers[-1]:
            section = patch.sections[at]
            region = patch.regions[section.region]
            bounds = (view.bytes_of(region, element) for element in (section.start, section.end))
            sections[at] = _Span(region, *bounds)
            at += 1
        yield list(regions), sections


def _cut(start: int, end: int, unit: int = 1, begin: int = 0) -> Iterator[tuple[int, int]]:
    """Cuts [start, end), counted from byte `begin`, between units and else at one grid of the file.

    So the pieces of fused patches are mostly the same, and go from stage to stage uncopied.
    """
    while start < end:
        grid = ((begin + start) // PIECE_BYTES + 1) * PIECE_BYTES - begin
        stop = min(max(start + (grid - start) // unit * unit, start + unit), end)
        yield start, stop - start
        start = stop


def ended(patch: Patch, piece: Piece) -> Iterator[int]:
    """Gives the sections whose last element is in a piece."""
    for number, first in piece.work:
        section = patch.sections[number]
        count = view.elements_in(patch.regions[section.region], piece.length)
        if first + count == section.count:
            yield number


class Changes:
    """The sections of a patch: decoded when first needed, forgotten after their last piece."""

    def __init__(
        self,
        patch: Patch,
        file: BinaryIO,
        name: str,
        *,
        back: bool = False,
        ahead: "Begin | None" = None,
    ) -> None:
        """Takes the open patch `file`, called `name` in errors; `back` undoes what it adds.

        With `ahead` the next section is decoded while one is carried out.
        """
        self._patch, self._file, self._name, self._back = patch, file, name, back
        self._ahead = ahead
        self._begun: list[Callable[[], decode.Change]] = []
        self._open: dict[int, tuple[decode.Change, Hash]] = {}
        self._change_of: Callable[..., decode.Change] = decode.change_of
        self._take_out, self._put_back = view.elements_of, view.put_elements
        if NUMPY:
            from neural_diff import decode_numpy, view_numpy

            self._change_of = decode_numpy.change_of
            self._take_out, self._put_back = view_numpy.taken_out, view_numpy.put_back

    def carry_out(self, piece: Piece, held: bytearray, prefix: "Hash | None") -> None:
        """Changes the bytes of a piece in place; pieces must come in order, each once.

        `prefix` is the digest of the new file before the piece, or None to check no section.

        Raises:
            Malformed: a section breaks a rule of its codec.
            Corrupt: a section does not lead to the bytes that were promised.
        """
        for number, first in piece.work:
            section = self._patch.sections[number]
            region = self._patch.regions[section.region]
            elements = self._take_out(region, held)
            try:
                if number not in self._open:
                    self._open[number] = (self._decoded(number), hashlib.sha256())
                change, result = self._open[number]
                change(elements, first)
            except NeuralDiffError as error:
                raise type(error)(f"{self._name}: section {number}: {error}") from None
            stored = self._put_back(region, elements, held)
            if prefix and section.result_sha256:
                result.update(stored)
        if prefix:
            prefix.update(held)
        for number in ended(self._patch, piece):
            section, (_, result) = self._patch.sections[number], self._open.pop(number)
            wanted = section.result_sha256 or section.prefix_sha256
            found = result if section.result_sha256 else prefix
            if prefix and found and not self._back and found.hexdigest() != wanted:
                raise Corrupt(
                    f"{self._name}: section {number}: does not lead to the promised bytes"
                )

    def _decoded(self, number: int) -> decode.Change:
        sections = self._patch.sections
        if not self._ahead:
            return self._decode(sections[number])
        for section in sections[len(self._begun) : number + 2]:
            self._begun.append(self._ahead(partial(self._decode, section)))
        return self._begun[number]()

    def _decode(self, section: Section) -> decode.Change:
        self._file.seek(section.offset)
        payload = self._file.read(section.payload_bytes)
        if len(payload) < section.payload_bytes:
            raise Corrupt("became shorter while it was read")
        streams = codec.unpack(section.streams, payload)
        del payload
        region = self._patch.regions[section.region]
        return self._change_of(section, region, streams, self._back)


def stage(
    patch: Patch, changes: Changes, take: Take, prefix: "Hash | None", start: int = 0
) -> Iterator[bytearray]:
    """Gives the new file from byte `start` on, piece by piece; takes the kept bytes of the old one.

    `take` gives what `patch.kept` names of the old file, up to where it ends.
    """
    ends = max((move.to_offset + move.length for move in patch.kept), default=0)
    for piece in pieces_of(patch):
        held = take(max(0, min(piece.length, ends - piece.offset)))
        if piece.offset >= start:
            held += bytes(piece.length - len(held))
            changes.carry_out(piece, held, prefix)
            yield held


def taken_from(pieces: Iterator[bytearray]) -> Take:
    """Cuts a stream of pieces anew, into whatever is asked for."""
    held = bytearray()

    def take(count: int) -> bytearray:
        nonlocal held
        while len(held) < count:
            held = held + next(pieces) if held else next(pieces)
        if len(held) == count:
            taken, held = held, bytearray()
        else:
            taken = held[:count]
            del held[:count]
        return taken

    return take


def moved(file: BinaryIO, moves: Sequence[Move]) -> Iterator[bytearray]:
    """Gives the bytes of an open file where moves want them, and zeros between."""
    end = 0
    for move in moves:
        for low in range(end, move.to_offset, PIECE_BYTES):
            yield bytearray(min(PIECE_BYTES, move.to_offset - low))
        for low in range(0, move.length, PIECE_BYTES):
            file.seek(move.from_offset + low)
            held = bytearray(file.read(min(PIECE_BYTES, move.length - low)))
            if len(held) < min(PIECE_BYTES, move.length - low):
                raise WrongBase(f"{file.name}: became shorter while it was read")
            yield held
        end = move.to_offset + move.length
