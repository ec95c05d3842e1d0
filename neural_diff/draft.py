"""A patch while it is made: sections are added in order, then the file is written (maker side)."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_diff.packed import Encoded
from neural_diff.patch import Move, Patch, aligned, head_of, read_patch
from neural_diff.region import Region
from neural_diff.section import Section
from neural_diff.view import bytes_of

_SECTION_BYTES = 130  # of a section in the manifest, deflated

Side = tuple[int, str]
"""Size and SHA-256 of the file before or after."""


class Draft:
    """Moves, regions, sections and payloads so far."""

    def __init__(self, moves: Sequence[Move] = ()) -> None:
        self._moves = tuple(moves)
        self._regions: list[Region] = []
        self._sections: list[tuple[int, int, int, Encoded]] = []

    @property
    def payload_bytes(self) -> int:
        """The bytes of all payloads so far."""
        return sum(len(encoded.payload) for *_, encoded in self._sections)

    @property
    def cost(self) -> int:
        """About the bytes of the patch file so far."""
        return self.payload_bytes + _SECTION_BYTES * len(self._sections)

    def add(self, region: Region, start: int, count: int, encoded: Encoded) -> None:
        """Adds a section; all of a region's come one after the other, regions in file order."""
        if not self._regions or self._regions[-1] != region:
            self._regions.append(region)
        self._sections.append((len(self._regions) - 1, start, count, encoded))

    def write(
        self,
        out: Path,
        before: Side,
        after: Side,
        new: NDArray[np.uint8],
        provenance: Mapping[str, str],
    ) -> Patch:
        """Writes the patch file from `before` to `after`, whose bytes are `new`.

        Raises:
            Malformed: the patch would be over a limit of the format.
        """
        regions = tuple(self._regions)
        at = [(regions[number], start + count) for number, start, count, _ in self._sections]
        ends = [region.file_offset + bytes_of(region, end) for region, end in at]
        prefixes = _prefixes(new, sorted(set(ends)))
        sections = tuple(
            Section(
                *(region, start, count, said.op, said.codec, said.params, said.streams),
                *(hashlib.sha256(said.payload).hexdigest(), prefixes[end]),
            )
            for (region, start, count, said), end in zip(self._sections, ends, strict=True)
        )
        with out.open("w+b") as file:
            patch = Patch(*before, *after, regions, sections, provenance, self._moves)
            end = file.write(head_of(patch))
            for *_, encoded in self._sections:
                end += file.write(bytes(aligned(end) - end) + encoded.payload)
            return read_patch(file, end)


def _prefixes(new: NDArray[np.uint8], ends: Sequence[int]) -> dict[int, str]:
    """Gives the SHA-256 of the new file up to each of the ends, which rise."""
    digest, start, found = hashlib.sha256(), 0, {}
    for end in ends:
        digest.update(new[start:end].data)
        start, found[end] = end, digest.hexdigest()
    return found
