"""Reads where the tensors of an ONNX model are, in the model or in a file of data beside it.

The file is a protobuf message, ModelProto of onnx.proto: fields, each with a number and a length
(https://protobuf.dev/programming-guides/encoding/). The tensors are a graph's initializers and
the constants of its nodes, in the bodies of loops and branches and in functions too. Numbers that
are written one by one (`float_data`, `int32_data`) have no fixed width there and stay uncovered.

Protobuf has no magic: a file is taken for a model if it begins with a version and another field
of ModelProto, if its outermost fields end where it does, and if one of them is a graph. Any other
file is unknown, not broken.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from neural_diff.errors import Malformed
from neural_diff.layout.source import DIMENSIONS_MAX, NESTING_MAX, Source
from neural_diff.layout.stored import BF16, F16, F32, Stored, signed, unsigned

_TYPES = {
    1: F32, 2: unsigned(8), 3: signed(8), 4: unsigned(16), 5: signed(16), 6: signed(32), 10: F16,
    12: unsigned(32), 16: BF16, 21: unsigned(4), 22: signed(4),
}  # fmt: skip
_GRAPH = 7
_WITHIN = {  # which fields of a message are messages that tensors may be in
    "model": {_GRAPH: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 6: "graph", 11: "graph"},
}
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 9, 13, 14
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_SECOND_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42"  # producer to graph, and opset_import
_VERSION_MAX = 63
_EXTERNAL = 1  # of DataLocation


class _Field(NamedTuple):
    number: int
    wire: int
    start: int
    end: int


def is_model(source: Source) -> bool:
    """Whether a file begins with ir_version, consists of fields, and has a graph."""
    head = source.bytes_at(0, min(3, source.size), "the beginning")
    first, version, second = head if len(head) == 3 else (0, 0, 0)
    if first != 8 or not 0 < version <= _VERSION_MAX or second not in _SECOND_FIELDS:
        return False
    try:
        return _GRAPH in {field.number for field in _fields(source, 0, source.size)}
    except Malformed:
        return False


def tensors_of(source: Source) -> Iterator[Stored]:
    """Gives the tensors whose bytes are in the model itself."""
    return (stored for stored, place in _tensors(source) if place is None)


def tensors_beside(index: Source, data: Path) -> list[Stored]:
    """Gives the tensors whose bytes are in a file of data, by what the model says.

    Raises:
        Malformed: the model is broken, or has no tensor in that file.
    """
    outside = [(stored, place) for stored, place in _tensors(index) if place is not None]
    whole = data.absolute().as_posix()
    found = [stored for stored, place in outside if whole.endswith(f"/{place.removeprefix('./')}")]
    if not found:
        named = sorted({place for _, place in outside})
        raise index.broken(f"no tensor is in {data.name}, those outside are in {named!s:.200}", 0)
    return found


def _tensors(source: Source) -> Iterator[tuple[Stored, str | None]]:
    """Gives tensors in the order of the file, and for those in a file of data where that is."""
    waiting = [("model", 0, source.size, 0)]
    while waiting:
        message, start, end, depth = waiting.pop()
        if message == "tensor":
            yield from _tensor(source, start, end)
            continue
        if depth > NESTING_MAX:
            raise source.broken(f"more than {NESTING_MAX} messages within each other", start)
        waiting += [
            (_WITHIN[message][field.number], field.start, field.end, depth + 1)
            for field in _fields(source, start, end)
            if field.wire == _BYTES and field.number in _WITHIN[message]
        ][::-1]


def _tensor(source: Source, start: int, end: int) -> Iterator[tuple[Stored, str | None]]:
    """Gives a tensor if its bytes have a place and its elements a meaning."""
    fields = list(_fields(source, start, end))
    last = {field.number: field for field in fields}
    shape = [number for dims in fields if dims.number == _DIMS for number in _numbers(source, dims)]
    type_, place = (
        next(_numbers(source, last[number]), 0) if number in last else 0
        for number in (_DATA_TYPE, _DATA_LOCATION)
    )
    element, external = _TYPES.get(type_), place == _EXTERNAL
    if element is None or not (external or _RAW_DATA in last):
        return
    if len(shape) > DIMENSIONS_MAX:
        raise source.broken(f"a tensor has {len(shape)} dimensions", start)
    length = -(-math.prod(shape) * element.width // 8)
    name, location = _text(source, last.get(_NAME)), None
    if external:
        pairs = [
            {inner.number: inner for inner in _fields(source, entry.start, entry.end)}
            for entry in fields
            if entry.number == _EXTERNAL_DATA
        ]
        said = {_text(source, pair.get(1)): _text(source, pair.get(2)) for pair in pairs}
        location = said.get("location", "")
        place = _decimal(source, said.get("offset", "0"), start)
        given = _decimal(source, said.get("length", str(length)), start)
    else:
        place, given = last[_RAW_DATA].start, last[_RAW_DATA].end - last[_RAW_DATA].start
    if given != length:
        what = f"tensor {name!r:.80} of shape {shape!s:.80} has {given} bytes, not {length}"
        raise source.broken(what, start)
    yield Stored(name, place, length, (element,)), location


def _decimal(source: Source, text: str, where: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise source.broken(f"external data of a tensor: {text!r:.40} is no number", where)
    return int(text)


def _fields(source: Source, start: int, end: int) -> Iterator[_Field]:
    """Gives the fields of the message in [start, end), where the bytes of each are."""
    at = start
    while at < end:
        tag, at = _varint(source, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            stop = _varint(source, at, end)[1]
        elif wire == _BYTES:
            length, at = _varint(source, at, end)
            stop = at + length
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            stop = at + (8 if wire == _EIGHT_BYTES else 4)
        else:
            raise source.broken(f"field {number} has wire type {wire}", at)
        if stop > end:
            raise source.broken(f"field {number} does not end within its message", at)
        yield _Field(number, wire, at, stop)
        at = stop


def _varint(source: Source, at: int, end: int) -> tuple[int, int]:
    """Gives a number of seven bits a byte, and the place after it."""
    number = 0
    for place, byte in enumerate(source.bytes_at(at, max(min(10, end - at), 0), "a number")):
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, at + place + 1
    raise source.broken("a number does not end", at)


def _numbers(source: Source, field: _Field) -> Iterator[int]:
    """Gives the numbers of a repeated field, written one by one or packed."""
    at = field.start
    while at < field.end:
        number, at = _varint(source, at, field.end)
        yield number


def _text(source: Source, field: _Field | None) -> str:
    start, end = (field.start, field.end) if field else (0, 0)
    return source.bytes_at(start, end - start, "a text").decode(errors="replace")
