"""A section: one change of a run of elements of a region, and where its payload lies.

Sections go through the regions once, in file order; within a region those of one operation do not
overlap, so the work is bounded by the size of the file. All arithmetic is on Python integers, so
no product or sum can wrap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, get_args

from neural_diff import limits
from neural_diff.canonical import digest, integer, many, named, one_of, readers_of, record
from neural_diff.errors import Malformed
from neural_diff.region import Region

Op = Literal["add", "set", "hashed", "exact"]

# Codec ids. 2 (blocks32), 3 (class-gaps) and 5 (rans) are reserved.
REPLACE, GAPS, HASHED = 0, 1, 4
# How a stream is stored: one byte that repeats, as it is, or deflated.
CONSTANT, RAW, DEFLATE = 0, 1, 2

# Which codec an operation may use, the parameters that it then has, and for each of its streams
# what says how long it is when decoded (see `_lengths`; empty: the numbers in it do).
_CODECS: dict[tuple[str, int], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("add", GAPS): (("changes",), ("changes", "", "changes", "", "signs")),
    ("set", GAPS): (("changes",), ("changes", "", "changed bytes")),
    ("set", REPLACE): (("xor",), ("all bytes",)),
    ("exact", REPLACE): (("xor",), ("all bytes",)),
    ("hashed", HASHED): (("buckets", "fraction_bits", "seed"), ("buckets", "", "")),
}


class Stream(NamedTuple):
    """One stream of a payload: how it is coded, its bytes in the file, its bytes when decoded."""

    coding: Annotated[int, one_of(CONSTANT, RAW, DEFLATE)]
    stored_bytes: Annotated[int, integer(0, limits.STREAM_BYTES_MAX)]
    decoded_bytes: Annotated[int, integer(0, limits.STREAM_BYTES_MAX)]


def _stream(value: object, where: str) -> Stream:
    """Reads a stream; refuses one that another coding would have stored in fewer bytes."""
    if not isinstance(value, list) or len(value) != len(Stream._fields):
        raise Malformed(f"{where}: must be [coding, stored bytes, decoded bytes]")
    named = dict(zip(Stream._fields, value, strict=True))
    stream = Stream(**record(named, where, readers_of(Stream)))
    coding, stored, decoded = stream
    holds = {
        CONSTANT: stored == 1 <= decoded,
        RAW: stored == decoded,
        DEFLATE: 1 <= stored < decoded,
    }
    if not holds[coding]:
        raise Malformed(f"{where}: {stored} stored bytes cannot be {decoded} bytes in its coding")
    return stream


@dataclass(frozen=True, slots=True)
class Section:
    """One change of elements [start, start + count) of a region; decodes alone."""

    region: Annotated[int, integer(0, limits.REGIONS_MAX - 1)]
    start: Annotated[int, integer(0, limits.REGION_ELEMENTS_MAX)]
    count: Annotated[int, integer(1, limits.REGION_ELEMENTS_MAX)]
    op: Annotated[Op, one_of(*get_args(Op))]
    codec: Annotated[int, one_of(REPLACE, GAPS, HASHED)]
    params: Annotated[Mapping[str, int], named(integer(0, 2**32 - 1), limits.STREAMS_MAX)]
    streams: Annotated[tuple[Stream, ...], many(_stream, limits.STREAMS_MAX, "stream")]
    payload_bytes: Annotated[int, integer(0, limits.WORKING_BYTES_MAX)]
    payload_sha256: Annotated[str, digest]
    result_sha256: Annotated[str, digest]
    offset: int = 0

    @property
    def way(self) -> str:
        """How the payload says it: `replace` if it gives all elements, else as the operation."""
        return "replace" if self.codec == REPLACE else self.op

    @property
    def working_bytes(self) -> int:
        """The bytes of payload and decoded streams held at the same time."""
        return self.payload_bytes + sum(stream.decoded_bytes for stream in self.streams)

    @property
    def changes(self) -> int:
        """The elements that a sparse section names; all it covers for the other kinds."""
        return self.params.get("changes", self.count)


def section_of(value: object, where: str) -> Section:
    """Reads a section of a manifest and checks the rules it keeps alone."""
    section = Section(**record(value, where, readers_of(Section)))
    if (section.op, section.codec) not in _CODECS:
        raise Malformed(f"{where}: operation {section.op} has no codec {section.codec}")
    names, lengths = _CODECS[section.op, section.codec]
    bounds = {
        "changes": integer(1, section.count),
        "xor": integer(0, int(section.op == "set")),
        "buckets": integer(1, min(section.count, limits.BUCKETS_MAX)),
        "fraction_bits": integer(0, limits.FRACTION_BITS_MAX),
        "seed": integer(0, 2**32 - 1),
    }
    record(section.params, f"{where}: params", {name: bounds[name] for name in names})
    if len(section.streams) != len(lengths):
        raise Malformed(f"{where}: must have {len(lengths)} streams, has {len(section.streams)}")
    if section.payload_bytes != sum(stream.stored_bytes for stream in section.streams):
        raise Malformed(f"{where}: payload_bytes is not its streams' sum")
    if section.working_bytes > limits.WORKING_BYTES_MAX:
        raise Malformed(f"{where}: needs {section.working_bytes} bytes, over the limit")
    return section


def check_sections(
    regions: Sequence[Region], sections: Sequence[Section], from_size: int, to_size: int
) -> None:
    """Sections fit their regions, follow each other, and give all that the file grows by."""
    for number, section in enumerate(sections):
        _check_fit(section, f"section {number}", regions)
    _check_order(sections)
    # Every byte beyond the base is given by an exact section, so no patch can fill a disk.
    given = 0
    for section in sections:
        if section.op == "exact":
            start = regions[section.region].file_offset + section.start
            given += max(0, start + section.count - max(start, from_size))
    if given != max(0, to_size - from_size):
        raise Malformed(f"the file grows from {from_size} to {to_size} bytes, {given} are given")


def _check_fit(section: Section, where: str, regions: Sequence[Region]) -> None:
    """A section goes with its region, lies inside it, and has streams of the right lengths."""
    integer(0, len(regions) - 1)(section.region, f"{where}: region")
    region, op = regions[section.region], section.op
    if (op == "exact") != (region.kind == "bytes") or (op == "hashed" and region.kind != "int"):
        raise Malformed(f"{where}: operation {op} does not go with a region of {region.kind}")
    most = limits.REGION_ELEMENTS_MAX if op == "hashed" else limits.SECTION_ELEMENTS_MAX
    integer(0, region.count - 1)(section.start, f"{where}: start")
    integer(1, min(region.count - section.start, most))(section.count, f"{where}: count")
    if section.start % region.unit or (
        section.count % region.unit and section.start + section.count < region.count
    ):
        raise Malformed(f"{where}: does not begin and end between blocks of its region")
    if op == "hashed" and section.count != region.count:
        raise Malformed(f"{where}: a hashed section covers its whole region")
    lengths = _lengths(section, region)
    for number, length in enumerate(_CODECS[op, section.codec][1]):
        if length and section.streams[number].decoded_bytes != lengths[length]:
            raise Malformed(f"{where}: stream {number} must decode to {lengths[length]} bytes")


def _check_order(sections: Sequence[Section]) -> None:
    """Sections go through the regions once; within one, those of an operation do not overlap."""
    reached: dict[str, int] = {}
    for number, section in enumerate(sections):
        if number and section.region != sections[number - 1].region:
            reached = {}
            if section.region < sections[number - 1].region:
                raise Malformed(f"section {number}: its region was finished before")
        if section.start < reached.get(section.op, 0):
            raise Malformed(f"section {number}: overlaps or precedes one of the same operation")
        reached[section.op] = section.start + section.count


def _lengths(section: Section, region: Region) -> dict[str, int]:
    return {
        "changes": section.changes,
        "signs": -(-section.changes // 8),
        "changed bytes": section.changes * region.element_bytes,
        "all bytes": section.count * region.element_bytes,
        "buckets": section.params.get("buckets", 0),
    }
