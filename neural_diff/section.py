"""A section: one change of a run of elements of a region, and where its payload lies.

Sections go through the regions once, in file order; within a region those of one operation do not
overlap, so the work is bounded by the size of the file. All arithmetic is on Python integers, so
no product or sum can wrap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from neural_diff import limits
from neural_diff.canonical import digest, fields, integer, items, one_of
from neural_diff.errors import Malformed
from neural_diff.region import Region

Op = Literal["add", "set", "hashed", "exact"]

# Codec ids. 2 (blocks32), 3 (class-gaps) and 5 (rans) are reserved.
REPLACE, GAPS, HASHED = 0, 1, 4
# How a stream is stored: one byte that repeats, as it is, or deflated.
CONSTANT, RAW, DEFLATE = 0, 1, 2

_SECTION = (
    *("region", "start", "count", "op", "codec", "params", "streams"),
    *("payload_bytes", "payload_sha256", "result_sha256"),
)
# Which codec an operation may use, and the parameters and streams that it then has.
_CODECS = {
    ("add", GAPS): (("changes",), 5),
    ("set", GAPS): (("changes",), 3),
    ("set", REPLACE): (("xor",), 1),
    ("exact", REPLACE): (("xor",), 1),
    ("hashed", HASHED): (("buckets", "fraction_bits", "seed"), 3),
}


class Stream(NamedTuple):
    """One stream of a payload: how it is coded, its bytes in the file, its bytes when decoded."""

    coding: int
    stored_bytes: int
    decoded_bytes: int


@dataclass(frozen=True, slots=True)
class Section:
    """One change of elements [start, start + count) of a region; decodes alone."""

    region: int
    start: int
    count: int
    op: Op
    codec: int
    params: Mapping[str, int]
    streams: tuple[Stream, ...]
    payload_sha256: str
    result_sha256: str
    offset: int = 0

    @property
    def payload_bytes(self) -> int:
        """The length of the payload in the file."""
        return sum(stream.stored_bytes for stream in self.streams)

    @property
    def working_bytes(self) -> int:
        """The bytes of payload and decoded streams held at the same time."""
        return self.payload_bytes + sum(stream.decoded_bytes for stream in self.streams)

    @property
    def changes(self) -> int:
        """The elements that a sparse section names; all it covers for the other kinds."""
        return self.params.get("changes", self.count)


def section_of(value: object, where: str, regions: Sequence[Region], offset: int) -> Section:
    """Reads a section of a manifest whose payload begins at byte `offset` of the file."""
    entry = fields(value, where, _SECTION)
    op = one_of(entry["op"], f"{where}: op", get_args(Op))
    codec = one_of(entry["codec"], f"{where}: codec", (REPLACE, GAPS, HASHED))
    if (op, codec) not in _CODECS:
        raise Malformed(f"{where}: operation {op} has no codec {codec}")
    names, stream_count = _CODECS[op, codec]
    place = integer(entry["region"], f"{where}: region", 0, len(regions) - 1)
    region = regions[place]
    if (op == "exact") != (region.kind == "bytes") or (op == "hashed" and region.kind != "int"):
        raise Malformed(f"{where}: operation {op} does not go with a region of {region.kind}")
    most = limits.REGION_ELEMENTS_MAX if op == "hashed" else limits.SECTION_ELEMENTS_MAX
    start = integer(entry["start"], f"{where}: start", 0, region.count - 1)
    count = integer(entry["count"], f"{where}: count", 1, min(region.count - start, most))
    if start % region.unit or (count % region.unit and start + count < region.count):
        raise Malformed(f"{where}: does not begin and end between blocks of its region")
    if op == "hashed" and count != region.count:
        raise Malformed(f"{where}: a hashed section covers its whole region")
    section = Section(
        place,
        start,
        count,
        op,
        codec,
        _params(fields(entry["params"], f"{where}: params", names), where, count, op),
        _streams(entry["streams"], where, stream_count),
        digest(entry["payload_sha256"], f"{where}: payload_sha256"),
        digest(entry["result_sha256"], f"{where}: result_sha256"),
        offset,
    )
    total = section.payload_bytes
    integer(entry["payload_bytes"], f"{where}: payload_bytes (its streams' sum)", total, total)
    if section.working_bytes > limits.WORKING_BYTES_MAX:
        raise Malformed(f"{where}: needs {section.working_bytes} bytes, over the limit")
    _check_lengths(section, region, where)
    return section


def spell_section(section: Section) -> dict[str, Any]:
    """Spells a section; the inverse of `section_of`."""
    return {name: getattr(section, name) for name in _SECTION} | {
        "params": dict(section.params),
        "streams": [list(stream) for stream in section.streams],
    }


def check_order(sections: Sequence[Section]) -> None:
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


def check_growth(
    regions: Sequence[Region], sections: Sequence[Section], from_size: int, to_size: int
) -> None:
    """Every byte beyond the base is given by an exact section, so no patch can fill a disk."""
    given = 0
    for section in sections:
        if section.op == "exact":
            start = regions[section.region].file_offset + section.start
            given += max(0, start + section.count - max(start, from_size))
    if given != max(0, to_size - from_size):
        raise Malformed(f"the file grows from {from_size} to {to_size} bytes, {given} are given")


def _params(entry: dict[str, Any], where: str, count: int, op: str) -> dict[str, int]:
    highest = {
        "changes": count,
        "xor": int(op == "set"),
        "buckets": min(count, limits.BUCKETS_MAX),
        "fraction_bits": limits.FRACTION_BITS_MAX,
        "seed": 2**32 - 1,
    }
    for name, value in entry.items():
        integer(value, f"{where}: {name}", int(name in ("changes", "buckets")), highest[name])
    return entry


def _streams(value: object, where: str, count: int) -> tuple[Stream, ...]:
    found = []
    for number, entry in enumerate(items(value, f"{where}: streams", limits.STREAMS_MAX)):
        place = f"{where}: stream {number}"
        if len(items(entry, place, 3)) != 3:
            raise Malformed(f"{place}: must be [coding, stored bytes, decoded bytes]")
        stream = Stream(
            one_of(entry[0], f"{place}: coding", (CONSTANT, RAW, DEFLATE)),
            integer(entry[1], f"{place}: stored bytes", 0, limits.STREAM_BYTES_MAX),
            integer(entry[2], f"{place}: decoded bytes", 0, limits.STREAM_BYTES_MAX),
        )
        _check_stream(stream, place)
        found.append(stream)
    if len(found) != count:
        raise Malformed(f"{where}: must have {count} streams, has {len(found)}")
    return tuple(found)


def _check_stream(stream: Stream, where: str) -> None:
    """Refuses a stream that another coding would have stored in fewer bytes."""
    coding, stored, decoded = stream
    holds = {
        CONSTANT: stored == 1 <= decoded,
        RAW: stored == decoded,
        DEFLATE: 1 <= stored < decoded,
    }
    if not holds[coding]:
        raise Malformed(f"{where}: {stored} stored bytes cannot be {decoded} bytes in its coding")


def _check_lengths(section: Section, region: Region, where: str) -> None:
    """Streams whose length the parameters give have exactly that length."""
    lengths = [stream.decoded_bytes for stream in section.streams]
    changes = section.changes
    if section.op == "add":
        wanted = {0: changes, 2: changes, 4: -(-changes // 8)}
    elif section.codec == GAPS:
        wanted = {0: changes, 2: changes * region.element_bytes}
    elif section.op == "hashed":
        wanted = {0: section.params["buckets"]}
    else:
        wanted = {0: section.count * region.element_bytes}
    for number, length in wanted.items():
        if lengths[number] != length:
            raise Malformed(f"{where}: stream {number} must decode to {length} bytes")
