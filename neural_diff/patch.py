"""The patch file: an envelope, a manifest, and sections of payload.

    magic · version · flags · length of the head · SHA-256 of the head · head · payloads

The head is the manifest (canonical JSON, deflated) and, since no code makes them smaller, all
digests. The manifest names the file before and after, **regions** of it and the **sections** that
change them, in the order in which they are applied. A section decodes alone and has the SHA-256 of
its payload and of the bytes it results in. Where payloads lie follows from their lengths: each
begins at the next multiple of eight, the bytes between are zero, and the file ends with the last
one. `read_patch` refuses everything that is not exactly so, before any payload is looked at;
`region` and `section` hold their rules. docs/patch-format.md gives it byte by byte. In version 1,
which is read for ever, the manifest has the digests as well, and lengths that follow from others.
"""

import hashlib
import struct
from collections.abc import Mapping
from functools import partial, reduce
from operator import or_
from typing import Annotated, BinaryIO, Literal, NamedTuple

from neural_diff import canonical, limits
from neural_diff.canonical import Reader, digest, integer, many, named, record, row_of, spell, text
from neural_diff.codec import deflate, inflate_first
from neural_diff.errors import Corrupt, Malformed, Unsuitable
from neural_diff.region import Region, check_places, region_of, spell_region
from neural_diff.section import Section, check_sections, first_section_of, section_of

__all__ = ["Move", "Patch", "Region", "Section", "read_patch"]

MAGIC = b"\x89FLEETD\n"
VERSION = 2
ENVELOPE = struct.Struct("<8sHHI32s")
DIGEST_BYTES = 32

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
    def one_way(self) -> str:
        """Why the patch does not go back; nothing if it does."""
        if self.moves or self.from_size != self.to_size:
            return "it moves bytes, or changes the file's length"
        stuck = [section.how for section in self.sections if section.op != "add" or section.looks]
        return f"it has a section that says: {stuck[0]}" if stuck else ""

    @property
    def back(self) -> "Patch":
        """The patch as it goes from the new file to the old one, for who subtracts what it adds.

        Raises:
            Unsuitable: more than additions that any old value is good for changed the file.
        """
        if self.one_way:
            raise Unsuitable(f"does not go back: {self.one_way}")
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
    if not 1 <= version <= VERSION:
        raise Malformed(f"patch version {version}; this program reads 1 to {VERSION}: update it")
    if flags:
        raise Malformed(f"unknown flags {flags:#06x}; this program is too old for the patch")
    if not 1 <= length <= limits.MANIFEST_BYTES_MAX:
        raise Malformed(f"manifest of {length} bytes; allowed are 1 to {limits.MANIFEST_BYTES_MAX}")
    stored = file.read(length)
    if len(stored) < length:
        raise Malformed(f"patch ends inside its manifest ({len(stored)} of {length} bytes)")
    if hashlib.sha256(stored).digest() != promised:
        raise Corrupt("the manifest does not have the digest of the envelope; fetch it again")
    end = ENVELOPE.size + length
    patch = patch_of(version, *inflate_first(stored, limits.MANIFEST_BYTES_MAX), end)
    _check_padding(file, patch, end, size)
    return patch


def patch_of(version: int, spelled: bytes, digests: bytes, end: int) -> Patch:
    """Reads a head that ends at byte `end` of the file, and checks all of its rules.

    In version 1 no digests follow the manifest, which has them.

    Raises:
        Malformed: a rule is broken or a limit exceeded; the message says which and where.
    """
    readers = _FIRST if version == 1 else _PATCH
    top = record(canonical.parse(spelled), "manifest", readers, optional={"moves"})
    sides, sections = [top[side] for side in ("from", "to")], list(top["sections"])
    wanted = DIGEST_BYTES * (2 + 2 * len(sections)) if version > 1 else 0
    if len(digests) != wanted:
        raise Malformed(f"{len(digests)} bytes of digests follow the manifest, not {wanted}")
    if digests:
        each = (digests[at : at + DIGEST_BYTES].hex() for at in range(0, wanted, DIGEST_BYTES))
        sides = [{"size": size, "sha256": next(each)} for size in sides]
        sections = [
            s._replace(payload_sha256=next(each), prefix_sha256=next(each)) for s in sections
        ]
    before, after = ((side["size"], side["sha256"]) for side in sides)
    integer(1, limits.FILE_BYTES_MAX)(after[0], "to: size")
    check_places(top["regions"], after[0])
    check_sections(top["regions"], sections)
    for number, section in enumerate(sections):
        sections[number] = section._replace(offset=aligned(end))
        end = aligned(end) + section.payload_bytes
    moves = top.get("moves", ())
    patch = Patch(*before, *after, top["regions"], tuple(sections), top["provenance"], moves)
    _check_moves(patch)
    _check_given(patch)
    if top["capabilities"] != _capabilities(patch):
        raise Malformed(f"capabilities must be {_capabilities(patch)} for these sections")
    needs = {
        "changes": sum(section.changes for section in sections),
        "section_elements": max((section.count for section in sections), default=0),
        "working_bytes": max((section.working_bytes for section in sections), default=0),
    }
    if top.get("limits", needs) != needs:
        raise Malformed(f"limits must be {needs} for these sections")
    return patch


def head_of(patch: Patch) -> bytes:
    """Gives the bytes that a patch file begins with; the inverse of `patch_of` in an envelope.

    Raises:
        Malformed: the head would be over its limit.
    """
    sections = [spell(s) | {"streams": [one.short for one in s.streams]} for s in patch.sections]
    digests = [patch.from_sha256, patch.to_sha256]
    digests += [s.payload_sha256 + s.prefix_sha256 for s in patch.sections]
    spelled = {
        "capabilities": _capabilities(patch),
        "from": patch.from_size,
        "provenance": dict(patch.provenance),
        "regions": [spell_region(region) for region in patch.regions],
        "sections": sections,
        "to": patch.to_size,
    } | ({"moves": patch.moves} if patch.moves else {})
    manifest = canonical.serialise(spelled)
    head = deflate(manifest) + bytes.fromhex("".join(digests))
    if max(len(manifest), len(head)) > limits.MANIFEST_BYTES_MAX:
        raise Malformed(f"the manifest would have {len(manifest)} bytes, over the limit")
    return ENVELOPE.pack(MAGIC, VERSION, 0, len(head), hashlib.sha256(head).digest()) + head


def aligned(offset: int) -> int:
    """Gives the next multiple of eight."""
    return -(-offset // 8) * 8


def _capabilities(patch: Patch) -> int:
    """Gives the bits of what a device must be able to do: moves, and what the sections ask for."""
    return reduce(or_, [section.capabilities for section in patch.sections], 4 * bool(patch.moves))


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


_SIZE = integer(0, limits.FILE_BYTES_MAX)
_PATCH: dict[str, Reader] = {
    "capabilities": integer(0, 2**32 - 1),
    "from": _SIZE,
    "moves": many(row_of(Move), limits.MOVES_MAX, "move"),
    "provenance": named(text(limits.PROVENANCE_CHARS_MAX), limits.PROVENANCE_ENTRIES_MAX),
    "regions": many(region_of, limits.REGIONS_MAX, "region"),
    "sections": many(section_of, limits.SECTIONS_MAX, "section"),
    "to": _SIZE,
}
_FILE = partial(record, readers={"sha256": digest, "size": _SIZE})
_FIRST: dict[str, Reader] = {
    **_PATCH,
    **{"from": _FILE, "to": _FILE, "limits": named(integer(0, 2**64 - 1), 3)},
    "sections": many(first_section_of, limits.SECTIONS_MAX, "section"),
}
