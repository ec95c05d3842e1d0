"""The patch file: an envelope, a manifest, and sections of payload.

    magic · version · flags · manifest length · SHA-256 of the manifest · manifest · payloads

The manifest (canonical JSON, deflated) names the file before and after, **regions** of it and the
**sections** that change them, in the order in which they are applied. A section decodes alone and
carries the SHA-256 of its payload and of the bytes it results in. Where payloads lie follows from
their lengths: each begins at the next multiple of eight, the bytes between are zero, and the file
ends with the last one. `read_patch` refuses everything that is not exactly so, before any payload
is looked at; `region` and `section` hold their rules. docs/patch-format.md gives it byte by byte.
"""

import hashlib
import struct
from collections.abc import Mapping
from functools import partial
from typing import Annotated, BinaryIO, Literal, NamedTuple

from neural_diff import canonical, limits
from neural_diff.canonical import Reader, digest, integer, many, named, record, row_of, spell, text
from neural_diff.codec import deflate, inflate
from neural_diff.errors import Corrupt, Malformed, Unsuitable
from neural_diff.region import Region, check_places, region_of, spell_region
from neural_diff.section import BLOCKS, CLASS_GAPS, Section, check_sections, section_of

__all__ = ["Move", "Patch", "Region", "Section", "read_patch"]

MAGIC = b"\x89FLEETD\n"
VERSION = 1
ENVELOPE = struct.Struct("<8sHHI32s")
# What a device must be able to do: bits of the manifest's `capabilities`.
CAPABILITY_HASHED = 1
CAPABILITY_CODECS = 2  # the codecs blocks32 and class-gaps, classes, paired residues
CAPABILITY_MOVES = 4

PatchKind = Literal["sparse", "hashed", "exact"]


class Move(NamedTuple):
    """Bytes of the old file that the new file has at another place."""

    to_offset: Annotated[int, integer(0, limits.FILE_BYTES_MAX)]
    from_offset: Annotated[int, integer(0, limits.FILE_BYTES_MAX)]
    length: Annotated[int, integer(1, limits.FILE_BYTES_MAX)]


class Patch(NamedTuple):
    """A patch: the exact file it starts from, the exact file it leads to, and the way."""

    from_size: int
    from_sha256: str
    to_size: int
    to_sha256: str
    regions: tuple[Region, ...]
    sections: tuple[Section, ...]
    provenance: Mapping[str, str]
    moves: tuple[Move, ...] = ()

    @property
    def kind(self) -> PatchKind:
        """Hashed when any section is, sparse when any adds or sets, else exact."""
        ops = {section.op for section in self.sections}
        if "hashed" in ops:
            return "hashed"
        return "sparse" if ops & {"add", "set"} else "exact"

    @property
    def back(self) -> "Patch":
        """The patch as it goes from the new file to the old one, for who subtracts what it adds.

        Raises:
            Unsuitable: more than additions that any old value is good for changed the file.
        """
        if self.moves or self.from_size != self.to_size:
            raise Unsuitable("does not go back: it moves bytes, or changes the file's length")
        for number, section in enumerate(self.sections):
            if section.op != "add" or section.classes > 1:
                raise Unsuitable(f"section {number} does not go back: {section.how}")
        swapped = (self.to_size, self.to_sha256, self.from_size, self.from_sha256)
        return Patch(*swapped, self.regions, self.sections, self.provenance)

    @property
    def kept(self) -> tuple[Move, ...]:
        """What the new file takes from the old one, before any section; between it are zeros."""
        both = min(self.from_size, self.to_size)
        return self.moves or ((Move(0, 0, both),) if both else ())


def read_patch(file: BinaryIO, size: int) -> Patch:
    """Reads envelope and manifest of a patch file of `size` bytes; looks at no payload.

    Raises:
        Malformed: the file is no patch, breaks a rule of the format, or is over a limit.
        Corrupt: the manifest does not have the digest the envelope gives.
    """
    file.seek(0)
    head = file.read(ENVELOPE.size)
    if len(head) < ENVELOPE.size:
        raise Malformed(f"a patch has at least {ENVELOPE.size} bytes, this file has {len(head)}")
    magic, version, flags, length, promised = ENVELOPE.unpack(head)
    if magic != MAGIC:
        raise Malformed("not a patch: the first eight bytes are not a patch's")
    if version != VERSION:
        raise Malformed(f"patch version {version}; this program reads version {VERSION}: update it")
    if flags:
        raise Malformed(f"unknown flags {flags:#06x}; this program is too old for the patch")
    if not 1 <= length <= limits.MANIFEST_BYTES_MAX:
        raise Malformed(f"manifest of {length} bytes; allowed are 1 to {limits.MANIFEST_BYTES_MAX}")
    stored = file.read(length)
    if len(stored) < length:
        raise Malformed(f"patch ends inside its manifest ({len(stored)} of {length} bytes)")
    if hashlib.sha256(stored).digest() != promised:
        raise Corrupt("the manifest does not have the digest of the envelope; fetch it again")
    patch = patch_of(inflate(stored, limits.MANIFEST_BYTES_MAX), ENVELOPE.size + length)
    _check_padding(file, patch, ENVELOPE.size + length, size)
    return patch


