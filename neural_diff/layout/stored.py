"""Tensors as their bytes lie in a file, and the regions that those are.

A reader of a container says of each tensor where its bytes are and which `Field`s they hold: one
of its own for a plain tensor, several in each block of a block-quantised one. What a region must
keep is then seen to here, once for all containers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from neural_diff.layout.source import Source
from neural_diff.limits import FILE_BYTES_MAX, NAME_CHARS_MAX, REGION_ELEMENTS_MAX
from neural_diff.region import Blocked, Kind, Region


@dataclass(frozen=True, slots=True)
class Field:
    """Elements of one meaning: all of a tensor, or `per_block` of them from byte `first` on."""

    kind: Kind
    width: int
    bias: int = 0
    lo: int = 0
    hi: int = 0
    part: str = ""
    first: int = 0
    per_block: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor's bytes in the file; `stride` is the length of its blocks, if it has any."""

    name: str
    start: int
    length: int
    fields: tuple[Field, ...]
    stride: int = 0


def signed(width: int) -> Field:
    """Integers in two's complement."""
    half = 1 << (width - 1)
    return Field("int", width, 0, -half, half - 1)


def unsigned(width: int) -> Field:
    """Integers from zero on; their code counts from the middle, as of a zero point there."""
    return replace(signed(width), bias=1 << (width - 1))


def symmetric(field: Field) -> Field:
    """Integers whose lowest value is never used, so that each has its negative."""
    return replace(field, lo=field.lo + 1)


F16, BF16, F32 = Field("f16", 16), Field("bf16", 16), Field("f32", 32)


def regions_in_order(tensors: Iterable[Stored], source: Source) -> list[Region]:
    """Gives the regions of a file's tensors, in file order and apart.

    Tensors that share their bytes, as tied weights do, are given once, by the first one's name.

    Raises:
        Malformed: a tensor lies outside the file, or some of its bytes are another's too.
    """
    regions: list[Region] = []
    before = Stored("", 0, 0, ())
    held = (tensor for tensor in tensors if tensor.length)
    for tensor in sorted(held, key=lambda tensor: (tensor.start, tensor.length)):
        start, end = tensor.start, tensor.start + tensor.length
        if not 0 <= start < end <= min(source.size, FILE_BYTES_MAX):
            most = min(source.size, FILE_BYTES_MAX)
            raise source.broken(f"tensor {tensor.name!r:.80} does not end by byte {most}", start)
        if (start, tensor.length) == (before.start, before.length):
            continue
        if start < before.start + before.length:
            names = f"{before.name!r:.80} and {tensor.name!r:.80}"
            raise source.broken(f"tensors {names} overlap", start)
        before = tensor
        regions += _regions(tensor, source)
    return regions


def _regions(tensor: Stored, source: Source) -> Iterator[Region]:
    """Gives a tensor's regions, or none if they would have too many elements."""
    for field in tensor.fields:
        unit = tensor.stride or max(field.width // 8, 1)
        if tensor.length % unit:
            what = f"tensor {tensor.name!r:.80} is no whole number of {unit} bytes"
            raise source.broken(what, tensor.start)
        # An odd number of 4-bit elements is stored with one more, to fill the last byte.
        count, layout = tensor.length * 8 // field.width, None
        if tensor.stride:
            count = tensor.length // tensor.stride * field.per_block
            layout = Blocked(tensor.stride, field.first, field.per_block, "low")
        if count <= REGION_ELEMENTS_MAX:
            name = printable(f"{tensor.name}:{field.part}" if field.part else tensor.name)
            yield Region(
                name, tensor.start, count, field.width, field.kind,
                field.bias, field.lo, field.hi, layout,
            )  # fmt: skip


def printable(name: str) -> str:
    """Gives a tensor's name as a region may have it."""
    return "".join(char if char.isprintable() else "?" for char in name)[-NAME_CHARS_MAX:]
