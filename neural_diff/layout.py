"""Reads which regions a model file has, from safetensors (maker side; the device needs no parser).

A safetensors file is a length (u64), a JSON header and the tensors' bytes without holes, see
https://github.com/huggingface/safetensors. The reader is strict: a header that does not describe
exactly the bytes of the file is refused, since a model made wrongly should not travel.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from neural_diff.canonical import Reader, integer, many, one_of, record, strict_json
from neural_diff.errors import Malformed
from neural_diff.region import Kind, Region

HEADER_BYTES_MAX = 100_000_000
_BITS = {
    "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
_NUMBER = integer(0, 2**64 - 1)
_TENSOR: dict[str, Reader] = {
    "dtype": one_of(*_BITS),
    "shape": many(_NUMBER, 256, "dimension"),
    "data_offsets": many(_NUMBER, 2, "offset"),
}
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
        entries = strict_json(spelled.decode())
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{path}: bad safetensors header ({error})") from None
    if not isinstance(entries, dict):
        raise Malformed(f"{path}: the safetensors header is no object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(type(said) is not str for said in metadata.values()):
        raise Malformed(f"{path}: __metadata__ of a safetensors header is text by name")
    tensors = [
        _tensor(name, entries[name], f"{path}: tensor {name}", 8 + length) for name in entries
    ]
    tensors.sort(key=lambda tensor: (tensor.file_offset, tensor.stored_bytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.file_offset != end:
            raise Malformed(f"{path}: tensor {tensor.name} leaves a hole or overlaps another")
        end += tensor.stored_bytes
    if end != size:
        raise Malformed(f"{path}: the tensors end at byte {end}, the file has {size}")
    return Header(metadata, tuple(tensors))


def _tensor(name: str, entry: object, where: str, data_start: int) -> Tensor:
    dtype, shape, offsets = record(entry, where, _TENSOR).values()
    begin, end = offsets if len(offsets) == 2 else (0, -1)
    if end - begin != math.prod(shape) * _BITS[dtype] // 8:
        raise Malformed(f"{where}: bytes {begin} to {end} are not {dtype} of shape {shape}")
    return Tensor(name, dtype, shape, data_start + begin, end - begin)


def _region(tensor: Tensor) -> Region:
    kind, width = _KINDS[tensor.dtype], _BITS[tensor.dtype]
    lo, hi = (-128, 127) if kind == "int" else (0, 0)
    count = tensor.stored_bytes * 8 // width
    return Region(tensor.name, tensor.file_offset, count, width, kind, 0, lo, hi)
