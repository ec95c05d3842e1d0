"""A region: a run of elements in the file, with the meaning of their bits.

Regions lie inside the file, in file order and apart. Two regions of blocked layout may share the
same blocks, as the scales and the codes of a block-quantised tensor do.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from neural_diff import limits
from neural_diff.canonical import fields, integer, one_of, text
from neural_diff.errors import Malformed

Kind = Literal["int", "f16", "bf16", "f32", "bytes"]

_REGION = ("bias", "count", "file_offset", "hi", "kind", "layout", "lo", "name", "width")
_LAYOUT = ("first", "nibble_order", "per_block", "stride")
_WIDTHS = {"int": (4, 8, 16, 32), "f16": (16,), "bf16": (16,), "f32": (32,), "bytes": (8,)}


@dataclass(frozen=True, slots=True)
class Blocked:
    """A layout of equal blocks, each `stride` bytes, elements from byte `first` of the block."""

    stride: int
    first: int
    per_block: int
    nibble_order: Literal["low", "high"]


@dataclass(frozen=True, slots=True)
class Region:
    """A run of elements in the file, with the meaning of their bits.

    The code of an int element is its raw value read as two's complement (`bias` 0) or as offset
    binary (`bias` 2^(width-1)); `lo` and `hi` bound what a hashed section may leave behind.
    """

    name: str
    file_offset: int
    count: int
    width: int
    kind: Kind
    bias: int = 0
    lo: int = 0
    hi: int = 0
    layout: Blocked | None = None

    @property
    def stored_bytes(self) -> int:
        """The bytes that hold the elements, without the gaps of a blocked layout."""
        return self.count * self.width // 8

    @property
    def span_bytes(self) -> int:
        """The bytes from the region's first to its last, gaps included."""
        if self.layout is None:
            return self.stored_bytes
        return self.count // self.layout.per_block * self.layout.stride

    @property
    def element_bytes(self) -> int:
        """The bytes of one element in a stream (a 4-bit element takes a whole one)."""
        return max(self.width // 8, 1)

    @property
    def unit(self) -> int:
        """How many elements whole bytes, or whole blocks, hold at the least."""
        if self.layout:
            return self.layout.per_block
        return 2 if self.width == 4 else 1


def region_of(value: object, where: str) -> Region:
    """Reads a region of a manifest and checks the rules it keeps alone."""
    entry = fields(value, where, _REGION)
    kind = one_of(entry["kind"], f"{where}: kind", get_args(Kind))
    width = one_of(entry["width"], f"{where}: width", _WIDTHS[kind])
    half = 1 << (width - 1) if kind == "int" else 0
    region = Region(
        text(entry["name"], f"{where}: name", limits.NAME_CHARS_MAX),
        integer(entry["file_offset"], f"{where}: file_offset", 0, limits.FILE_BYTES_MAX),
        integer(entry["count"], f"{where}: count", 1, limits.REGION_ELEMENTS_MAX),
        width,
        kind,
        one_of(entry["bias"], f"{where}: bias", (0, half)),
        integer(entry["lo"], f"{where}: lo", -half, max(half - 1, 0)),
        integer(entry["hi"], f"{where}: hi", entry["lo"], max(half - 1, 0)),
        _layout(entry["layout"], where, width),
    )
    unit = region.unit
    if region.count % unit or (kind == "bytes" and region.layout):
        raise Malformed(f"{where}: {region.count} elements are no whole number of {unit}")
    return region


def spell_region(region: Region) -> dict[str, Any]:
    """Spells a region; the inverse of `region_of`."""
    layout = region.layout
    spelled = {name: getattr(region, name) for name in _REGION}
    shape = {name: getattr(layout, name) for name in _LAYOUT} if layout else "contiguous"
    return spelled | {"layout": shape}


def check_places(regions: tuple[Region, ...], from_size: int, to_size: int) -> None:
    """Regions lie inside the file, sorted and apart; only bytes may lie beyond the base."""
    for number, region in enumerate(regions):
        end = region.file_offset + region.span_bytes
        if end > (to_size if region.kind == "bytes" else min(from_size, to_size)):
            raise Malformed(f"region {number}: ends at byte {end}, outside the file")
    for number, (left, right) in enumerate(pairwise(regions)):
        if right.file_offset >= left.file_offset + left.span_bytes:
            continue
        if not _interleaved(left, right):
            raise Malformed(f"regions {number} and {number + 1} overlap or are not in file order")


def _interleaved(left: Region, right: Region) -> bool:
    """Whether two regions share the same blocks of the file, the left one first in each."""
    if left.layout is None or right.layout is None:
        return False
    left_end = left.layout.first + left.layout.per_block * left.width // 8
    return (
        left.file_offset == right.file_offset
        and left.span_bytes == right.span_bytes
        and left.layout.stride == right.layout.stride
        and left_end <= right.layout.first
    )


def _layout(value: object, where: str, width: int) -> Blocked | None:
    if value == "contiguous":
        return None
    entry = fields(value, f"{where}: layout", _LAYOUT)
    layout = Blocked(
        integer(entry["stride"], f"{where}: stride", 1, limits.BLOCK_BYTES_MAX),
        integer(entry["first"], f"{where}: first", 0, limits.BLOCK_BYTES_MAX),
        integer(entry["per_block"], f"{where}: per_block", 1, limits.BLOCK_BYTES_MAX),
        one_of(entry["nibble_order"], f"{where}: nibble_order", ("low", "high")),
    )
    bits = layout.per_block * width
    if bits % 8 or layout.first + bits // 8 > layout.stride:
        raise Malformed(f"{where}: {layout.per_block} elements do not fit in a block")
    return layout
