"""A patch while it is made: sections are added in order, then the file is written (maker side)."""

from collections.abc import Mapping
from pathlib import Path

from neural_diff.encode import Encoded
from neural_diff.patch import Patch, aligned, head_of, read_patch
from neural_diff.region import Region
from neural_diff.section import Section

Side = tuple[int, str]
"""Size and SHA-256 of the file before or after."""


class Draft:
    """Regions, sections and payloads so far."""

    def __init__(self) -> None:
        self._regions: list[Region] = []
        self._sections: list[Section] = []
        self._payloads: list[bytes] = []

    @property
    def payload_bytes(self) -> int:
        """The bytes of all payloads so far."""
        return sum(map(len, self._payloads))

    def add(
        self, region: Region, start: int, count: int, encoded: Encoded, result_sha256: str
    ) -> None:
        """Adds a section; all of a region's come one after the other, regions in file order."""
        if not self._regions or self._regions[-1] != region:
            self._regions.append(region)
        place = len(self._regions) - 1
        self._sections.append(encoded.section(place, start, count, result_sha256))
        self._payloads.append(encoded.payload)

    def write(self, out: Path, before: Side, after: Side, provenance: Mapping[str, str]) -> Patch:
        """Writes the patch file from `before` to `after`.

        Raises:
            Malformed: the patch would be over a limit of the format.
        """
        regions, sections = tuple(self._regions), tuple(self._sections)
        with out.open("w+b") as file:
            end = file.write(head_of(Patch(*before, *after, regions, sections, provenance)))
            for payload in self._payloads:
                end += file.write(bytes(aligned(end) - end) + payload)
            return read_patch(file, end)
