"""A second decoder of patch files, written from docs/patch-format.md alone: slow, and obvious.

It shares no line with the kernel, so what the two agree on is what the page says. It holds whole
files in memory and goes through elements one by one; it is for small files only.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from tests.unit.reference_manifest import inflated, kept, opened, sha256, span
from tests.unit.reference_values import Refused, must

__all__ = ["Refused", "applied"]


def applied(base: bytes, patch: bytes) -> bytes:
    """Gives the new file that a patch makes of an old one."""
    manifest, payloads = opened(patch)
    before, after = manifest["from"], manifest["to"]
    must(len(base) == before["size"] and sha256(base) == before["sha256"], "another base")
    for section, payload in zip(manifest["sections"], payloads, strict=True):
        must(sha256(payload) == section["payload_sha256"], "payload")
    new = made(base, manifest, payloads)
    for section in manifest["sections"]:
        if "prefix_sha256" in section:
            end = end_of(section, manifest["regions"][section["region"]])
            must(sha256(bytes(new[:end])) == section["prefix_sha256"], "prefix")
    must(sha256(bytes(new)) == after["sha256"], "the result is another file")
    return bytes(new)


def made(base: bytes, manifest: Any, payloads: list[bytes], digests: bool = True) -> bytearray:
    """Carries out all sections; checks the digests of results that stand in a section's place."""
    new = bytearray(manifest["to"]["size"])
    for to, start, length in kept(manifest):
        new[to : to + length] = base[start : start + length]
    for section, payload in zip(manifest["sections"], payloads, strict=True):
        region = manifest["regions"][section["region"]]
        carry_out(section, region, streams_of(section, payload), new)
        if "result_sha256" in section and digests:
            must(sha256(stored(section, region, new)) == section["result_sha256"], "result")
    return new


def end_of(section: Any, region: Any) -> int:
    """The byte of the file after the section's last element, or last block."""
    return int(region["file_offset"]) + span(region, section["start"] + section["count"])


# Elements.


def place_of(region: Any, element: int) -> tuple[int, int]:
    """The byte of the file in which an element begins, and its lowest bit there."""
    width, layout = region["width"], region.get("layout", "contiguous")
    byte = region["file_offset"]
    if layout != "contiguous":
        block, element = divmod(element, layout["per_block"])
        byte += block * layout["stride"] + layout["first"]
    if width > 4:
        return byte + element * width // 8, 0
    high_first = layout != "contiguous" and layout["nibble_order"] == "high"
    return byte + element // 2, 4 if (element % 2 == 1) != high_first else 0