def patch_of(spelled: bytes, end: int) -> Patch:
    """Reads a manifest that ends at byte `end` of the file, and checks all of its rules.

    Raises:
        Malformed: a rule is broken or a limit exceeded; the message says which and where.
    """
    top = record(canonical.parse(spelled), "manifest", _PATCH, optional={"moves"})
    before, after = ((top[side]["size"], top[side]["sha256"]) for side in ("from", "to"))
    integer(1, limits.FILE_BYTES_MAX)(after[0], "to: size")
    check_places(top["regions"], after[0])
    check_sections(top["regions"], top["sections"])
    sections = []
    for section in top["sections"]:
        sections.append(section._replace(offset=aligned(end)))
        end = aligned(end) + section.payload_bytes
    moves = top.get("moves", ())
    patch = Patch(*before, *after, top["regions"], tuple(sections), top["provenance"], moves)
    _check_moves(patch)
    _check_given(patch)
    capabilities, needs = _needs(patch)
    if top["capabilities"] != capabilities:
        raise Malformed(f"capabilities must be {capabilities} for these sections: unknown bits")
    if top["limits"] != needs:
        raise Malformed(f"limits must be {needs} for these sections")
    return patch


def manifest_of(patch: Patch) -> bytes:
    """Spells the manifest of a patch; the inverse of `patch_of`."""
    capabilities, needs = _needs(patch)
    spelled = {
        "capabilities": capabilities,
        "from": {"sha256": patch.from_sha256, "size": patch.from_size},
        "limits": needs,
        "provenance": dict(patch.provenance),
        "regions": [spell_region(region) for region in patch.regions],
        "sections": [spell(section) for section in patch.sections],
        "to": {"sha256": patch.to_sha256, "size": patch.to_size},
    }
    return canonical.serialise(spelled | ({"moves": patch.moves} if patch.moves else {}))


def head_of(patch: Patch) -> bytes:
    """Gives the bytes that a patch file begins with: envelope and manifest.

    Raises:
        Malformed: the manifest would be over its limit.
    """
    spelled = manifest_of(patch)
    if len(spelled) > limits.MANIFEST_BYTES_MAX:
        raise Malformed(f"the manifest would have {len(spelled)} bytes, over the limit")
    stored = deflate(spelled)
    digest = hashlib.sha256(stored).digest()
    return ENVELOPE.pack(MAGIC, VERSION, 0, len(stored), digest) + stored


def aligned(offset: int) -> int:
    """Gives the next multiple of eight."""
    return -(-offset // 8) * 8


def _needs(patch: Patch) -> tuple[int, dict[str, int]]:
    """Gives the capability bits and decode limits: what a device must be able to do and hold."""
    sections = patch.sections
    capabilities = {
        CAPABILITY_HASHED: any(section.op == "hashed" for section in sections),
        CAPABILITY_CODECS: any(
            section.codec in (BLOCKS, CLASS_GAPS) or section.params.keys() & {"classes", "paired"}
            for section in sections
        ),
        CAPABILITY_MOVES: bool(patch.moves),
    }
    return sum(bit for bit, needed in capabilities.items() if needed), {
        "changes": sum(section.changes for section in sections),
        "section_elements": max((section.count for section in sections), default=0),
        "working_bytes": max((section.working_bytes for section in sections), default=0),
    }


def _check_moves(patch: Patch) -> None:
    """Moves lie inside both files, in the order of the new one and apart, and repeat little."""
    end = 0
    for number, move in enumerate(patch.moves):
        if move.to_offset < end or move.from_offset + move.length > patch.from_size:
            raise Malformed(f"move {number}: overlaps the one before, or leaves the old file")
        end = move.to_offset + move.length
    if end > patch.to_size or sum(move.length for move in patch.moves) > 2 * patch.from_size:
        raise Malformed("the moves give more bytes than the new file has, or twice the old one has")


def _check_given(patch: Patch) -> None:
    """Every byte that the old file does not give, an exact section does: no disk is filled."""
    ends = [0, *(move.to_offset + move.length for move in patch.kept)]
    starts = [*(move.to_offset for move in patch.kept), patch.to_size]
    holes = [hole for hole in zip(ends, starts, strict=True) if hole[0] < hole[1]]
    wanted, given, at = sum(end - start for start, end in holes), 0, 0
    for section in patch.sections:
        if section.op != "exact":
            continue
        start = patch.regions[section.region].file_offset + section.start
        while at < len(holes) and holes[at][1] <= start:
            at += 1
        for low, high in holes[at:]:
            if low >= start + section.count:
                break
            given += min(high, start + section.count) - max(low, start)
    if given != wanted:
        raise Malformed(f"the old file lacks {wanted} bytes of the new one, {given} are given")


def _check_padding(file: BinaryIO, patch: Patch, manifest_end: int, size: int) -> None:
    """Refuses bytes of the file that belong to nothing."""
    end = manifest_end
    for number, section in enumerate(patch.sections):
        if section.offset > end:
            file.seek(end)
            if file.read(section.offset - end).strip(b"\0"):
                raise Malformed(f"section {number}: the bytes before its payload are not zero")
        end = section.offset + section.payload_bytes
    if size != end:
        raise Malformed(f"the patch ends at byte {end}, but the file has {size} bytes")


_FILE: dict[str, Reader] = {"sha256": digest, "size": integer(0, limits.FILE_BYTES_MAX)}
_PATCH: dict[str, Reader] = {
    "capabilities": integer(0, 2**32 - 1),
    "from": partial(record, readers=_FILE),
    "limits": named(integer(0, 2**64 - 1), 3),
    "moves": many(row_of(Move), limits.MOVES_MAX, "move"),
    "provenance": named(text(limits.PROVENANCE_CHARS_MAX), limits.PROVENANCE_ENTRIES_MAX),
    "regions": many(region_of, limits.REGIONS_MAX, "region"),
    "sections": many(section_of, limits.SECTIONS_MAX, "section"),
    "to": partial(record, readers=_FILE),
}
