"""Patches that say a difference in a chosen way, not in the smallest; and what all decoders say.

`encode.smallest` picks; here every position code, table of classes and value code can be forced.
"""

import hashlib
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_diff import apply as applying
from neural_diff import encode, inplace, stream
from neural_diff.apply import apply
from neural_diff.codec import GAP_LITERAL_BITS
from neural_diff.draft import Draft
from neural_diff.errors import NeuralDiffError, Unsuitable
from neural_diff.make import make_patch
from neural_diff.packed import Encoded, Packed, pack
from neural_diff.patch import Move
from neural_diff.region import Blocked, Region
from neural_diff.section import CLASS_GAPS, REPLACE
from neural_diff.view import plane_split
from neural_diff.view_numpy import keys_of, sizes_of
from tests.unit import reference
from tests.unit.patch_files import put_together, take_apart, with_limits

KINDS: list[tuple[Any, int]] = [
    ("int", 4), ("int", 8), ("int", 16), ("int", 32), ("f16", 16), ("bf16", 16), ("f32", 32),
]  # fmt: skip
RANKED = ["class-gaps", "sizes"]
WAYS = ["gaps", "blocks32", *RANKED, "values by class", "blocks32 by class", "runs"]
ALL_WAYS = [*WAYS, "set gaps", "set blocks32", "replace", "exclusive or"]


