"""Small model files and patches for the tests, and a way to take patches apart and lie in them."""

import hashlib
import json
import struct
import zlib
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from neural_diff.make import make_hashed, make_patch
from neural_diff.packed import Encoded
from neural_diff.patch import ENVELOPE, MAGIC
from neural_diff.section import Section

DTYPES = {"I8": np.int8, "I16": np.int16, "F16": np.float16, "BF16": np.uint16, "F32": np.float32}
PATCH_SEED = bytes(range(16))


def save_safetensors(
    path: Path,
    tensors: dict[str, tuple[str, np.ndarray]],
    metadata: dict[str, str] | None = None,
) -> Path:
    """Writes a safetensors file; every tensor is its dtype's name and its array."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, (dtype, array) in tensors.items():
        raw = array.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    spelled = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(spelled)) + spelled + data)
    return path


def save_buckets(path: Path, buckets: dict[str, np.ndarray], **metadata: str) -> Path:
    settings = {"patch_seed": PATCH_SEED.hex(), "fraction_bits": "0", "lo": "-127", "hi": "127"}
    tensors = {f"{name}.buckets": ("I16", values) for name, values in buckets.items()}
    return save_safetensors(path, tensors, settings | metadata)


def sample(kind: str, room: Path) -> tuple[Path, Path, Path]:
    """Makes a small base, target and patch of a kind."""
    base, target, patch = room / "base", room / "target", room / "patch"
    rng = np.random.default_rng(7)
    weights = rng.integers(-127, 128, (8, 16), np.int8)
    if kind == "exact":
        base.write_bytes(rng.bytes(40))
        target.write_bytes(rng.bytes(70))
        make_patch(base, target, patch, provenance={"by": "tests"})
        return base, target, patch
    scales = rng.random(8, np.float32)
    save_safetensors(base, {"w": ("I8", weights), "w.scale": ("F32", scales)}, {"v": "1"})
    if kind == "hashed":
        buckets = save_buckets(room / "buckets", {"w": rng.integers(-9, 10, 24).astype(np.int16)})
        make_hashed(base, buckets, patch, target, provenance={"by": "tests"})
        return base, target, patch
    changed, scales = weights.copy(), scales.copy()
    changed.reshape(-1)[[0, 40, 41, 127]] += np.array([1, -3, 90, 2], np.int8)
    scales[[2, 5]] *= 1.5
    save_safetensors(target, {"w": ("I8", changed), "w.scale": ("F32", scales)}, {"v": "2"})
    make_patch(base, target, patch, provenance={"by": "tests"})
    return base, target, patch


def section_of(encoded: Encoded, count: int) -> Section:
    """Gives the section that says what is encoded of a whole region."""
    return Section(
        *(0, 0, count, encoded.op, encoded.codec, encoded.params, encoded.streams),
    )


def take_apart(patch: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Gives the manifest of a patch file, as version 1 spells it, and the payloads."""
    version, length = ENVELOPE.unpack(patch[: ENVELOPE.size])[1::2][:2]
    end = ENVELOPE.size + length
    press = zlib.decompressobj(-15)
    manifest = json.loads(press.decompress(patch[ENVELOPE.size : end]))
    if version == 2:
        manifest = as_first(manifest, press.unused_data)
    payloads = []
    for section in manifest["sections"]:
        start = -(-end // 8) * 8
        end = start + section["payload_bytes"]
        payloads.append(patch[start:end])
    return manifest, payloads


def as_first(manifest: dict[str, Any], digests: bytes) -> dict[str, Any]:
    """Gives a manifest of version 2 and its digests as version 1 says the same."""
    digest = (digests[at : at + 32].hex() for at in range(0, len(digests), 32))
    for side in ("from", "to"):
        manifest[side] = {"size": manifest[side], "sha256": next(digest)}
    for section in manifest["sections"]:
        section["streams"] = [
            [1, stream, stream] if isinstance(stream, int) else [2 * (stream[0] > 1), *stream]
            for stream in section["streams"]
        ]
        section["payload_bytes"] = sum(stored for _, stored, _ in section["streams"])
        section |= {"payload_sha256": next(digest), "prefix_sha256": next(digest)}
    return with_limits(manifest)


def with_limits(manifest: Any) -> Any:
    """Makes a manifest say the limits that its sections need."""
    sections = manifest["sections"]
    manifest["limits"] = {
        "changes": sum(s["params"].get("changes", s["count"]) for s in sections),
        "section_elements": max((s["count"] for s in sections), default=0),
        "working_bytes": max(
            (s["payload_bytes"] + sum(n for *_, n in s["streams"]) for s in sections), default=0
        ),
    }
    return manifest


def as_second(manifest: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Gives a manifest of version 1 as version 2 says the same, and the digests.

    Raises:
        ValueError: version 2 cannot say it.
    """
    short, digests = deepcopy(manifest), [manifest[side]["sha256"] for side in ("from", "to")]
    del short["limits"]
    for side in ("from", "to"):
        short[side] = manifest[side]["size"]
    for section in short["sections"]:
        for field in ("payload_sha256", "prefix_sha256"):
            digests.append(section.pop(field))
        if section.pop("payload_bytes") != sum(stored for _, stored, _ in section["streams"]):
            raise ValueError("payload_bytes")
        if any(
            (coding == 0) != (stored == 1 and coding != 1)
            for coding, stored, _ in section["streams"]
        ):
            raise ValueError("coding")
        section["streams"] = [
            given if coding == 1 and stored == given else [stored, given]
            for coding, stored, given in section["streams"]
        ]
    return short, bytes.fromhex("".join(digests))


def spell(manifest: object) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def put_together(
    manifest: object,
    payloads: list[bytes],
    *,
    magic: bytes = MAGIC,
    version: int = 1,
    digests: bytes = b"",
    flags: int = 0,
    padding: bytes = b"\0",
) -> bytes:
    """Writes a patch file with right digests of manifest and payloads, whatever they say.

    `manifest`, as version 1 spells it, may be bytes, which are then taken as its spelling.
    """
    if isinstance(manifest, dict):
        for section, payload in zip(manifest["sections"], payloads, strict=True):
            section["payload_sha256"] = hashlib.sha256(payload).hexdigest()
        if version == 2:
            manifest, digests = as_second(manifest)
    spelled = manifest if isinstance(manifest, bytes) else spell(manifest)
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    stored = press.compress(spelled) + press.flush() + digests
    file = ENVELOPE.pack(magic, version, flags, len(stored), hashlib.sha256(stored).digest())
    file += stored
    for payload in payloads:
        file += padding * (-len(file) % 8) + payload
    return file


def everything_in(room: Path) -> dict[str, bytes]:
    """Gives all files below a directory, to see that nothing came, went or changed."""
    return {
        str(path.relative_to(room)): path.read_bytes()
        for path in sorted(room.rglob("*"))
        if path.is_file()
    }
