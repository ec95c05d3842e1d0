"""Reads which regions a model file has, from safetensors (maker side; the device needs no parser).

A safetensors file is a length (u64), a JSON header and the tensors' bytes without holes, see
https://github.com/huggingface/safetensors. The reader is strict: a header that does not describe
exactly the bytes of the file is refused, since a model made wrongly should not travel.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_diff.errors import Malformed
from neural_diff.region import Kind, Region

HEADER_BYTES_MAX = 100_000_000
_BITS = {
    "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
_KINDS: dict[str, Kind] = {"I8": "int", "F16": "f16", "BF16": "bf16", "F32": "f32"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file_offset: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class TensorRegion:
    """A tensor that can be diffed, as a region; its elements are in C order."""

    tensor: Tensor
    region: Region


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a safetensors file: its metadata, its tensors in file order."""

    metadata: dict[str, str]
    tensors: tuple[Tensor, ...]


def regions_of(path: Path) -> list[TensorRegion]:
    """Gives the int8, f16, bf16 and f32 tensors of a safetensors file as regions, in file order.

    Raises:
        Malformed: the file is no safetensors file, or its header does not describe its bytes.
    """
    return [
        TensorRegion(tensor, _region(tensor))
        for tensor in read_header(path).tensors
        if tensor.dtype in _KINDS and tensor.stored_bytes
    ]


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as a safetensors file does: a length, then an opening brace."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


def read_header(path: Path) -> Header:
    """Reads the header of a safetensors file.

    Raises:
        Malformed: the file is no safetensors file, or its header does not describe its bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, HEADER_BYTES_MAX):
            raise Malformed(f"{path}: is no safetensors file (header of {length} bytes)")
        spelled = file.read(length)
    try:
        entries = _entries(json.loads(spelled.decode(), object_pairs_hook=_object))
        metadata = entries.pop("__metadata__", {})
        if not all(isinstance(said, str) for said in _entries(metadata).values()):
            raise ValueError("metadata is text only")
        tensors = [_tensor(name, entry, 8 + length) for name, entry in entries.items()]
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{path}: bad safetensors header ({error})") from None
    tensors.sort(key=lambda tensor: (tensor.file_offset, tensor.stored_bytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.file_offset != end:
            raise Malformed(f"{path}: tensor {tensor.name} leaves a hole or overlaps another")
        end += tensor.stored_bytes
    if end != size:
        raise Malformed(f"{path}: the tensors end at byte {end}, the file has {size}")
    return Header(metadata, tuple(tensors))


def _entries(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object was expected")
    return value


def _tensor(name: str, entry: object, data_start: int) -> Tensor:
    values = _entries(entry)
    if values.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name}: needs dtype, shape and data_offsets")
    dtype, shape, offsets = values["dtype"], values["shape"], values["data_offsets"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"tensor {name}: shape and offsets must be integers of 0 or more")
    if len(offsets) != 2 or not isinstance(dtype, str):
        raise ValueError(f"tensor {name}: has two offsets and the name of a dtype")
    begin, end = offsets
    if dtype not in _BITS or end - begin != math.prod(shape) * _BITS[dtype] // 8:
        raise ValueError(f"tensor {name}: {end - begin} bytes are not {dtype} of shape {shape}")
    return Tensor(name, dtype, tuple(shape), data_start + begin, end - begin)


def _region(tensor: Tensor) -> Region:
    kind, width = _KINDS[tensor.dtype], _BITS[tensor.dtype]
    lo, hi = (-128, 127) if kind == "int" else (0, 0)
    count = tensor.stored_bytes * 8 // width
    return Region(tensor.name, tensor.file_offset, count, width, kind, 0, lo, hi)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found
