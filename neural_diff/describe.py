"""Says what a patch file does, for a person (maker side)."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from neural_diff import codec
from neural_diff.decode_numpy import positions_of
from neural_diff.errors import Malformed
from neural_diff.link import open_regular
from neural_diff.patch import Patch, read_patch
from neural_diff.region import Part, Region
from neural_diff.section import CLASS_GAPS, REPLACE, Section


def describe(path: Path) -> dict[str, object]:
    """Gives sizes, kind and what happens to each tensor of a patch file.

    `share_of_target` is the size of the patch over that of the file it makes; `density` the share
    of a tensor's elements that are named as changed (`null` where only the base says which they
    are); `share_of_patch` its payload over the patch's size, where tensors share sections in
    proportion to their changes, or else to their elements.

    Raises:
        Malformed: the file is no patch.
        Corrupt: the manifest's digest is wrong. Payloads are looked at only to count changes.
    """
    with open_regular(path.resolve(), Malformed) as file:
        size = path.stat().st_size
        patch = read_patch(file, size)
        rows = [row for number in range(len(patch.regions)) for row in _rows(patch, number, file)]
    for row in rows:
        row["share_of_patch"] = row["bytes"] / size
    return {
        "kind": patch.kind,
        "patch_bytes": size,
        "share_of_target": size / patch.to_size,
        "from": {"size": patch.from_size, "sha256": patch.from_sha256},
        "to": {"size": patch.to_size, "sha256": patch.to_sha256},
        "sections": len(patch.sections),
        "moves": len(patch.moves),
        "goes_back": not patch.one_way,
        "provenance": dict(patch.provenance),
        "regions": rows,
    }


def _rows(patch: Patch, number: int, file: BinaryIO) -> Iterator[dict[str, Any]]:
    region = patch.regions[number]
    sections = [section for section in patch.sections if section.region == number]
    payload = sum(section.payload_bytes for section in sections)
    parts = region.parts or (Part(region.name, region.count),)
    changed = _changed(region, parts, sections, file)
    total = sum(count or 0 for count in changed)
    for part, count in zip(parts, changed, strict=True):
        share = part.count / region.count if count is None else count / max(total, 1)
        yield {
            "name": part.name,
            "kind": region.kind,
            "width": region.width,
            "elements": part.count,
            "how": sorted({section.how for section in sections}),
            "changed": count,
            "density": None if count is None else count / part.count,
            "bytes": round(payload * share),
            "bits_per_change": 8 * payload * share / count if count else None,
        }


def _changed(
    region: Region, parts: tuple[Part, ...], sections: list[Section], file: BinaryIO
) -> list[int | None]:
    """Counts the changes of each part, as far as the patch alone says where they are."""
    if len(parts) == 1:
        return [min(sum(section.changes for section in sections), region.count)]
    if any(section.codec == CLASS_GAPS and section.looks for section in sections):
        return [None] * len(parts)
    ends = list(accumulate(part.count for part in parts))
    found = np.zeros(len(parts), np.int64)
    for section in sections:
        places = np.arange(section.count)
        if section.codec != REPLACE:
            file.seek(section.offset)
            streams = codec.unpack(section.streams, file.read(section.payload_bytes))
            table = codec.class_table(section, streams[0]) if section.classes > 1 else b""
            classed, _ = positions_of(section, streams[section.classes > 1 :], table)
            places = np.concatenate(classed)
        which = np.searchsorted(ends, places + section.start, side="right")
        found += np.bincount(which, minlength=len(parts))
    return [int(count) for count in found]
