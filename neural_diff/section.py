"""A section: one change of a run of elements of a region, and where its payload lies.

Sections go through the regions once, in file order; within a region those of one operation do not
overlap, so the work is bounded by the size of the file. All arithmetic is on Python integers, so
no product or sum can wrap.

What the payload's streams are follows from operation, codec and parameters (`lengths_of`):

    gaps        gap tokens, gap bits                                and then the values
    blocks32    tokens and bits of the gaps between active blocks, a bitmap of each
    class-gaps  class table (of old values or of runs), gap tokens of each class, gap bits
    values      [class table,] magnitude tokens of each class, magnitude bits, signs;
                or, `paired`, the residues of each class, two in a byte; or, of `set`, raw elements

How many tokens or residues a class has the lengths of its streams say; together they must be as
many as the changes, so that `changes` bounds the work before a stream is looked at.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Literal, NamedTuple, get_args

from neural_diff import canonical, limits
from neural_diff.canonical import integer, many, named, one_of, read_as, record, row_of
from neural_diff.errors import Malformed
from neural_diff.region import Region
from neural_diff.view import bytes_of

Op = Literal["add", "set", "hashed", "exact"]

# Codec ids. 5 (rans) is reserved: docs/adr/0008-no-rans.md.
REPLACE, GAPS, BLOCKS, CLASS_GAPS, HASHED = range(5)
# How a stream is stored: one byte that repeats, as it is, or deflated.
CONSTANT, RAW, DEFLATE = range(3)

_NAMES = ("replace", "gaps", "blocks32", "class-gaps", "hashed")

BLOCK_ELEMENTS = 32  # of one bitmap of the codec `blocks32`

# Which codecs an operation may use; the parameters that it then has, and those that it may have.
_CODECS: dict[tuple[str, int], tuple[set[str], set[str]]] = {
    ("add", GAPS): ({"changes"}, {"classes", "paired"}),
    ("add", BLOCKS): ({"changes", "blocks"}, {"classes", "paired"}),
    ("add", CLASS_GAPS): ({"changes", "classes"}, {"paired", "run"}),
    ("set", GAPS): ({"changes"}, set()),
    ("set", BLOCKS): ({"changes", "blocks"}, set()),
    ("set", REPLACE): ({"xor"}, set()),
    ("exact", REPLACE): ({"xor"}, set()),
    ("hashed", HASHED): ({"buckets", "fraction_bits", "seed"}, {"paired"}),
}


class Stream(NamedTuple):
    """One stream of a payload: how it is coded, its bytes in the file, its bytes when decoded."""

    coding: Annotated[int, one_of(CONSTANT, RAW, DEFLATE)]
    stored_bytes: Annotated[int, integer(0, limits.STREAM_BYTES_MAX)]
    decoded_bytes: Annotated[int, integer(0, limits.STREAM_BYTES_MAX)]

    @property
    def short(self) -> int | tuple[int, ...]:
        """Its length, of a raw stream; else its lengths as stored and when decoded."""
        return self.decoded_bytes if self.coding == RAW else self[1:]


def _stream(value: object, where: str) -> Stream:
    """Reads a stream as `short` spells it: how it is coded follows from its lengths."""
    if not isinstance(value, list):
        return _first_stream([RAW, value, value], where)
    return _first_stream([CONSTANT if value[:1] == [1] else DEFLATE, *value], where)


def _first_stream(value: object, where: str) -> Stream:
    """Reads a stream of version 1; refuses lengths that its coding does not lead to."""
    stream = row_of(Stream)(value, where)
    coding, stored, decoded = stream
    # Of a constant, a raw and a deflated stream.
    holds = (stored == 1 <= decoded, stored == decoded, 1 <= stored < decoded)
    if not holds[coding]:
        raise Malformed(f"{where}: {stored} stored bytes cannot be {decoded} bytes in its coding")
    return stream


class Section(NamedTuple):
    """One change of elements [start, start + count) of a region; decodes alone.

    `prefix_sha256` is of the new file up to the end of the section's last block or element, so
    that one pass over the file checks every section; patches made before there were prefixes have
    `result_sha256`, of the bytes that store the section's elements.
    """

    region: Annotated[int, integer(0, limits.REGIONS_MAX - 1)]
    start: Annotated[int, integer(0, limits.REGION_ELEMENTS_MAX)]
    count: Annotated[int, integer(1, limits.REGION_ELEMENTS_MAX)]  # type: ignore[assignment]
    op: Annotated[Op, one_of(*get_args(Op))]
    codec: Annotated[int, one_of(REPLACE, GAPS, BLOCKS, CLASS_GAPS, HASHED)]
    params: Annotated[Mapping[str, int], named(integer(0, 2**32 - 1), limits.PARAMS_MAX)]
    streams: Annotated[tuple[Stream, ...], many(_stream, limits.STREAMS_MAX, "stream")]
    payload_sha256: str = ""
    prefix_sha256: str = ""
    result_sha256: str = ""
    offset: int = 0

    @property
    def way(self) -> str:
        """How the payload says it: `replace` if it gives all elements, else as the operation."""
        return "replace" if self.codec == REPLACE else self.op

    @property
    def payload_bytes(self) -> int:
        """The bytes of the payload in the file."""
        return sum(stream.stored_bytes for stream in self.streams)

    @property
    def end(self) -> int:
        """The element of the region after the section's last."""
        return self.start + self.count

    @property
    def working_bytes(self) -> int:
        """The bytes of payload and decoded streams held at the same time."""
        return self.payload_bytes + sum(stream.decoded_bytes for stream in self.streams)

    @property
    def changes(self) -> int:
        """The elements that a sparse section names; all it covers for the other kinds."""
        return self.params.get("changes", self.count)

    @property
    def classes(self) -> int:
        """How many classes of old values are told apart."""
        return self.params.get("classes", 1)

    @property
    def runs(self) -> int:
        """How many runs of elements have a class each; none if old values have."""
        return -(-self.count // self.params["run"]) if "run" in self.params else 0

    @property
    def looks(self) -> bool:
        """Whether what changes depends on the old values, and on how many there were before."""
        return self.classes > 1 and not self.runs

    @property
    def capabilities(self) -> int:
        """The bits of what a device must be able to do: hashing, its codecs, classes of runs."""
        codecs = self.codec in (BLOCKS, CLASS_GAPS) or bool(
            self.params.keys() & {"classes", "paired"}
        )
        return (self.op == "hashed") + 2 * codecs + 8 * bool(self.runs)

    @property
    def how(self) -> str:
        """Operation and codec in words."""
        words = self.op if self.op == "hashed" else f"{self.op} by {_NAMES[self.codec]}"
        of = "" if self.looks else f" of runs of {self.params.get('run')}"
        return f"{words} in {self.classes} classes{of}" if self.classes > 1 else words


_FIRST = {
    **canonical.readers_of(Section),
    "streams": many(_first_stream, limits.STREAMS_MAX, "stream"),
    "payload_bytes": integer(0, limits.WORKING_BYTES_MAX),
    **dict.fromkeys(("payload_sha256", "prefix_sha256", "result_sha256"), canonical.digest),
}


def first_section_of(value: object, where: str) -> Section:
    """Reads a section of version 1, which has its digests with it."""
    said = record(value, where, _FIRST, optional=("prefix_sha256", "result_sha256"))
    given = said.pop("payload_bytes")
    section = _checked(Section(**said), where)
    if section.payload_bytes != given:
        raise Malformed(f"{where}: payload_bytes is not its streams' sum")
    if bool(section.result_sha256) == bool(section.prefix_sha256):
        raise Malformed(f"{where}: must have one of result_sha256 and prefix_sha256")
    return section


def section_of(value: object, where: str) -> Section:
    """Reads a section of a manifest and checks the rules it keeps alone."""
    return _checked(read_as(Section, value, where), where)


def _checked(section: Section, where: str) -> Section:
    if (section.op, section.codec) not in _CODECS:
        raise Malformed(f"{where}: operation {section.op} has no codec {section.codec}")
    needed, allowed = _CODECS[section.op, section.codec]
    bounds = {
        "changes": integer(1, min(section.count, limits.SECTION_CHANGES_MAX)),
        "blocks": integer(1, -(-section.count // BLOCK_ELEMENTS)),
        "classes": integer(2, limits.CLASSES_MAX),
        "paired": integer(1, 1),
        "run": integer(1, section.count),
        "xor": integer(0, int(section.op == "set")),
        "buckets": integer(1, min(section.count, limits.BUCKETS_MAX)),
        "fraction_bits": integer(0, limits.FRACTION_BITS_MAX),
        "seed": integer(0, 2**32 - 1),
    }
    table = {name: bounds[name] for name in sorted(needed | allowed)}
    record(section.params, f"{where}: params", table, optional=allowed)
    return section


def check_sections(regions: Sequence[Region], sections: Sequence[Section]) -> None:
    """Sections fit their regions and follow each other."""
    for number, section in enumerate(sections):
        _check_fit(section, f"section {number}", regions)
    reached: dict[str, int] = {}
    for number, section in enumerate(sections):
        if number and section.region != sections[number - 1].region:
            reached = {}
            if section.region < sections[number - 1].region:
                raise Malformed(f"section {number}: its region was finished before")
        if section.start < reached.get(section.op, 0):
            raise Malformed(f"section {number}: overlaps or precedes one of the same operation")
        reached[section.op] = section.end
    if (most := open_bytes(regions, sections)) > limits.WORKING_BYTES_MAX:
        raise Malformed(f"sections that are open together need {most} bytes, over the limit")


def open_bytes(regions: Sequence[Region], sections: Sequence[Section]) -> int:
    """What is held at the same time: all sections that change the same bytes."""
    edges = []
    for section in sections:
        region = regions[section.region]
        low, high = (region.file_offset + bytes_of(region, n) for n in (section.start, section.end))
        edges += [(low, section.working_bytes), (high, -section.working_bytes)]
    # Of edges at the same byte, those of sections that end come first.
    return max(accumulate(need for _, need in sorted(edges)), default=0)


def _check_fit(section: Section, where: str, regions: Sequence[Region]) -> None:
    """A section goes with its region, lies inside it, and its streams are right."""
    integer(0, len(regions) - 1)(section.region, f"{where}: region")
    region, op = regions[section.region], section.op
    if (op == "exact") != (region.kind == "bytes") or (op == "hashed" and region.kind != "int"):
        raise Malformed(f"{where}: operation {op} does not go with a region of {region.kind}")
    dense = section.codec == REPLACE
    most = limits.SECTION_ELEMENTS_MAX if dense else limits.REGION_ELEMENTS_MAX
    integer(0, region.count - 1)(section.start, f"{where}: start")
    integer(1, min(region.count - section.start, most))(section.count, f"{where}: count")
    if section.start % region.unit or (section.count % region.unit and section.end < region.count):
        raise Malformed(f"{where}: does not begin and end between blocks of its region")
    if op == "hashed" and section.count != region.count:
        raise Malformed(f"{where}: a hashed section covers its whole region")
    if "paired" in section.params and op == "add" and region.width != 4:
        raise Malformed(f"{where}: only 4-bit elements have paired residues")
    _check_streams(section, where, region)


def _check_streams(section: Section, where: str, region: Region) -> None:
    """A section has streams of the lengths that it needs, and no more than may be held."""
    lengths = lengths_of(section, region)
    if len(section.streams) != len(lengths):
        raise Malformed(f"{where}: must have {len(lengths)} streams, has {len(section.streams)}")
    for number, length in enumerate(lengths):
        if length is not None and section.streams[number].decoded_bytes != length:
            raise Malformed(f"{where}: stream {number} must decode to {length} bytes")
    if section.op == "add" and not _adds_up(section):
        raise Malformed(f"{where}: its classes do not have {section.changes} changes together")
    if section.working_bytes > limits.WORKING_BYTES_MAX:
        raise Malformed(f"{where}: needs {section.working_bytes} bytes, over the limit")


def _adds_up(section: Section) -> bool:
    """Whether the positions, and the values, of all classes are as many as the changes."""
    lengths = [stream.decoded_bytes for stream in section.streams]
    changes, classes = section.changes, section.classes
    if section.codec == CLASS_GAPS and sum(lengths[1 : 1 + classes]) != changes:
        return False
    if "paired" in section.params:  # two in a byte; of each class the last one may be alone
        most = 2 * sum(lengths[-classes:])
        return most - classes <= changes <= most
    return sum(lengths[-2 - classes : -2]) == changes


def lengths_of(section: Section, region: Region) -> list[int | None]:
    """Gives how long each stream is when decoded; None: what is in it, or another, says so."""
    changes, classes, codec = section.changes, section.classes, section.codec
    if codec == REPLACE:
        return [section.count * region.element_bytes]
    if codec == HASHED:
        buckets = section.params["buckets"]
        return [-(-buckets // 2) if "paired" in section.params else buckets, None, None]
    told = -(-section.runs // 2) or (16 if region.width == 4 else 256)
    table: list[int | None] = [told] if classes > 1 else []
    each: list[int | None] = [None] * classes if classes > 1 else [changes]
    blocks = section.params.get("blocks", 0)
    positions = {
        GAPS: [changes, None],
        BLOCKS: [blocks, None, blocks * BLOCK_ELEMENTS // 8],
        CLASS_GAPS: [*each, None],
    }[codec]
    if section.op == "set":
        return [*positions, changes * region.element_bytes]
    if "paired" in section.params:
        return [*table, *positions, *[None] * classes]
    return [*table, *positions, *each, None, -(-changes // 8)]
