"""Reads where the tensors of a GGUF file are, versions 2 and 3, little-endian.

A header (magic, version, counts), metadata by name, a list of tensors, and their bytes, each at
a multiple of `general.alignment`: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The
blocks of quantised tensors are the structs of ggml-common.h. Every byte of a block belongs to a
field, fields of a few packed bits as bytes: what lies between the regions of a block could not be
given literally. Types that are not listed here (grids of codebooks, ternary) stay uncovered.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from neural_diff.layout.source import DIMENSIONS_MAX, NESTING_MAX, Source
from neural_diff.layout.stored import BF16, F16, F32, Field, Stored, signed, symmetric, unsigned

MAGIC = b"GGUF"
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_U32, _STRING, _ARRAY = 4, 8, 9
_BYTE, _NIBBLE = unsigned(8), unsigned(4)


def _block(*parts: tuple[str, Field, int]) -> tuple[int, tuple[Field, ...]]:
    """Lays fields one after the other; gives the block's length and them."""
    end, fields = 0, []
    for part, field, per_block in parts:
        fields.append(replace(field, part=part, first=end, per_block=per_block))
        end += per_block * field.width // 8
    return end, tuple(fields)


_PLAIN = {0: F32, 1: F16, 24: signed(8), 25: signed(16), 26: signed(32), 30: BF16}
_BLOCKS = {  # by type: how many elements a block has, and its fields
    2: (32, _block(("d", F16, 1), ("qs", _NIBBLE, 32))),  # Q4_0
    3: (32, _block(("dm", F16, 2), ("qs", _NIBBLE, 32))),  # Q4_1
    6: (32, _block(("d", F16, 1), ("qh", _BYTE, 4), ("qs", _NIBBLE, 32))),  # Q5_0
    7: (32, _block(("dm", F16, 2), ("qh", _BYTE, 4), ("qs", _NIBBLE, 32))),  # Q5_1
    8: (32, _block(("d", F16, 1), ("qs", symmetric(signed(8)), 32))),  # Q8_0
    10: (256, _block(("scales", _BYTE, 16), ("qs", _BYTE, 64), ("dm", F16, 2))),  # Q2_K
    11: (256, _block(("hmask", _BYTE, 32), ("qs", _BYTE, 64), ("scales", _BYTE, 12),
                     ("d", F16, 1))),  # Q3_K
    12: (256, _block(("dm", F16, 2), ("scales", _BYTE, 12), ("qs", _NIBBLE, 256))),  # Q4_K
    13: (256, _block(("dm", F16, 2), ("scales", _BYTE, 12), ("qh", _BYTE, 32),
                     ("qs", _NIBBLE, 256))),  # Q5_K
    14: (256, _block(("ql", _NIBBLE, 256), ("qh", _BYTE, 64), ("scales", signed(8), 16),
                     ("d", F16, 1))),  # Q6_K
    20: (32, _block(("d", F16, 1), ("qs", _NIBBLE, 32))),  # IQ4_NL
    23: (256, _block(("d", F16, 1), ("scales", _BYTE, 6), ("qs", _NIBBLE, 256))),  # IQ4_XS
}  # fmt: skip


def tensors_of(source: Source) -> Iterator[Stored]:
    """Gives the tensors of types with a meaning that regions can say."""
    cursor = _Cursor(source)
    version = cursor.number(4, "the version")
    if version not in (2, 3):
        raise source.broken(f"GGUF version {version} is none of 2 and 3, little-endian", 4)
    tensors, entries = cursor.number(8, "the tensor count"), cursor.number(8, "the entry count")
    alignment = _alignment(cursor, entries)
    listed = [cursor.tensor() for _ in range(tensors)]
    if cursor.at > source.size:
        raise source.broken("the metadata does not end within the file", cursor.at)
    start = -(-cursor.at // alignment) * alignment
    for name, shape, type_, offset, where in listed:
        if offset % alignment:
            raise source.broken(f"tensor {name!r:.80} is not aligned to {alignment}", where)
        elements = math.prod(shape)
        if type_ in _PLAIN:
            field = _PLAIN[type_]
            yield Stored(name, start + offset, elements * field.width // 8, (field,))
        elif type_ in _BLOCKS:
            per_block, (stride, fields) = _BLOCKS[type_]
            if not shape or shape[0] % per_block:
                raise source.broken(f"a row of {name!r:.80} is no whole number of blocks", where)
            yield Stored(name, start + offset, elements // per_block * stride, fields, stride)


def _alignment(cursor: "_Cursor", entries: int) -> int:
    """Passes over the metadata; gives the only entry that says where something is."""
    alignment = 32
    for _ in range(entries):
        key, type_ = cursor.text("a key"), cursor.number(4, "a type")
        if key != b"general.alignment":
            cursor.skip(type_, 0)
            continue
        alignment = cursor.number(4, "the alignment") if type_ == _U32 else 0
        if alignment.bit_count() != 1:
            raise cursor.source.broken("the alignment is no power of two", cursor.at)
    return alignment


class _Cursor:
    """Where in the header the reader is."""

    def __init__(self, source: Source) -> None:
        self.source, self.at = source, len(MAGIC)

    def number(self, length: int, what: str) -> int:
        number = self.source.number(self.at, length, what)
        self.at += length
        return number

    def text(self, what: str) -> bytes:
        length = self.number(8, what)
        text = self.source.bytes_at(self.at, length, what)
        self.at += length
        return text

    def skip(self, type_: int, depth: int) -> None:
        """Passes over a value, which may seem to end beyond the file."""
        if type_ in _SCALAR_BYTES:
            self.at += _SCALAR_BYTES[type_]
        elif type_ == _STRING:
            self.at += 8 + self.source.number(self.at, 8, "a text")
        elif type_ == _ARRAY and depth < NESTING_MAX:
            type_, count = self.number(4, "an array"), self.number(8, "an array")
            if type_ in _SCALAR_BYTES:
                self.at += _SCALAR_BYTES[type_] * count
                return
            for _ in range(count):
                self.skip(type_, depth + 1)
        else:
            raise self.source.broken(f"{type_} is no type of a value", self.at)

    def tensor(self) -> tuple[str, list[int], int, int, int]:
        """Reads a tensor's name, shape (innermost first), type and offset; gives its place too."""
        where = self.at
        name = self.text("a tensor's name").decode(errors="replace")
        dimensions = self.number(4, "a tensor's dimensions")
        if dimensions > DIMENSIONS_MAX:
            raise self.source.broken(f"tensor {name!r:.80} has {dimensions} dimensions", where)
        shape = [self.number(8, "a dimension") for _ in range(dimensions)]
        return name, shape, self.number(4, "a type"), self.number(8, "an offset"), where
