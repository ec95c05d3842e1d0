"""Makes patches (maker side).

`make_patch` finds the difference of any two files: tensors of safetensors files become sparse
sections, whatever else differs exact ones (see `difference`). `make_hashed` makes the target from
trained buckets. Both apply what they made with the code of the devices, and write nothing if the
result is not the target byte for byte. The same input gives the same bytes.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_diff import encode, view
from neural_diff.alignment import Bytes, by_likeness, by_name, may_move
from neural_diff.apply import Progress, apply
from neural_diff.codec import unpack
from neural_diff.decode_numpy import change_of
from neural_diff.difference import add_difference, add_elements, add_exact, bytes_of, placed
from neural_diff.draft import Draft, Side
from neural_diff.errors import Malformed
from neural_diff.hashed import region_seed
from neural_diff.layout import read_header, regions_of
from neural_diff.limits import BUCKETS_MAX, FRACTION_BITS_MAX
from neural_diff.link import open_regular, sha256_of
from neural_diff.packed import Encoded
from neural_diff.patch import Move, Patch
from neural_diff.region import Region
from neural_diff.section import Section

_SUFFIX = ".buckets"
_PATCH_SEED_BYTES = 16


@dataclass(frozen=True, slots=True)
class _HashSettings:
    """What the metadata of a bucket file says for all of its tensors."""

    patch_seed: bytes
    fraction_bits: int
    lo: int
    hi: int


def make_patch(
    base: Path,
    target: Path,
    out: Path,
    *,
    provenance: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> Patch:
    """Writes to `out` a patch that turns `base` into `target`, whatever the two files are.

    When a difference would not pay, the patch is made of the target's bytes alone.

    Raises:
        Malformed: a file that begins as a known kind of model is none, or a limit is exceeded.
        Corrupt: the patch does not give the target back; `out` is not written.
    """
    base, target = base.resolve(), target.resolve()
    with ExitStack() as opened:
        old_file = opened.enter_context(open_regular(base, Malformed))
        new_file = opened.enter_context(open_regular(target, Malformed))
        old, new = bytes_of(old_file), bytes_of(new_file)
        before, after = (len(old), sha256_of(old_file)), (len(new), sha256_of(new_file))
        tensors, moves = _aligned(base, target, old, new)
        draft = Draft(moves)
        kept = moves or [Move(0, 0, min(len(old), len(new)))]
        for done in add_difference(draft, tensors, kept, placed(old, len(new), moves), new):
            if progress:
                progress(done, len(new))
        if draft.payload_bytes > len(new) // 2:
            whole = Draft()
            add_exact(whole, 0, len(new), new)
            draft = min(draft, whole, key=lambda tried: tried.cost)
        return _write_checked(draft, base, out, before, after, new, provenance or {})


def _aligned(
    base: Path, target: Path, old: Bytes, new: Bytes
) -> tuple[list[Region], tuple[Move, ...]]:
    """Gives the tensors both files have, as they lie in the new one, and the moves there."""
    before, after = (regions_of(path) for path in (base, target))
    if before and after:
        tensors, moves = by_name(before, after)
        return (tensors, moves) if may_move(moves, len(old)) else ([], ())
    return [], by_likeness(old, new)


def make_hashed(
    base: Path,
    buckets: Path,
    out: Path,
    target: Path,
    *,
    wanted: Path | None = None,
    provenance: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> Patch:
    """Writes to `out` a hashed patch, and to `target` the model that it makes of `base`.

    `wanted`, if given, is the model that it should make: where the buckets lead elsewhere, sparse
    sections correct them (a hybrid diff).

    `buckets` is a safetensors file with an int16 array `<tensor>.buckets` of shape (K,) for each
    int8 tensor of `base` to be changed, and metadata `patch_seed` (16 bytes in hexadecimal),
    `fraction_bits`, `lo` and `hi`.

    Raises:
        Malformed: a bucket array fits no int8 tensor of the base, or the metadata is incomplete.
        Corrupt: the patch does not give the target back; neither file is written.
    """
    base = base.resolve()
    settings, arrays = _read_buckets(buckets)
    found = {region.name: region for region in regions_of(base)}
    for name, values in arrays.items():
        if name not in found or found[name].kind != "int":
            raise Malformed(f"{buckets}: the base has no int8 tensor {name!r}")
        most = min(BUCKETS_MAX, found[name].count)
        if not 1 <= len(values) <= most:
            raise Malformed(f"{buckets}: {len(values)} buckets for {name!r}; 1 to {most} may be")
    with ExitStack() as opened:
        old_file = opened.enter_context(open_regular(base, Malformed))
        old = bytes_of(old_file)
        before, new, draft = (len(old), sha256_of(old_file)), old.copy(), Draft()
        goal = bytes_of(opened.enter_context(open_regular(wanted, Malformed))) if wanted else None
        if goal is not None and len(goal) != len(old):
            raise Malformed(f"{wanted}: must be as long as {base}")
        for name, region in found.items():
            if name in arrays:
                bound = region._replace(lo=settings.lo, hi=settings.hi)
                seed = region_seed(settings.patch_seed, name)
                encoded = encode.hashed(arrays[name], seed, settings.fraction_bits)
                draft.add(bound, 0, bound.count, encoded)
                _carry_out(encoded, bound, new)
                if goal is not None:
                    add_elements(draft, bound, new, goal)
            if progress:
                progress(region.file_offset + region.span_bytes, len(old))
        new = new if goal is None else goal
        after = (len(new), hashlib.sha256(new.data).hexdigest())
        room = opened.enter_context(_room_beside(target))
        patch = _write_checked(draft, base, out, before, after, new, provenance or {})
        (room / "model").write_bytes(new.data)
        (room / "model").replace(target)
    return patch


def _carry_out(encoded: Encoded, region: Region, new: Bytes) -> None:
    """Does to the region in `new` what is encoded for the whole of it."""
    held = bytearray(new[region.file_offset :][: region.span_bytes])
    section = Section(0, 0, region.count, encoded.op, encoded.codec, encoded.params, ())
    elements = view.elements_of(region, held)
    change_of(section, region, unpack(encoded.streams, encoded.payload), False)(elements, 0)
    view.put_elements(region, elements, held)
    new[region.file_offset :][: region.span_bytes] = held


def _read_buckets(path: Path) -> tuple[_HashSettings, dict[str, NDArray[np.int16]]]:
    header = read_header(path)
    arrays = {}
    with path.open("rb") as file:
        for tensor in header.tensors:
            if not tensor.name.endswith(_SUFFIX) or tensor.dtype != "I16" or len(tensor.shape) != 1:
                raise Malformed(f"{path}: {tensor.name!r} is no int16 array named <tensor>.buckets")
            file.seek(tensor.file_offset)
            held = np.frombuffer(file.read(tensor.stored_bytes), "<i2")
            arrays[tensor.name.removesuffix(_SUFFIX)] = held
    return _settings(header.metadata, path), arrays


def _settings(metadata: dict[str, str], path: Path) -> _HashSettings:
    try:
        numbers = [int(metadata[name]) for name in ("fraction_bits", "lo", "hi")]
        settings = _HashSettings(bytes.fromhex(metadata["patch_seed"]), *numbers)
    except (KeyError, ValueError) as error:
        raise Malformed(
            f"{path}: metadata needs patch_seed (hex), fraction_bits, lo and hi ({error})"
        ) from None
    if (
        len(settings.patch_seed) != _PATCH_SEED_BYTES
        or not 0 <= settings.fraction_bits <= FRACTION_BITS_MAX
        or not -128 <= settings.lo <= settings.hi <= 127
    ):
        raise Malformed(f"{path}: metadata is out of range: {settings}")
    return settings


def _write_checked(
    draft: Draft,
    base: Path,
    out: Path,
    before: Side,
    after: Side,
    new: Bytes,
    provenance: Mapping[str, str],
) -> Patch:
    """Writes the patch if applying it, as a device does, gives the promised file."""
    with _room_beside(out) as room:
        patch = draft.write(room / "patch", before, after, new, provenance)
        apply(base, [room / "patch"], room / "result")
        (room / "patch").replace(out)
    return patch


@contextmanager
def _room_beside(path: Path) -> Iterator[Path]:
    """Opens a directory next to `path` and removes it with all that is left in it."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:100]}.", dir=path.parent) as room:
        yield Path(room)
