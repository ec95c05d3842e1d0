"""Made the golden files of version 1 that came with classes, blocks32 and moves (`…-v1b`).

python -m tests.contract.vectors.make_more DIRECTORY
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from neural_diff import encode
from neural_diff.packed import Encoded
from neural_diff.patch import Move
from neural_diff.region import Region
from tests.unit import reference
from tests.unit.ways import (
    ALL_WAYS,
    KINDS,
    blocked,
    changed,
    drafted,
    raws,
    said,
    sections_of,
    with_raws,
)  # fmt: skip

PATTERNS = ("anywhere", "clustered", "by magnitude")


def main(room: Path) -> None:
    """Writes bases and patches, and the digests of what they lead to."""
    rng = np.random.default_rng(2027)
    made = {f"ways-{_name(*kind)}-v1b": ways(rng, *kind) for kind in KINDS}
    made |= {f"blocked-int{w}-{o}-v1b": nibbles(rng, w, o) for w, o in ((4, "high"), (8, "low"))}
    made["unpaired-int4-v1b"] = unpaired(rng)
    made["hashed-widths-v1b"] = hashed(rng, 900, 5)
    made["hashed-paired-v1b"] = hashed(rng, 9, 2)
    made |= {
        "moves-v1b": moves(rng),
        "grown-v1b": resized(rng, 70),
        "shrunk-v1b": resized(rng, -70),
    }
    digests = {}
    for name, (old, new, patch) in made.items():
        assert reference.applied(old, patch) == new
        (room / f"{name}.base").write_bytes(old)
        (room / f"{name}.patch").write_bytes(patch)
        digests[name] = hashlib.sha256(new).hexdigest()
    (room / "sha256-v1b.json").write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")


Made = tuple[bytes, bytes, bytes]


def _name(kind: str, width: int) -> str:
    return f"int{width}" if kind == "int" else kind


def ways(rng: np.random.Generator, kind: Any, width: int) -> Made:
    """A region for every way to say a difference, with a byte between them."""
    size = 1 + 70 * width // 8
    old = new = rng.bytes(size * len(ALL_WAYS) + 2)
    sections = []
    for number, way in enumerate(ALL_WAYS):
        region = Region(way, 1 + number * size, 70, width, kind)
        pattern = PATTERNS[number % 3]
        far = bool(number % 2)
        new = with_raws(region, new, changed(rng, raws(region, old), width, 0.15, pattern, far))
        sections += sections_of(region, old, new, way, 2 + number)
    return old, new, drafted(sections, old, new)


def nibbles(rng: np.random.Generator, width: int, order: str) -> Made:
    """Blocks, in several sections that begin between blocks."""
    region = blocked(3, 24, order, width)
    old = rng.bytes(3 + region.span_bytes)
    new = with_raws(region, old, changed(rng, raws(region, old), width, 0.1, "anywhere", True))
    before, after = raws(region, old), raws(region, new)
    step, sections = 8 * region.unit, []
    for number, way in enumerate(("class-gaps", "gaps", "set blocks32")):
        start = number * step
        part = slice(start, start + step)
        sections.append((region, start, step, said(way, region, before[part], after[part], 3)))
    return old, new, drafted(sections, old, new)


def unpaired(rng: np.random.Generator) -> Made:
    """4-bit elements changed by magnitudes, over offset binary."""
    old = rng.bytes(60)
    region = Region("q", 10, 100, 4, "int", 8, -8, 7)
    new = with_raws(region, old, changed(rng, raws(region, old), 4, 0.2, "anywhere", True))
    before, after = raws(region, old), raws(region, new)
    given = said("values by class", region, before, after, 5, paired=False)
    return old, new, drafted([(region, 0, 100, given)], old, new)


def hashed(rng: np.random.Generator, most: int, fraction_bits: int) -> Made:
    """Codes of every width moved by buckets, then corrected: twice, over each other."""
    old = new = rng.bytes(400)
    sections: list[tuple[Region, int, int, Encoded]] = []
    end = 0
    for width in (4, 8, 16, 32):
        half = 1 << (width - 1)
        region = Region(
            f"w{width}", end, 50, width, "int", half * (width % 8 == 4), 1 - half, half - 1
        )
        buckets = rng.integers(-most, most + 1, 7).astype(np.int16)
        encoded = encode.hashed(buckets, int(rng.integers(2**32)), fraction_bits)
        sections.append((region, 0, 50, encoded))
        streams = list(_decoded(encoded))
        spelled = {"width": width, "kind": "int", "bias": region.bias}
        spelled |= {"lo": region.lo, "hi": region.hi}
        moved = reference.hashed(encoded.params, spelled, iter(streams), raws(region, old).tolist())
        values = np.array(moved, f"<u{region.element_bytes}")
        for way in ("gaps", "set blocks32"):
            fixed = changed(rng, values, width, 0.1, "anywhere", True)
            sections.append((region, 0, 50, said(way, region, values, fixed)))
            values = fixed
        new = with_raws(region, new, values)
        end += region.span_bytes
    return old, new, drafted(sections, old, new)


def _decoded(encoded: Encoded) -> Any:
    streams = [list(stream) for stream in encoded.streams]
    return reference.streams_of({"streams": streams}, encoded.payload)


def moves(rng: np.random.Generator) -> Made:
    """Two runs that changed places, one of them twice, new bytes between, and some changes."""
    old, given = rng.bytes(300), rng.bytes(40)
    taken = [Move(0, 200, 100), Move(140, 10, 150), Move(290, 220, 30)]
    placed = bytearray(320)
    for to, start, length in taken:
        placed[to : to + length] = old[start : start + length]
    placed[100:140] = given
    region = Region("w", 140, 180, 8, "int", lo=-128, hi=127)
    moved = changed(rng, raws(region, bytes(placed)), 8, 0.1, "anywhere", False)
    new = with_raws(region, bytes(placed), moved)
    exact = (Region("new", 100, 40, 8, "bytes"), 0, 40, encode.literal(given))
    sections = [exact, *sections_of(region, bytes(placed), new, "class-gaps", 16)]
    return old, new, drafted(sections, old, new, taken)


def resized(rng: np.random.Generator, by: int) -> Made:
    """A file cut, or made longer by bytes that are given, and changed before."""
    old = rng.bytes(300)
    both, added = min(300, 300 + by), rng.bytes(max(by, 0))
    region = Region("w", 0, both, 8, "int", lo=-128, hi=127)
    start = old[:both] + added
    new = with_raws(region, start, changed(rng, raws(region, start), 8, 0.1, "clustered", False))
    sections = list(sections_of(region, start, new, "blocks32"))
    if added:
        sections.append((Region("end", 300, by, 8, "bytes"), 0, by, encode.literal(added)))
    return old, new, drafted(sections, old, new)


if __name__ == "__main__":
    # Fails where the directory exists: golden files are not made anew.
    Path(sys.argv[1]).mkdir(parents=True)
    main(Path(sys.argv[1]))
