"""Says what a patch file does, for a person (maker side)."""

from pathlib import Path

from neural_diff.apply import open_regular
from neural_diff.errors import Malformed
from neural_diff.patch import Patch, read_patch


def describe(path: Path) -> dict[str, object]:
    """Gives sizes, kind and what happens to each region of a patch file.

    `share_of_target` is the size of the patch over that of the file it makes; `density` the share
    of a region's elements that are named as changed; `share_of_patch` a region's payload over the
    patch's size.

    Raises:
        Malformed: the file is no patch.
        Corrupt: the manifest's digest is wrong. Payloads are not looked at.
    """
    with open_regular(path.resolve(), Malformed) as file:
        size = path.stat().st_size
        patch = read_patch(file, size)
    return {
        "kind": patch.kind,
        "patch_bytes": size,
        "share_of_target": size / patch.to_size,
        "from": {"size": patch.from_size, "sha256": patch.from_sha256},
        "to": {"size": patch.to_size, "sha256": patch.to_sha256},
        "provenance": dict(patch.provenance),
        "regions": [_region(patch, number, size) for number in range(len(patch.regions))],
    }


def _region(patch: Patch, number: int, size: int) -> dict[str, object]:
    region = patch.regions[number]
    sections = [section for section in patch.sections if section.region == number]
    changed = min(sum(section.changes for section in sections), region.count)
    payload = sum(section.payload_bytes for section in sections)
    return {
        "name": region.name,
        "kind": region.kind,
        "width": region.width,
        "elements": region.count,
        "ops": sorted({section.op for section in sections}),
        "sections": len(sections),
        "changed": changed,
        "density": changed / region.count,
        "bytes": payload,
        "bits_per_change": 8 * payload / changed if changed else 0.0,
        "share_of_patch": payload / size,
    }
