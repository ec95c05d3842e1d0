"""A region: a run of elements in the file, with the meaning of their bits.

Regions lie inside the file, in file order and apart. Two regions of blocked layout may share the
same blocks, as the scales and the codes of a block-quantised tensor do.
"""

from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, get_args

from neural_diff import limits
from neural_diff.canonical import integer, many, one_of, read_as, row_of, spell, text
from neural_diff.errors import Malformed

Kind = Literal["int", "f16", "bf16", "f32", "bytes"]

_WIDTHS = {"int": (4, 8, 16, 32), "f16": (16,), "bf16": (16,), "f32": (32,), "bytes": (8,)}


class Blocked(NamedTuple):
    """A layout of equal blocks, each `stride` bytes, elements from byte `first` of the block."""

    stride: Annotated[int, integer(1, limits.BLOCK_BYTES_MAX)]
    first: Annotated[int, integer(0, limits.BLOCK_BYTES_MAX)]
    per_block: Annotated[int, integer(1, limits.BLOCK_BYTES_MAX)]
    nibble_order: Annotated[Literal["low", "high"], one_of("low", "high")]


class Part(NamedTuple):
    """A tensor in a region that holds several, one after the other: for people to read."""

    name: Annotated[str, text(limits.NAME_CHARS_MAX)]
    count: Annotated[int, integer(1, limits.REGION_ELEMENTS_MAX)]  # type: ignore[assignment]


def _layout(value: object, where: str) -> Blocked | None:
    return None if value == "contiguous" else read_as(Blocked, value, where)


class Region(NamedTuple):
    """A run of elements in the file, with the meaning of their bits.

    The code of an int element is its raw value read as two's complement (`bias` 0) or as offset
    binary (`bias` 2^(width-1)); `lo` and `hi` bound what a hashed section may leave behind.
    """

    name: Annotated[str, text(limits.NAME_CHARS_MAX)]
    file_offset: Annotated[int, integer(0, limits.FILE_BYTES_MAX)]
    count: Annotated[int, integer(1, limits.REGION_ELEMENTS_MAX)]  # type: ignore[assignment]
    width: Annotated[int, one_of(4, 8, 16, 32)]
    kind: Annotated[Kind, one_of(*get_args(Kind))]
    bias: Annotated[int, integer(0, 1 << 31)] = 0
    lo: Annotated[int, integer(-(1 << 31), (1 << 31) - 1)] = 0
    hi: Annotated[int, integer(-(1 << 31), (1 << 31) - 1)] = 0
    layout: Annotated[Blocked | None, _layout] = None
    parts: Annotated[tuple[Part, ...], many(row_of(Part), limits.PARTS_MAX, "part")] = ()

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
    def is_float(self) -> bool:
        """Whether elements are added to as ordinals."""
        return self.kind in ("f16", "bf16", "f32")

    @property
    def unit(self) -> int:
        """How many elements whole bytes, or whole blocks, hold at the least."""
        if self.layout:
            return self.layout.per_block
        return 2 if self.width == 4 else 1


def region_of(value: object, where: str) -> Region:
    """Reads a region of a manifest and checks the rules it keeps alone."""
    region = read_as(Region, value, where)
    one_of(*_WIDTHS[region.kind])(region.width, f"{where}: width")
    half = 1 << (region.width - 1) if region.kind == "int" else 0
    one_of(0, half)(region.bias, f"{where}: bias")
    integer(-half, max(half - 1, 0))(region.lo, f"{where}: lo")
    integer(region.lo, max(half - 1, 0))(region.hi, f"{where}: hi")
    if region.layout:
        bits = region.layout.per_block * region.width
        if bits % 8 or region.layout.first + bits // 8 > region.layout.stride:
            raise Malformed(f"{where}: {region.layout.per_block} elements do not fit in a block")
    if region.count % region.unit or (region.kind == "bytes" and region.layout):
        raise Malformed(f"{where}: {region.count} elements are no whole number of {region.unit}")
    if region.parts and sum(part.count for part in region.parts) != region.count:
        raise Malformed(f"{where}: its parts do not have {region.count} elements together")
    return region


def spell_region(region: Region) -> dict[str, Any]:
    """Gives the fields that `region_of` reads."""
    spelled = spell(region)
    return spelled | {"layout": spell(region.layout)} if region.layout else spelled


def check_places(regions: tuple[Region, ...], to_size: int) -> None:
    """Regions lie inside the new file, sorted and apart."""
    for number, region in enumerate(regions):
        if region.file_offset + region.span_bytes > to_size:
            raise Malformed(f"region {number}: ends outside the file of {to_size} bytes")
    sharing = 1
    for number, (left, right) in enumerate(pairwise(regions)):
        sharing += 1
        if right.file_offset >= left.file_offset + left.span_bytes:
            sharing = 1
        elif not interleaved(left, right):
            raise Malformed(f"regions {number} and {number + 1} overlap or are not in file order")
        if sharing > limits.SHARING_MAX:
            raise Malformed(f"region {number + 1}: more than {limits.SHARING_MAX} share its blocks")


def interleaved(left: Region, right: Region) -> bool:
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
