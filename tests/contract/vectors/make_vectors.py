"""Made the golden files of format version 1; kept to show how, never to be run over old files.

python -m tests.contract.vectors.make_vectors DIRECTORY
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from neural_diff import encode
from neural_diff.draft import Draft
from neural_diff.make import make_hashed, make_patch
from neural_diff.region import Blocked, Region
from tests.unit.patch_files import save_buckets, save_safetensors


def main(room: Path) -> None:
    """Writes a base and a patch of every operation, codec and layout, and the digests."""
    rng = np.random.default_rng(2026)
    _sparse(room, rng)
    _floats(room, rng)
    _hashed(room, rng)
    _exact(room, rng)
    _blocked(room, rng)
    digests = {}
    for path in sorted(room.glob("*.target")):
        digests[path.stem] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.unlink()
    (room / "sha256.json").write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")


def _paths(room: Path, name: str) -> tuple[Path, Path, Path]:
    return room / f"{name}.base", room / f"{name}.target", room / f"{name}.patch"


def _sparse(room: Path, rng: np.random.Generator) -> None:
    base, target, patch = _paths(room, "sparse-int8-v1")
    old = rng.integers(-127, 128, (64, 64), np.int8)
    moved = rng.choice(np.array([-40, -9, -3, -1, 1, 2, 5, 60], np.int8), old.shape)
    new = np.where(rng.random(old.shape) < 0.03, old + moved, old).astype(np.int8)
    save_safetensors(base, {"w": ("I8", old)}, {"version": "1"})
    save_safetensors(target, {"w": ("I8", new)}, {"version": "2"})
    make_patch(base, target, patch, provenance={"made by": "make_vectors", "seed": "2026"})


def _floats(room: Path, rng: np.random.Generator) -> None:
    base, target, patch = _paths(room, "sparse-floats-v1")
    old = {
        "half": ("F16", rng.normal(size=200).astype(np.float16)),
        "brain": ("BF16", rng.integers(0, 1 << 16, 200).astype(np.uint16)),
        "dense": ("F32", rng.normal(size=200).astype(np.float32)),
        "signs": ("F32", rng.normal(size=200).astype(np.float32)),
        "few": ("F32", rng.normal(size=200).astype(np.float32)),
    }
    new = {name: (dtype, array.copy()) for name, (dtype, array) in old.items()}
    new["half"][1].view(np.uint16)[::7] += 1  # a step of the ordinal: ADD
    new["half"][1][5] = -new["half"][1][5]
    new["brain"][1][::11] ^= 0x8003
    new["dense"][1][:] *= np.float32(1.0001)
    new["signs"][1][:] *= -1  # every element, by exclusive or
    new["few"][1][[3, 150]] = (np.inf, -0.0)
    save_safetensors(base, old)
    save_safetensors(target, new)
    make_patch(base, target, patch)


def _hashed(room: Path, rng: np.random.Generator) -> None:
    base, target, patch = _paths(room, "hashed-v1")
    old = {"a": ("I8", rng.integers(-127, 128, (40, 50), np.int8))}
    old["b"] = ("I8", rng.integers(-127, 128, 1000, np.int8))
    save_safetensors(base, old)
    buckets = {"a": rng.integers(-900, 901, 40), "b": rng.integers(-900, 901, 200)}
    arrays = {name: values.astype(np.int16) for name, values in buckets.items()}
    file = save_buckets(room / "buckets", arrays, fraction_bits="6")
    make_hashed(base, file, patch, target)
    file.unlink()


def _exact(room: Path, rng: np.random.Generator) -> None:
    base, target, patch = _paths(room, "exact-grown-v1")
    base.write_bytes(rng.bytes(3000))
    target.write_bytes(base.read_bytes()[:2500] + b"configuration " * 70 + rng.bytes(99))
    make_patch(base, target, patch)


def _blocked(room: Path, rng: np.random.Generator) -> None:
    base, target, patch = _paths(room, "blocked-int4-v1")
    blocks = 30
    scales = Region("s", 8, blocks, 16, "f16", layout=Blocked(18, 0, 1, "low"))
    codes = Region("q", 8, blocks * 32, 4, "int", 8, -8, 7, Blocked(18, 2, 32, "low"))
    old = rng.bytes(8 + 18 * blocks)
    rows = np.frombuffer(old, np.uint8)[8:].reshape(blocks, 18)
    before = np.stack([rows[:, 2:] & 15, rows[:, 2:] >> 4], 2).reshape(-1)
    changed = np.flatnonzero(rng.random(before.size) < 0.1)
    after = before.copy()
    after[changed] = (after[changed] + rng.integers(1, 16, len(changed))) % 16
    new_rows = rows.copy()
    pairs = after.reshape(blocks, 16, 2)
    new_rows[:, 2:] = pairs[:, :, 0] | pairs[:, :, 1] << 4
    new_rows[4, 0] ^= 1
    halves = [side[:, :2].copy().view("<u2").reshape(-1) for side in (rows, new_rows)]
    new = old[:8] + new_rows.tobytes()
    base.write_bytes(old)
    target.write_bytes(new)
    sides = [(len(side), hashlib.sha256(side).hexdigest()) for side in (old, new)]
    draft = Draft()
    given = encode.smallest(scales, halves[0], halves[1], np.array([4]))
    draft.add(scales, 0, blocks, given, hashlib.sha256(halves[1].tobytes()).hexdigest())
    given = encode.smallest(codes, before, after, changed)
    stored = new_rows[:, 2:].tobytes()
    draft.add(codes, 0, codes.count, given, hashlib.sha256(stored).hexdigest())
    draft.write(patch, sides[0], sides[1], {})


if __name__ == "__main__":
    # Fails where the directory exists: golden files are not made anew.
    Path(sys.argv[1]).mkdir(parents=True)
    main(Path(sys.argv[1]))
