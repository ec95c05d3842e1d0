"""Reads where the tensors of a safetensors file are.

A safetensors file is a length (u64), a JSON header and the tensors' bytes without holes, see
https://github.com/huggingface/safetensors. The reader is strict: a header that does not describe
exactly the bytes of the file is refused, since a model made wrongly should not travel.

The format has no int4. A U8 tensor named in the metadata `fleetdiff.int4` (names with commas
between) holds two codes a byte, in two's complement, the first in the low half.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from neural_diff.canonical import Reader, integer, many, one_of, record, strict_json
from neural_diff.errors import Malformed
from neural_diff.layout.stored import BF16, F16, F32, Stored, signed, unsigned

HEADER_BYTES_MAX = 100_000_000
_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
# The small floats are uncovered, but for E8M0: an exponent alone counts as an integer does.
_FIELDS = {
    "I8": signed(8), "U8": unsigned(8), "F8_E8M0": unsigned(8), "I16": signed(16),
    "U16": unsigned(16), "I32": signed(32), "U32": unsigned(32), "F16": F16, "BF16": BF16,
    "F32": F32,
}  # fmt: skip
_INT4 = "fleetdiff.int4"
_NUMBER = integer(0, 2**64 - 1)
_TENSOR: dict[str, Reader] = {
    "dtype": one_of(*_BITS),
    "shape": many(_NUMBER, 256, "dimension"),
    "data_offsets": many(_NUMBER, 2, "offset"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file_offset: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a safetensors file: its metadata, its tensors in file order."""

    metadata: dict[str, str]
    tensors: tuple[Tensor, ...]


def tensors_of(path: Path) -> Iterator[Stored]:
    """Gives the tensors with a meaning that regions can say, and where they are, in file order.

    Raises:
        Malformed: the file is no safetensors file, or its header does not describe its bytes.
    """
    header = read_header(path)
    packed = {name.strip() for name in header.metadata.get(_INT4, "").split(",")} - {""}
    bytes_ = {tensor.name for tensor in header.tensors if tensor.dtype == "U8"}
    if not packed <= bytes_:
        named = f"{sorted(packed - bytes_)!s:.80}"
        raise Malformed(f"{path}: {_INT4} names {named}; only a U8 tensor can be packed int4")
    for tensor in header.tensors:
        field = signed(4) if tensor.name in packed else _FIELDS.get(tensor.dtype)
        if field and tensor.stored_bytes:
            yield Stored(tensor.name, tensor.file_offset, tensor.stored_bytes, (field,))


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as a safetensors file does: a length, then an opening brace.

    A GGUF file of 123 tensors does so too: magic and version are a length, the brace is 123.
    """
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    return head[8:] == b"{" and length < 1 << 40 and head[:4] != b"GGUF"


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
    if 8 * (end - begin) != math.prod(shape) * _BITS[dtype]:
        raise Malformed(f"{where}: bytes {begin} to {end} are not {dtype} of shape {shape}")
    return Tensor(name, dtype, shape, data_start + begin, end - begin)
