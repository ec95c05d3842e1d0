"""Patches made of any bytes, well-formed at first sight and with right digests of payloads."""

import hashlib
import zlib
from itertools import zip_longest
from typing import Any

from tests.unit import reference_manifest

BASES = [bytes(range(256)) * 2, hashlib.shake_128(b"fleet").digest(500), bytes(64)]
DIGEST = "0" * 64
SHAPES: list[tuple[str, int]] = [
    ("int", 4), ("int", 8), ("int", 16), ("int", 32), ("f16", 16), ("bf16", 16), ("f32", 32),
    ("bytes", 8),
]  # fmt: skip
WAYS = [
    ("add", 1, ["changes"]), ("add", 2, ["changes", "blocks"]), ("add", 3, ["changes", "classes"]),
    ("set", 1, ["changes"]), ("set", 2, ["changes", "blocks"]), ("set", 0, ["xor"]),
    ("hashed", 4, ["buckets", "fraction_bits", "seed"]),
]  # fmt: skip
ODD = [0, 1, -1, 2, 3, 15, 16, 17, 31, 32, 255, 256, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**33,
       2**63, 2**64, True, None, "", "int", [], [1], {}, {"a": 1}]  # fmt: skip


class Choices:
    """Bytes, read as choices; when they are used up every choice is the first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def bytes(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at].ljust(count, b"\0")

    def below(self, count: int) -> int:
        return int.from_bytes(self.bytes(2 if count > 256 else 1), "little") % max(count, 1)

    def of(self, things: list[Any]) -> Any:
        return things[self.below(len(things))]


def patch_of(choices: Choices) -> tuple[bytes, Any, list[bytes]]:
    """Makes a base and a patch of it that is well-formed at first sight."""
    base = choices.of(BASES)
    size = len(base) + choices.of([0, 0, 1, 17, -1, -20])
    moves, regions, sections, payloads = _moves(choices, len(base), size), [], [], []
    holes = [[len(base), size]] if size > len(base) else []
    if moves:
        ends = [0, *(to + length for to, _, length in moves)]
        holes = [list(h) for h in zip(ends, [*(m[0] for m in moves), size], strict=True)]
        holes = [hole for hole in holes if hole[0] < hole[1]]
    end = 0
    for _ in range(choices.below(4)):
        region = _region(choices, end)
        span = reference_manifest.span(region, region["count"])
        stop = min([hole[0] for hole in holes if hole[1] > end] + [size])
        if region["file_offset"] + span <= stop:
            found = [region]
            if "layout" in region and choices.below(2):
                found.append(_sharing(region))
            end = region["file_offset"] + span
            for one in found:
                regions.append(one)
                for _ in range(1 + choices.below(3)):
                    _add_section(choices, regions, sections, payloads)
        elif stop < size:
            _add_exact(choices, holes.pop(0), regions, sections, payloads)
            end = regions[-1]["file_offset"] + regions[-1]["count"]
    for hole in holes:
        _add_exact(choices, hole, regions, sections, payloads)
    manifest = {
        "from": {"sha256": hashlib.sha256(base).hexdigest(), "size": len(base)},
        "to": {"sha256": DIGEST, "size": size},
        "provenance": {},
        "regions": regions,
        "sections": sections,
    } | ({"moves": moves} if moves else {})
    manifest |= _needs(manifest)
    for _ in range(choices.of([0, 0, 0, 1, 2])):
        _spoil(choices, manifest)
    return base, manifest, payloads


def _moves(choices: Choices, old: int, new: int) -> list[list[int]]:
    moves, end = [], 0
    for _ in range(choices.of([0, 0, 1, 2, 5])):
        to, start = end + choices.of([0, 0, 1, 9]), choices.below(old)
        length = min(1 + choices.below(300), old - start, new - to)
        if length > 0:
            moves.append([to, start, length])
            end = to + length
    return moves


def _region(choices: Choices, end: int) -> dict[str, Any]:
    kind, width = choices.of(SHAPES[:-1])
    region = {"name": "w", "file_offset": end + choices.of([0, 0, 1, 5]), "kind": kind}
    region |= {"width": width, "count": 2 * (1 + choices.below(100))}
    if kind == "int":
        half = 1 << (width - 1)
        region |= {"bias": choices.of([0, half]), "lo": choices.of([-half, 0, -1])}
        region["hi"] = choices.of([half - 1, 0, 1])
    if choices.below(3) == 2:
        per_block = choices.of([2, 4, 8, 32])
        size, first = per_block * width // 8, choices.of([0, 2])
        order = choices.of(["low", "high"])
        region["layout"] = {"stride": first + size + choices.of([0, 2, 3]), "first": first}
        region["layout"] |= {"per_block": per_block, "nibble_order": order}
        region["count"] = per_block * (1 + choices.below(12))
    return region


def _sharing(region: dict[str, Any]) -> dict[str, Any]:
    """Gives a region of a byte in each block, after the elements of another."""
    layout, blocks = region["layout"], region["count"] // region["layout"]["per_block"]
    first = layout["first"] + layout["per_block"] * region["width"] // 8
    mine = layout | {"first": min(first, layout["stride"] - 1), "per_block": 1}
    same = {"name": "s", "file_offset": region["file_offset"], "layout": mine}
    return same | {"kind": "int", "width": 8, "count": blocks, "lo": -128, "hi": 127}


def _add_section(
    choices: Choices, regions: list[Any], sections: list[Any], payloads: list[bytes]
) -> None:
    region = regions[-1]
    unit = reference_manifest.unit(region)
    start = choices.of([0, 0, 1, 2]) * unit
    count = region["count"] - start - choices.of([0, 0, 1, 2]) * unit
    op, codec, names = choices.of(WAYS if region["kind"] == "int" else WAYS[:-1])
    if op == "hashed":
        start, count = 0, region["count"]
    if start < 0 or count < 1:
        return
    params = {
        "changes": 1 + choices.below(min(count, 40)), "classes": 2 + choices.below(15),
        "blocks": 1 + choices.below((count + 31) // 32), "buckets": 1 + choices.below(count),
        "fraction_bits": choices.below(9), "seed": choices.below(65536), "xor": choices.below(2),
        "run": 1 + count // 5,
    }  # fmt: skip
    if codec == 3 and choices.below(2):
        names = [*names, "run"]
    if op == "add" and codec < 3 and choices.below(2):
        names = [*names, "classes"]
    params = {name: params[name] for name in names}
    if (op == "hashed" or (op == "add" and region["width"] == 4)) and choices.below(2):
        params["paired"] = 1
    section = {
        "region": len(regions) - 1, "start": start, "count": count, "op": op, "codec": codec,
        "params": params, "streams": [], "payload_bytes": 0, "payload_sha256": DIGEST,
        choices.of(["prefix_sha256", "result_sha256"]): DIGEST,
    }  # fmt: skip
    _fill(choices, section, region, payloads)
    sections.append(section)


def _add_exact(
    choices: Choices,
    hole: list[int],
    regions: list[Any],
    sections: list[Any],
    payloads: list[bytes],
) -> None:
    low, high = hole
    region = {"name": "b", "file_offset": low, "kind": "bytes", "width": 8, "count": high - low}
    regions.append(region)
    section = {
        "region": len(regions) - 1, "start": 0, "count": high - low, "op": "exact", "codec": 0,
        "params": {"xor": 0}, "streams": [], "payload_bytes": 0, "payload_sha256": DIGEST,
        "prefix_sha256": DIGEST,
    }  # fmt: skip
    _fill(choices, section, region, payloads)
    sections.append(section)


def _fill(choices: Choices, section: Any, region: Any, payloads: list[bytes]) -> None:
    """Gives a section the streams that it needs, of whatever the choices say."""
    payload = b""
    for decoded in _streams(choices, section, region):
        coding, stored = choices.below(3), decoded
        if coding == 0 and decoded:
            stored = decoded[:1]
            decoded = stored * len(decoded)
        elif coding == 2:
            press = zlib.compressobj(9, zlib.DEFLATED, -15)
            stored = press.compress(decoded) + press.flush()
        if not decoded or (coding == 2 and len(stored) >= len(decoded)):
            coding, stored = 1, decoded
        section["streams"].append([coding, len(stored), len(decoded)])
        payload += stored
    section["payload_bytes"] = len(payload)
    payloads.append(payload)


def _streams(choices: Choices, section: Any, region: Any) -> list[bytes]:
    params, codec, size = section["params"], section["codec"], max(region["width"] // 8, 1)
    if codec == 0:
        return [_small(choices, section["count"] * size, region["width"] < 8)]
    if codec == 4:
        tokens, bits = _numbers(choices, [params["buckets"]], 3)
        if "paired" in params:
            tokens = bytes(token & 15 for token in tokens)
            bits = _bits(choices, sum(max(token - 4, 0) // 4 for token in tokens))
            pairs = bytes(
                a | b << 4 for a, b in zip_longest(tokens[::2], tokens[1::2], fillvalue=0)
            )
            return [pairs, bits, _bits(choices, params["buckets"] - tokens.count(0))]
        return [tokens, bits, _bits(choices, params["buckets"] - tokens.count(0))]
    streams, changes, classes = [], params["changes"], params.get("classes", 1)
    shares = [changes] + [0] * (classes - 1)
    for number in range(choices.of([0, 0, classes - 1])):
        moved = choices.below(shares[number] + 1)
        shares[number : number + 2] = shares[number] - moved, moved
    if "classes" in params:
        length, names = 16 if region["width"] == 4 else 256, choices.of([1, 2, classes, 17])
        if "run" in params:
            length = (-(-section["count"] // params["run"]) + 1) // 2
            names = choices.of([1, 2, 16, 33])
        streams.append(bytes(byte % names for byte in choices.bytes(length)))
    if codec == 2:
        streams += _numbers(choices, [params["blocks"]], 4)
        streams.append(_small(choices, 4 * params["blocks"], choices.below(2)))
        set_bits = int.from_bytes(streams[-1], "little").bit_count()
        params["changes"] = changes = max(set_bits, 1)
        shares = [changes] + [0] * (classes - 1)
    else:
        streams += _numbers(choices, shares if codec == 3 else [changes], 4)
    if section["op"] == "set":
        return [*streams, _small(choices, changes * size, region["width"] < 8)]
    if "paired" in params:
        return [*streams, *(choices.bytes(-(-share // 2)) for share in shares)]
    return [*streams, *_numbers(choices, shares, 3), _bits(choices, changes)]


def _numbers(choices: Choices, counts: list[int], literal_bits: int) -> list[bytes]:
    """Gives tokens, as many as asked for of each class, and their raw bits."""
    found = []
    for count in counts:
        mask = choices.of([3, 15, 31, 255])
        found.append(bytes(byte & mask for byte in choices.bytes(count)))
    longer = [token - (1 << literal_bits) for tokens in found for token in tokens]
    return [*found, _bits(choices, sum(n // 4 + literal_bits - 2 for n in longer if n >= 0))]


def _bits(choices: Choices, count: int) -> bytes:
    raw = int.from_bytes(choices.bytes(-(-count // 8)), "little")
    return (raw & ((1 << count) - 1)).to_bytes(-(-count // 8), "little")


def _small(choices: Choices, count: int, small: object) -> bytes:
    given = choices.bytes(count)
    return bytes(byte & 15 for byte in given) if small else given


def _needs(manifest: Any) -> dict[str, Any]:
    sections = manifest["sections"]
    new = any(s["codec"] in (2, 3) or {"classes", "paired"} & set(s["params"]) for s in sections)
    hashed = any(s["op"] == "hashed" for s in sections)
    runs = any("run" in s["params"] for s in sections)
    needs = [s["payload_bytes"] + sum(n for *_, n in s["streams"]) for s in sections]
    return {
        "capabilities": hashed + 2 * new + 4 * ("moves" in manifest) + 8 * runs,
        "limits": {
            "changes": sum(s["params"].get("changes", s["count"]) for s in sections),
            "section_elements": max((s["count"] for s in sections), default=0),
            "working_bytes": max(needs, default=0),
        },
    }


def _spoil(choices: Choices, manifest: Any) -> None:
    """Makes one value of the manifest an odd one; sizes are left to `read`."""
    place = manifest
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        keys = [key for key in keys if key not in ("from", "to", "payload_sha256")]
        if not keys:
            return
        key = choices.of(keys)
        inner = isinstance(place[key], dict | list)
        if inner and (key == "sections" or place is manifest["sections"] or choices.below(8)):
            place = place[key]
            continue
        number = type(place[key]) is int and choices.below(2)
        place[key] = place[key] + choices.of([1, -1, 2, 8]) if number else choices.of(ODD)
        return
