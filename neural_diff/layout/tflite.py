"""Reads where the tensors of a TensorFlow Lite model are.

The file is one flatbuffer with identifier TFL3, laid out by schema.fbs of TensorFlow: a model has
subgraphs, those have tensors, and a tensor names one of the model's buffers; a file over 2 GB has
its buffers' bytes behind the flatbuffer. A table says by a list of offsets, its vtable, which
fields it has and where: https://flatbuffers.dev/internals/.

int8 and int4 weights with a scale for each channel use no lowest value, as TensorFlow's
quantisation specification has it.
"""

from collections.abc import Iterator

from neural_diff.layout.source import Source
from neural_diff.layout.stored import BF16, F16, F32, Field, Stored, signed, symmetric, unsigned

IDENTIFIER = b"TFL3"
_TYPES = {
    0: F32, 1: F16, 2: signed(32), 3: unsigned(8), 7: signed(16), 9: signed(8), 15: unsigned(32),
    16: unsigned(16), 17: signed(4), 18: BF16, 20: unsigned(4),
}  # fmt: skip
_INT8, _INT4 = 9, 17
# Fields of the tables, by their numbers in the schema.
_MODEL_SUBGRAPHS, _MODEL_BUFFERS = 2, 4
_SUBGRAPH_TENSORS = 0
_TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME, _TENSOR_QUANTIZATION = 1, 2, 3, 4
_QUANTIZATION_SCALE = 2
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 0, 1, 2


def tensors_of(source: Source) -> Iterator[Stored]:
    """Gives the tensors that have bytes, of types that regions can say."""
    model = _Table(source, source.number(0, 4, "the root"))
    buffers = model.tables(_MODEL_BUFFERS)
    for subgraph in _each(source, model.tables(_MODEL_SUBGRAPHS)):
        for tensor in _each(source, subgraph.tables(_SUBGRAPH_TENSORS)):
            field = _field_of(tensor)
            number = tensor.number(_TENSOR_BUFFER, 4)
            if number and number >= len(buffers):
                raise source.broken(f"there is no buffer {number}", tensor.at)
            if field and number:
                start, length = _bytes_of(_Table.at_reference(source, buffers[number]))
                name = tensor.text(_TENSOR_NAME) or f"buffer {number}"
                yield Stored(name, start, length, (field,))


def _field_of(tensor: "_Table") -> Field | None:
    type_ = tensor.number(_TENSOR_TYPE, 1)
    field = _TYPES.get(type_)
    quantization = tensor.table(_TENSOR_QUANTIZATION)
    if field and quantization and type_ in (_INT8, _INT4):
        _, scales = quantization.vector(_QUANTIZATION_SCALE, 4)
        return symmetric(field) if scales > 1 else field
    return field


def _bytes_of(buffer: "_Table") -> tuple[int, int]:
    """Gives where a buffer's bytes are, and how many; an offset of 1 only keeps its place."""
    offset, size = buffer.number(_BUFFER_OFFSET, 8), buffer.number(_BUFFER_SIZE, 8)
    return (offset, size) if offset > 1 else buffer.vector(_BUFFER_DATA, 1)


def _each(source: Source, references: range) -> "Iterator[_Table]":
    return (_Table.at_reference(source, place) for place in references)


class _Table:
    """A table of a flatbuffer: its fields' places are looked up in its vtable."""

    def __init__(self, source: Source, at: int) -> None:
        self.source, self.at = source, at
        back = int.from_bytes(source.bytes_at(at, 4, "a table"), "little", signed=True)
        self._vtable = at - back
        self._vtable_bytes = source.number(self._vtable, 2, "a table of fields")

    @classmethod
    def at_reference(cls, source: Source, place: int) -> "_Table":
        """Gives the table that an offset in the file refers to."""
        return cls(source, place + source.number(place, 4, "a reference"))

    def number(self, field: int, length: int) -> int:
        """Gives an unsigned number; a field that is not there is zero."""
        place = self._place(field)
        return self.source.number(place, length, "a number") if place else 0

    def table(self, field: int) -> "_Table | None":
        place = self._place(field)
        return _Table.at_reference(self.source, place) if place else None

    def tables(self, field: int) -> range:
        """Gives the places of the references in a vector of tables."""
        start, count = self.vector(field, 4)
        return range(start, start + 4 * count, 4)

    def text(self, field: int) -> str:
        start, length = self.vector(field, 1)
        return self.source.bytes_at(start, length, "a text").decode(errors="replace")

    def vector(self, field: int, item_bytes: int) -> tuple[int, int]:
        """Gives where a vector's items begin, and how many they are."""
        place = self._place(field)
        if not place:
            return 0, 0
        start = place + self.source.number(place, 4, "a reference")
        count = self.source.number(start, 4, "a count")
        if start + 4 + count * item_bytes > self.source.size:
            raise self.source.broken(f"a vector of {count} items does not lie in the file", start)
        return start + 4, count

    def _place(self, field: int) -> int:
        entry = 4 + 2 * field
        if entry + 2 > self._vtable_bytes:
            return 0
        offset = self.source.number(self._vtable + entry, 2, "a field's offset")
        return self.at + offset if offset else 0
