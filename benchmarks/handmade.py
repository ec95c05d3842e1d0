"""What somebody would write in an afternoon: where codes changed, and by how much, then zstd.

`index`: the distances between changes as LEB128 numbers. `bitmap`: one bit per code. Both hold the
differences of the codes, never the new codes, and know how wide a code is (4, 8 or 16 bits).
"""

import sys
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

LEVEL = 19
_SHIFTS = np.arange(5, dtype=np.uint64) * np.uint64(7)


def main() -> None:
    """`make WAY BITS OLD NEW PATCH` or `apply WAY BITS OLD PATCH NEW`."""
    verb, way, bits, *names = sys.argv[1:]
    first, second, out = map(Path, names)
    old = _codes(first.read_bytes(), int(bits))
    if verb == "apply":
        out.write_bytes(_bytes(_apply(way, old, second.read_bytes()), int(bits)))
        return
    new = _codes(second.read_bytes(), int(bits))
    if len(old) != len(new):
        sys.exit("files of different sizes")
    mask = (1 << int(bits)) - 1
    step = (new - old) & old.dtype.type(mask)
    place = np.flatnonzero(step)
    where = _leb128(np.diff(place, prepend=-1) - 1) if way == "index" else np.packbits(step != 0)
    parts = [where.tobytes(), step[place].tobytes()]
    stored = [zstandard.ZstdCompressor(level=LEVEL).compress(part) for part in parts]
    out.write_bytes(len(stored[0]).to_bytes(8, "little") + b"".join(stored))


def _apply(way: str, old: NDArray[np.unsignedinteger], patch: bytes) -> NDArray[np.generic]:
    length = int.from_bytes(patch[:8], "little")
    parts = (patch[8 : 8 + length], patch[8 + length :])
    where, steps = (zstandard.ZstdDecompressor().decompress(part) for part in parts)
    if way == "index":
        place = np.cumsum(_from_leb128(np.frombuffer(where, np.uint8)) + 1) - 1
    else:
        place = np.flatnonzero(np.unpackbits(np.frombuffer(where, np.uint8), count=len(old)))
    new = old.copy()
    new[place] += np.frombuffer(steps, old.dtype)
    return new


def _codes(data: bytes, bits: int) -> NDArray[np.unsignedinteger]:
    if bits == 16:
        return np.frombuffer(data, "<u2")
    held = np.frombuffer(data, np.uint8)
    return held if bits == 8 else np.stack([held & 15, held >> 4], axis=1).ravel()


def _bytes(codes: NDArray[np.generic], bits: int) -> bytes:
    if bits != 4:
        return codes.tobytes()
    halves = codes.reshape(-1, 2) & 15
    return (halves[:, 0] | halves[:, 1] << 4).tobytes()


def _leb128(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    digits = numbers.astype(np.uint64)[:, None] >> _SHIFTS
    digits_used = np.maximum((digits != 0).sum(axis=1), 1)
    column = np.arange(len(_SHIFTS))
    more = column < digits_used[:, None] - 1
    coded = (digits & np.uint64(127)).astype(np.uint8) | more.astype(np.uint8) << 7
    return coded[column < digits_used[:, None]]


def _from_leb128(coded: NDArray[np.uint8]) -> NDArray[np.int64]:
    last = np.flatnonzero(coded < 128)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(coded)) - np.repeat(first, last - first + 1)
    digits = (coded & 127).astype(np.int64) << 7 * place
    return np.add.reduceat(digits, first)


if __name__ == "__main__":
    main()