def said(
    way: str, region: Region, old: Any, new: Any, classes: int = 4, paired: bool | None = None
) -> Encoded:
    """Says the step from `old` to `new`, raw elements that differ somewhere, in one way.

    Classes are of old values, spread by a multiplication so that each gets some; or of sizes.
    """
    changed = np.flatnonzero(old != new)
    gaps, blocks = encode._position_tries(changed, {"changes": len(changed)})
    places = blocks if "blocks32" in way else gaps
    if way in ("replace", "exclusive or"):
        flip = int(way == "exclusive or")
        planes = plane_split((old ^ new if flip else new).tobytes(), region.element_bytes)
        return Encoded("set", REPLACE, {"xor": flip}, (pack(planes),))
    if way.startswith("set"):
        planes = plane_split(new[changed].tobytes(), region.element_bytes)
        return Encoded("set", places.codec, places.params, (*places.packed, pack(planes)))
    distance = encode._signed_distance(old[changed], new[changed], region)
    paired = region.width == 4 if paired is None else paired
    params = places.params | ({"paired": 1} if paired else {})
    if way == "runs":
        run = max(len(old) // 9, 1)
        table = np.arange(-(-len(old) // run)) * 3 % classes
        # What is ranked is which class of runs an element is in, as if old values told it.
        of = np.repeat(table, run)[: len(old)]
        given = values([distance[of[changed] == number] for number in range(classes)], paired)
        packed = encode._packed([encode._pair(table), *ranks(of, changed, classes)])
        params |= {"classes": classes, "run": run}
        return Encoded("add", CLASS_GAPS, params, packed + given)
    if way in ("gaps", "blocks32"):
        return Encoded("add", places.codec, params, places.packed + values([distance], paired))
    table = (np.arange(256) * 7 % classes).astype(np.uint8)
    if way == "sizes":
        sizes = sizes_of(np.arange(256, dtype=np.uint8), region).astype(int)
        top = sizes[keys_of(old, region)].max() + 1
        table = np.minimum(sizes * classes // top, classes - 1).astype(np.uint8)
    which = table[keys_of(old[changed], region)]
    given = values([distance[which == number] for number in range(classes)], paired)
    lookup = (pack((table[:16] if region.width == 4 else table).tobytes()),)
    if way not in RANKED:
        params |= {"classes": classes}
        return Encoded("add", places.codec, params, lookup + places.packed + given)
    packed = encode._packed(ranks(table[keys_of(old, region)], changed, classes))
    params = {name: n for name, n in params.items() if name != "blocks"} | {"classes": classes}
    return Encoded("add", CLASS_GAPS, params, lookup + packed + given)


def values(by_class: Sequence[Any], paired: bool) -> tuple[Packed, ...]:
    if paired:
        return encode._packed([encode._pair(distance & 15) for distance in by_class])
    tokens, bits, signs = encode._split_signed(np.concatenate(by_class), 1)
    ends = np.cumsum([len(distance) for distance in by_class])[:-1]
    each = [part.tobytes() for part in np.split(np.frombuffer(tokens, np.uint8), ends)]
    return encode._packed([*each, bits, signs])


def ranks(which: Any, changed: Any, classes: int) -> list[bytes]:
    """Gives the gap tokens of each class and the raw bits of all, the plain way."""
    gaps = []
    for number in range(classes):
        members = np.flatnonzero(which == number)
        ranks = np.flatnonzero(np.isin(members, changed))
        gaps.append(np.diff(ranks, prepend=-1) - 1)
    tokens, bits = encode._split_numbers(np.concatenate(gaps), GAP_LITERAL_BITS)
    ends = np.cumsum([len(some) for some in gaps])[:-1]
    each = [part.tobytes() for part in np.split(np.frombuffer(tokens, np.uint8), ends)]
    return [*each, bits]


def sections_of(
    region: Region, old: bytes, new: bytes, way: str, classes: int = 4
) -> Iterator[tuple[Region, int, int, Encoded]]:
    """Gives one section that changes a whole region of `old` to what it is in `new`, if needed."""
    before, after = raws(region, old), raws(region, new)
    if (before != after).any():
        yield region, 0, region.count, said(way, region, before, after, classes)


def raws(region: Region, file: bytes) -> Any:
    """The raw elements of a region, by the reference's slow way."""
    spelled = {"file_offset": region.file_offset, "width": region.width, "kind": region.kind}
    if region.layout:
        spelled["layout"] = region.layout._asdict()
    held = bytearray(file)
    found = [reference.get(spelled, number, held) for number in range(region.count)]
    return np.array(found, f"<u{region.element_bytes}")


def with_raws(region: Region, file: bytes, values: Sequence[int]) -> bytes:
    spelled = {"file_offset": region.file_offset, "width": region.width, "kind": region.kind}
    if region.layout:
        spelled["layout"] = region.layout._asdict()
    held = bytearray(file)
    for number, value in enumerate(values):
        reference.put(spelled, number, int(value), held)
    return bytes(held)


def drafted(
    sections: Sequence[tuple[Region, int, int, Encoded]],
    old: bytes,
    new: bytes,
    moves: Sequence[Move] = (),
) -> bytes:
    """Writes a patch of these sections, whether or not they lead from `old` to `new`."""
    draft = Draft(moves)
    for section in sections:
        draft.add(*section)
    before, after = ((len(side), hashlib.sha256(side).hexdigest()) for side in (old, new))
    with tempfile.TemporaryDirectory() as room:
        draft.write(Path(room) / "patch", before, after, np.frombuffer(new, np.uint8), {})
        return (Path(room) / "patch").read_bytes()


def made(base: bytes, target: bytes) -> bytes:
    """Makes a patch as the maker does."""
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / part for part in ("base", "target", "patch")]
        paths[0].write_bytes(base)
        paths[1].write_bytes(target)
        make_patch(*paths)
        return paths[2].read_bytes()


def answer(base: bytes, *patches: bytes, pieces: int = stream.PIECE_BYTES) -> bytes | str:
    """Applies with both decoders, and one patch with the reference too; gives the one answer.

    It is the new file or how it was refused. In place, and back, it must be the same.
    """
    given = [_applied(base, patches, numpy, pieces) for numpy in (True, False)]
    assert given[0] == given[1]
    if len(patches) == 1:
        try:
            assert reference.applied(base, patches[0]) == given[0]
        except reference.Refused as refused:
            assert isinstance(given[0], str), refused
        _check_in_place_and_back(base, patches[0], given[0], pieces)
    return given[0]


def _check_in_place_and_back(base: bytes, patch: bytes, given: bytes | str, pieces: int) -> None:
    """Changes the only copy and rolls it back; goes back from the new file by the same patch."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream, "PIECE_BYTES", pieces)
        patched.setattr(applying.os, "fsync", lambda _: None)
        model, path = Path(name) / "model", Path(name) / "patch"
        model.write_bytes(base)
        path.write_bytes(patch)
        try:
            inplace.apply_in_place(model, path)
        except NeuralDiffError as error:
            assert isinstance(given, str) or isinstance(error, Unsuitable), error
            assert model.read_bytes() == base
        else:
            assert model.read_bytes() == given
            if given != base:
                inplace.roll_back(model)
            assert model.read_bytes() == base
        if isinstance(given, str):
            return
        model.write_bytes(given)
        try:
            apply(model, [path], model, back=True)
        except Unsuitable:
            return
        assert model.read_bytes() == base


def _applied(base: bytes, patches: Sequence[bytes], numpy: bool, pieces: int) -> bytes | str:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream, "NUMPY", numpy)
        patched.setattr(stream, "PIECE_BYTES", pieces)
        patched.setattr(applying.os, "fsync", lambda _: None)
        room = Path(name)
        (room / "base").write_bytes(base)
        paths = [room / f"patch {number}" for number in range(len(patches))]
        for path, patch in zip(paths, patches, strict=True):
            path.write_bytes(patch)
        threads = threading.active_count()
        try:
            apply(room / "base", paths, room / "target")
        except NeuralDiffError as error:
            assert threading.active_count() == threads
            assert {path.name for path in room.iterdir()} == {"base", *(p.name for p in paths)}
            return f"{type(error).__name__}: {error}".replace(name, "")
        return (room / "target").read_bytes()


def changed(
    rng: np.random.Generator, old: Any, width: int, share: float, pattern: str, far: bool
) -> Any:
    """Changes a share of raw elements: anywhere, in some blocks of 32, or by their magnitude."""
    count = len(old)
    if pattern == "clustered":
        hit = np.repeat(rng.random(-(-count // 32)) < share, 32)[:count] & (rng.random(count) < 0.7)
    elif pattern == "by magnitude":
        signed = ((old.astype(np.int64) + (1 << (width - 1))) % (1 << width)) - (1 << (width - 1))
        hit = rng.random(count) < 2 * share * np.abs(signed) / (1 << (width - 1))
    else:
        hit = rng.random(count) < share
    hit[rng.integers(count)] = True
    step = rng.integers(1, 1 << width if far else min(8, 1 << width), count)
    step = np.where(rng.random(count) < 0.5, step, (1 << width) - step)
    moved = (old.astype(np.int64) + step) % (1 << width)
    return np.where(hit, moved, old).astype(old.dtype)


def blocked(offset: int, blocks: int, order: str, width: int = 4) -> Region:
    """Blocks of 18 bytes: two of a scale, then 16 bytes of codes."""
    layout = Blocked(18, 2, 128 // width, order)  # type: ignore[arg-type]
    bias = 8 if width == 4 else 0
    half = 1 << (width - 1)
    return Region("q", offset, blocks * 128 // width, width, "int", bias, -half, half - 1, layout)


def decoded(patch: bytes, number: int = 0) -> list[bytes]:
    """Gives the decoded streams of a section."""
    manifest, payloads = take_apart(patch)
    return list(reference.streams_of(manifest["sections"][number], payloads[number]))


def lying(patch: bytes, streams: Sequence[bytes | Packed], **params: int) -> bytes:
    """Gives other streams, and parameters, to the first section; all else is as it must be."""
    manifest, payloads = take_apart(patch)
    packed = [pack(given) if isinstance(given, bytes) else given for given in streams]
    section = manifest["sections"][0]
    section["streams"] = [list(stream) for stream, _ in packed]
    section["params"] |= params
    payloads[0] = b"".join(stored for _, stored in packed)
    section["payload_bytes"] = len(payloads[0])
    return put_together(with_limits(manifest), payloads)