def get(region: Any, element: int, file: bytearray) -> int:
    byte, bit = place_of(region, element)
    if region["width"] == 4:
        return file[byte] >> bit & 15
    return int.from_bytes(file[byte : byte + region["width"] // 8], "little")


def put(region: Any, element: int, raw: int, file: bytearray) -> None:
    byte, bit = place_of(region, element)
    if region["width"] == 4:
        file[byte] = file[byte] & ~(15 << bit) | raw << bit
    else:
        file[byte : byte + region["width"] // 8] = raw.to_bytes(region["width"] // 8, "little")


def stored(section: Any, region: Any, file: bytearray) -> bytes:
    """The bytes that store the section's elements, without the gaps of blocks."""
    elements = range(section["start"], section["start"] + section["count"])
    size = max(region["width"] // 8, 1)
    found = {}
    for element in elements:
        byte = place_of(region, element)[0]
        found[byte] = bytes(file[byte : byte + size])
    return b"".join(found.values())


def ordinal(region: Any, raw: int) -> int:
    """Floats with the sign bit set have all other bits flipped; its own inverse."""
    sign = 1 << (region["width"] - 1)
    return raw ^ (sign - 1) if region["kind"] in ("f16", "bf16", "f32") and raw & sign else raw


# Streams.


def streams_of(section: Any, payload: bytes) -> Iterator[bytes]:
    for coding, stored_bytes, decoded_bytes in section["streams"]:
        part, payload = payload[:stored_bytes], payload[stored_bytes:]
        decoded = part * decoded_bytes if coding == 0 else part
        if coding == 2:
            decoded = inflated(part, decoded_bytes)
        must(len(decoded) == decoded_bytes, "stream of another length")
        yield decoded


def taken(streams: Iterator[bytes]) -> bytes:
    stream = next(streams, None)
    must(stream is not None, "a stream is missing")
    return stream or b""


class Bits:
    """Raw bits: the lowest bit of every byte first."""

    def __init__(self, data: bytes) -> None:
        self._left, self._count = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        must(count <= self._count, "too few raw bits")
        found = self._left & ((1 << count) - 1)
        self._left >>= count
        self._count -= count
        return found

    def finish(self) -> None:
        must(self._left == 0 and self._count < 8, "raw bits left over")


def numbers(tokens: bytes, bits: Bits, literal_bits: int) -> list[int]:
    found = []
    for token in tokens:
        if token < 1 << literal_bits:
            found.append(token)
            continue
        e, after = divmod(token - (1 << literal_bits), 4)
        e += literal_bits
        must(e <= 31, "no such token")
        found.append((4 + after) * (1 << (e - 2)) + bits.take(e - 2))
    return found


def rising(gaps: Sequence[int]) -> list[int]:
    places, at = [], -1
    for gap in gaps:
        at += gap + 1
        places.append(at)
    return places


def from_planes(planes: bytes, region: Any) -> list[int]:
    size = max(region["width"] // 8, 1)
    count = len(planes) // size
    must(len(planes) % size == 0, "planes")
    raws = [sum(planes[p * count + i] << 8 * p for p in range(size)) for i in range(count)]
    must(region["width"] > 4 or all(raw < 16 for raw in raws), "an element above 15")
    return raws


# Sections.


def carry_out(section: Any, region: Any, streams: Iterator[bytes], file: bytearray) -> None:
    """Changes the section's elements in the file."""
    elements = range(section["start"], section["start"] + section["count"])
    old = [get(region, element, file) for element in elements]
    if section["codec"] == 0:
        given = from_planes(taken(streams), region)
        must(len(given) == len(old), "elements")
        flip = section["params"]["xor"]
        new = [a ^ b if flip else b for a, b in zip(old, given, strict=True)]
    elif section["codec"] == 4:
        new = hashed(section["params"], region, streams, old)
    else:
        new = sparse(section, region, streams, old)
    must(next(streams, None) is None, "a stream too many")
    for element, raw in zip(elements, new, strict=True):
        put(region, element, raw, file)


def sparse(section: Any, region: Any, streams: Iterator[bytes], old: list[int]) -> list[int]:
    params, width = section["params"], region["width"]
    classes, class_of = params.get("classes", 1), [0] * len(old)
    if "run" in params:
        table, runs = taken(streams), -(-len(old) // params["run"])
        must(len(table) == (runs + 1) // 2, "class table")
        of = [half for byte in table for half in (byte & 15, byte >> 4)]
        must(not any(of[runs:]) and max(of) < classes, "class table")
        class_of = [of[element // params["run"]] for element in range(len(old))]
    elif "classes" in params:
        table = taken(streams)
        must(len(table) == (16 if width == 4 else 256) and max(table) < classes, "class table")
        below_sign = width - (9 if region["kind"] != "int" else 8)
        class_of = [table[raw >> max(below_sign, 0) & 255] for raw in old]
    places = positions(section, streams, class_of)
    must(sum(map(len, places)) == params["changes"], "changes")
    new = list(old)
    if section["op"] == "set":
        given = from_planes(taken(streams), region)
        must(len(given) == params["changes"], "values")
        for place, raw in zip(places[0], given, strict=True):
            new[place] = raw
        return new
    by_class: list[list[int]] = [[] for _ in range(classes)]
    for place in sorted(place for some in places for place in some):
        by_class[class_of[place]].append(place)
    added = residues(classes, streams) if "paired" in params else magnitudes(classes, streams)
    if "paired" not in params:
        must(all(abs(m) <= 1 << (width - 1) for some in added for m in some), "magnitude")
    for some, values in zip(by_class, added, strict=True):
        must(len(some) == len(values), "values of a class")
        for place, value in zip(some, values, strict=True):
            moved = (ordinal(region, old[place]) + value) % (1 << width)
            new[place] = ordinal(region, moved)
    return new


def positions(section: Any, streams: Iterator[bytes], class_of: list[int]) -> list[list[int]]:
    """The changed places of each class (of one, if not class-gaps), counted from `start`."""
    params, codec, count = section["params"], section["codec"], section["count"]
    each = [taken(streams) for _ in range(params["classes"] if codec == 3 else 1)]
    bits = Bits(taken(streams))
    gaps = [numbers(tokens, bits, 4) for tokens in each]
    bits.finish()
    places = [rising(some) for some in gaps]
    if codec == 3:
        members: list[list[int]] = [[] for _ in range(params["classes"])]
        for element, number in enumerate(class_of):
            members[number].append(element)
        for ranks, some in zip(places, members, strict=True):
            must(not ranks or ranks[-1] < len(some), "a class has too few elements")
        return [[some[r] for r in ranks] for ranks, some in zip(places, members, strict=True)]
    if codec == 2:
        maps = taken(streams)
        must(len(places[0]) == params["blocks"] == len(maps) / 4, "blocks")
        words = [int.from_bytes(maps[at : at + 4], "little") for at in range(0, len(maps), 4)]
        must(all(words), "an empty block")
        found = zip(places[0], words, strict=True)
        places = [[32 * block + b for block, word in found for b in range(32) if word >> b & 1]]
    must(places[0] and places[0][-1] < count, "a place outside the section")
    return places


def magnitudes(classes: int, streams: Iterator[bytes]) -> list[list[int]]:
    each = [taken(streams) for _ in range(classes)]
    bits, signs = Bits(taken(streams)), Bits(taken(streams))
    found = [[n + 1 for n in numbers(tokens, bits, 3)] for tokens in each]
    signed = [[-m if signs.take(1) else m for m in some] for some in found]
    bits.finish()
    signs.finish()
    return signed


def residues(classes: int, streams: Iterator[bytes]) -> list[list[int]]:
    found = []
    for _ in range(classes):
        some = [half for byte in taken(streams) for half in (byte & 15, byte >> 4)]
        found.append(some[:-1] if some and some[-1] == 0 else some)
    must(all(residue for some in found for residue in some), "a residue of zero")
    return found


def fmix32(h: int) -> int:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ h >> shift) * factor % 2**32
    return h ^ h >> 16


def hashed(params: Any, region: Any, streams: Iterator[bytes], old: list[int]) -> list[int]:
    buckets, f, width = params["buckets"], params["fraction_bits"], region["width"]
    tokens, bits, signs = taken(streams), Bits(taken(streams)), Bits(taken(streams))
    if "paired" in params:
        tokens = bytes(half for byte in tokens for half in (byte & 15, byte >> 4))
        must(not any(tokens[buckets:]), "a token after the last")
        tokens = tokens[:buckets] if len(tokens) < buckets + 2 else b""
    found = numbers(tokens, bits, 3)
    bits.finish()
    must(len(found) == buckets, "buckets")
    bucket = [m and (-m if signs.take(1) else m) for m in found]
    signs.finish()
    must(all(-(2**15) <= b < 2**15 for b in bucket), "a bucket is no int16")
    bias, lo, hi = (region.get(name, 0) for name in ("bias", "lo", "hi"))
    new = []
    for i, raw in enumerate(old):
        code = raw - bias if bias or raw < 1 << (width - 1) else raw - (1 << width)
        h = fmix32((i * 0x9E3779B1 + params["seed"]) % 2**32)
        x = bucket[(h * buckets) >> 32] * (-1 if h & 1 else 1)
        t = (h >> 1) & (2**f - 1)
        code = min(max(code + (x + t) // 2**f, lo), hi)
        new.append((code + bias) % (1 << width))
    return new
