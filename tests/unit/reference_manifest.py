"""The reference decoder's half that reads envelope and manifest (see `reference`)."""

import hashlib
import json
import struct
import zlib
from itertools import pairwise
from typing import Any

from tests.unit.reference_values import Refused, digest, fields, items, must, number, text

MIB = 1 << 20
WIDTHS = {"int": (4, 8, 16, 32), "f16": (16,), "bf16": (16,), "f32": (32,), "bytes": (8,)}
PARAMS = {  # of operation and codec: those it has, and those it may have
    ("add", 1): ("changes", "classes paired"),
    ("add", 2): ("changes blocks", "classes paired"),
    ("add", 3): ("changes classes", "paired run"),
    ("set", 1): ("changes", ""),
    ("set", 2): ("changes blocks", ""),
    ("set", 0): ("xor", ""),
    ("exact", 0): ("xor", ""),
    ("hashed", 4): ("buckets fraction_bits seed", "paired"),
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def opened(patch: bytes) -> tuple[Any, list[bytes]]:
    """Gives manifest and payloads, having checked all that can be before payloads are read."""
    must(len(patch) >= 48, "envelope")
    magic, version, flags, length, promised = struct.unpack("<8sHHI32s", patch[:48])
    must(magic == b"\x89FLEETD\n" and version in (1, 2) and not flags, "magic, version or flags")
    must(1 <= length <= MIB and len(patch) >= 48 + length, "manifest length")
    head = patch[48 : 48 + length]
    must(hashlib.sha256(head).digest() == promised, "manifest digest")
    spelled, digests = inflated_first(head, MIB)
    manifest = parsed(spelled)
    if version == 2:
        say_as_first(manifest, digests)
    else:
        must(not digests, "bytes after the manifest")
    check_manifest(manifest)
    payloads, end = [], 48 + length
    for section in manifest["sections"]:
        start = (end + 7) // 8 * 8
        must(not any(patch[end:start]), "padding")
        end = start + section["payload_bytes"]
        payloads.append(patch[start:end])
    must(len(patch) == end, "length of the file")
    return manifest, payloads


def inflated(data: bytes, most: int) -> bytes:
    found, rest = inflated_first(data, most)
    must(not rest, "bytes after a stream")
    return found


def inflated_first(data: bytes, most: int) -> tuple[bytes, bytes]:
    stream = zlib.decompressobj(-15)
    try:
        found = stream.decompress(data, most + 1)
    except zlib.error:
        raise Refused("no deflate") from None
    must(stream.eof and len(found) <= most, "deflate of another length")
    return found, stream.unused_data


def parsed(spelled: bytes) -> Any:
    try:
        value = json.loads(spelled.decode("ascii"))
        again = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        raise Refused("no JSON") from None
    must(again.encode() == spelled, "spelling")
    return value


def say_as_first(manifest: Any, digests: bytes) -> None:
    """Says in a manifest of version 2 what version 1 says besides."""
    fields(manifest, "capabilities from provenance regions sections to", "moves")
    sections = items(manifest["sections"], 4096)
    must(len(digests) == 64 * (1 + len(sections)), "digests")
    each = [digests[at : at + 32].hex() for at in range(0, len(digests), 32)]
    for side, found in zip(("from", "to"), each, strict=False):
        manifest[side] = {"size": manifest[side], "sha256": found}
    for section, payload, prefix in zip(sections, each[2::2], each[3::2], strict=True):
        fields(section, "region start count op codec params streams")
        streams = []
        for stream in items(section["streams"], 36):
            stored, decoded = (stream, stream) if type(stream) is not list else (*stream, 0, 0)[:2]
            must(type(stream) is not list or len(stream) == 2, "stream")
            coding = 1 if type(stream) is not list else 2 * (stored != 1)
            streams.append([coding, number(stored, 0, 16 * MIB), number(decoded, 0, 16 * MIB)])
        section |= {"payload_sha256": payload, "prefix_sha256": prefix, "streams": streams}
        section["payload_bytes"] = sum(stored for _, stored, _ in streams)
    manifest["limits"] = limits_of(sections)


def limits_of(sections: Any) -> dict[str, int]:
    found = {"changes": 0, "section_elements": 0, "working_bytes": 0}
    for section in sections:
        count, params = section["count"], section["params"]
        must(type(count) is int and type(params) is dict, "count or parameters")
        changes = number(params.get("changes", count), 0, 1 << 32)
        found["changes"] += changes
        found["section_elements"] = max(found["section_elements"], count)
        found["working_bytes"] = max(found["working_bytes"], working_bytes(section))
    return found


def check_manifest(manifest: Any) -> None:
    fields(manifest, "capabilities from limits provenance regions sections to", "moves")
    for side, least in (("from", 0), ("to", 1)):
        fields(manifest[side], "sha256 size")
        digest(manifest[side]["sha256"])
        number(manifest[side]["size"], least, 8 << 30)
    must(type(manifest["provenance"]) is dict and len(manifest["provenance"]) <= 64, "provenance")
    for name, said in manifest["provenance"].items():
        text(name, 512)
        text(said, 4096)
    for region in items(manifest["regions"], 4096):
        check_region(region)
    check_places(manifest["regions"], manifest["to"]["size"])
    for section in items(manifest["sections"], 4096):
        check_section(section, manifest["regions"])
    check_order(manifest["sections"])
    check_held(manifest["sections"], manifest["regions"])
    check_moves(manifest)
    sections = manifest["sections"]
    new = any(s["codec"] in (2, 3) or {"classes", "paired"} & set(s["params"]) for s in sections)
    runs = any("run" in s["params"] for s in sections)
    bits = (any(s["op"] == "hashed" for s in sections), new, bool(manifest.get("moves")), runs)
    number(manifest["capabilities"], *[sum(bit << n for n, bit in enumerate(bits))] * 2)
    fields(manifest["limits"], "changes section_elements working_bytes")
    for name, exactly in limits_of(sections).items():
        number(manifest["limits"][name], exactly, exactly)


def check_region(region: Any) -> None:
    fields(region, "name file_offset count kind width", "bias lo hi layout parts")
    text(region["name"], 512)
    number(region["file_offset"], 0, 8 << 30)
    count = number(region["count"], 1, 1 << 32)
    kind, width = region["kind"], number(region["width"], 4, 32)
    must(type(kind) is str and width in WIDTHS.get(kind, ()), "kind and width")
    half = 1 << (width - 1) if kind == "int" else 0
    must(number(region.get("bias", 0), 0, half) in (0, half), "bias")
    lo = number(region.get("lo", 0), -half, max(half - 1, 0))
    number(region.get("hi", 0), lo, max(half - 1, 0))
    layout = region.get("layout", "contiguous")
    if layout != "contiguous":
        fields(layout, "stride first per_block nibble_order")
        must(layout["nibble_order"] in ("low", "high") and kind != "bytes", "layout")
        for name, least in (("stride", 1), ("first", 0), ("per_block", 1)):
            number(layout[name], least, 65536)
        end = 8 * layout["first"] + layout["per_block"] * width
        must(end % 8 == 0 and end <= 8 * layout["stride"], "block")
    must(count % unit(region) == 0, "whole bytes or blocks")
    parts = items(region.get("parts", []), 4096)
    for part in parts:
        must(type(part) is list and len(part) == 2, "part")
        text(part[0], 512)
        number(part[1], 1, 1 << 32)
    must(not parts or sum(part[1] for part in parts) == count, "parts")


def unit(region: Any) -> int:
    """The elements between which a section may begin: of a byte, or of a block."""
    if region.get("layout", "contiguous") != "contiguous":
        return int(region["layout"]["per_block"])
    return 2 if region["width"] == 4 else 1


def span(region: Any, elements: int) -> int:
    """The bytes that so many elements take from the region's first on, gaps included."""
    if region.get("layout", "contiguous") != "contiguous":
        return elements // unit(region) * int(region["layout"]["stride"])
    return elements * int(region["width"]) // 8


def check_places(regions: Any, size: int) -> None:
    for region in regions:
        must(region["file_offset"] + span(region, region["count"]) <= size, "outside")
    for left, right in pairwise(regions):
        end = left["file_offset"] + span(left, left["count"])
        if right["file_offset"] >= end:
            continue
        must(all(isinstance(side.get("layout"), dict) for side in (left, right)), "overlap")
        one, two = left["layout"], right["layout"]
        must(left["file_offset"] == right["file_offset"] and one["stride"] == two["stride"], "")
        must(end == right["file_offset"] + span(right, right["count"]), "overlap")
        sharing = [region for region in regions if region["file_offset"] == left["file_offset"]]
        must(len(sharing) <= 8, "too many regions share blocks")
        must(one["first"] + one["per_block"] * left["width"] // 8 <= two["first"], "overlap")


def check_section(section: Any, regions: Any) -> None:
    fields(
        section,
        "region start count op codec params streams payload_bytes payload_sha256",
        "prefix_sha256 result_sha256",
    )
    region = regions[number(section["region"], 0, len(regions) - 1)]
    start = number(section["start"], 0, region["count"] - 1)
    count = number(section["count"], 1, region["count"] - start)
    must(start % unit(region) == 0 and (start + count) % unit(region) == 0, "between bytes")
    op, codec, params = section["op"], number(section["codec"], 0, 4), section["params"]
    must(type(op) is str and (op, codec) in PARAMS, "operation and codec")
    must((op == "exact") == (region["kind"] == "bytes"), "exact is of bytes")
    must(codec != 0 or count <= 4 * MIB, "too many elements")
    must(op != "hashed" or (region["kind"] == "int" and count == region["count"]), "hashed")
    fields(params, *PARAMS[op, codec])
    most = {
        "changes": (1, min(count, MIB)), "blocks": (1, (count + 31) // 32), "classes": (2, 16),
        "paired": (1, 1), "xor": (0, int(op == "set")), "fraction_bits": (0, 8),
        "buckets": (1, min(count, 4 * MIB)), "seed": (0, 2**32 - 1), "run": (1, count),
    }  # fmt: skip
    for name, value in params.items():
        number(value, *most[name])
    must("paired" not in params or op == "hashed" or region["width"] == 4, "paired")
    for stream in items(section["streams"], 36):
        must(type(stream) is list and len(stream) == 3, "stream")
        coding, stored, decoded = (number(value, 0, 16 * MIB) for value in stream)
        holds = [stored == 1 <= decoded, stored == decoded, 1 <= stored < decoded]
        must(coding < 3 and holds[coding], "coding")
    number(section["payload_bytes"], *[sum(stream[1] for stream in section["streams"])] * 2)
    must(working_bytes(section) <= 64 * MIB, "working bytes")
    must(("prefix_sha256" in section) != ("result_sha256" in section), "one digest")
    for name in section:
        if name.endswith("sha256"):
            digest(section[name])


def working_bytes(section: Any) -> int:
    return int(section["payload_bytes"] + sum(stream[2] for stream in section["streams"]))


def check_order(sections: Any) -> None:
    reached: dict[tuple[int, str], int] = {}
    for number_, section in enumerate(sections):
        must(not number_ or section["region"] >= sections[number_ - 1]["region"], "order")
        key = section["region"], section["op"]
        must(section["start"] >= reached.get(key, 0), "sections overlap")
        reached[key] = section["start"] + section["count"]


def check_held(sections: Any, regions: Any) -> None:
    """Sections that are open at the same byte of the file fit into memory together."""
    at = [regions[section["region"]] for section in sections]
    lows = [r["file_offset"] + span(r, s["start"]) for r, s in zip(at, sections, strict=True)]
    highs = [
        r["file_offset"] + span(r, s["start"] + s["count"])
        for r, s in zip(at, sections, strict=True)
    ]
    for byte in set(lows):
        held = zip(lows, highs, sections, strict=True)
        most = sum(working_bytes(s) for low, high, s in held if low <= byte < high)
        must(most <= 64 * MIB, "working bytes of open sections")


def kept(manifest: Any) -> list[list[int]]:
    both = min(manifest["from"]["size"], manifest["to"]["size"])
    return manifest.get("moves") or [[0, 0, both]]


def check_moves(manifest: Any) -> None:
    end = total = 0
    for move in items(manifest.get("moves", []), 8192):
        must(type(move) is list and len(move) == 3, "move")
        to, start, length = (number(value, 0, 8 << 30) for value in move)
        must(length and to >= end and start + length <= manifest["from"]["size"], "move")
        end, total = to + length, total + length
    must(end <= manifest["to"]["size"] and total <= 2 * manifest["from"]["size"], "moves")
    holes, end = [], 0
    for to, _, length in [*kept(manifest), [manifest["to"]["size"], 0, 0]]:
        holes.append((end, to))
        end = to + length
    for section in manifest["sections"]:
        if section["op"] == "exact":
            low = manifest["regions"][section["region"]]["file_offset"] + section["start"]
            high = low + section["count"]
            holes = [
                part
                for start, stop in holes
                for part in ((start, min(stop, low)), (max(start, high), stop))
                if part[0] < part[1]
            ]
    must(all(start >= stop for start, stop in holes), "bytes that nothing gives")
