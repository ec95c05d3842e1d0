"""What a hashed update makes of a model: the formula of docs/patch-format.md, written once more.

The targets of the benchmarks come from here and not from the code that is measured.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.laws import Codes


def moved(
    codes: Codes, buckets: NDArray[np.int16], seed: int, fraction_bits: int, lo: int, hi: int
) -> Codes:
    """Move every code by the bucket that its index hashes to."""
    mixed = np.arange(codes.size, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(seed)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ mixed >> np.uint32(shift)) * np.uint32(factor)
    mixed ^= mixed >> np.uint32(16)
    place = mixed.astype(np.uint64) * np.uint64(len(buckets)) >> np.uint64(32)
    steps = buckets.astype(np.int32)[place.astype(np.intp)]
    steps = np.where(mixed & np.uint32(1), -steps, steps)
    dither = (mixed >> np.uint32(1) & np.uint32((1 << fraction_bits) - 1)).astype(np.int32)
    new = codes.ravel() + (steps + dither >> fraction_bits)
    return new.clip(lo, hi).astype(codes.dtype).reshape(codes.shape)


def region_seed(patch_seed: bytes, name: str) -> int:
    """Give the seed of a tensor."""
    return int.from_bytes(hashlib.sha256(patch_seed + name.encode()).digest()[:4], "little")


def hashed_model(old: Path, buckets: Path) -> bytes:
    """Give the file that a bucket file makes of a model file."""
    result, (start, header) = bytearray(old.read_bytes()), _header(old)
    held, (first, entries) = buckets.read_bytes(), _header(buckets)
    said = entries.pop("__metadata__")
    fraction_bits, lo, hi = (int(said[name]) for name in ("fraction_bits", "lo", "hi"))
    for entry, place in entries.items():
        name = entry.removesuffix(".buckets")
        begin, end = place["data_offsets"]
        values = np.frombuffer(held[first + begin : first + end], "<i2")
        begin, end = header[name]["data_offsets"]
        codes = np.frombuffer(result, "i1", end - begin, start + begin)
        seed = region_seed(bytes.fromhex(said["patch_seed"]), name)
        codes[:] = moved(codes, values, seed, fraction_bits, lo, hi)
    return bytes(result)


def weights_of(path: Path) -> int:
    """Count the int8 weights of a model file."""
    _, header = _header(path)
    places = [entry["data_offsets"] for entry in header.values() if entry.get("dtype") == "I8"]
    return sum(end - begin for begin, end in places)


def _header(path: Path) -> tuple[int, dict]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length, json.loads(file.read(length))
