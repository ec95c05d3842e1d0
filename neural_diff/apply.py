"""Applies patches: one exact file becomes another exact file, or nothing happens.

The rules:
- Every patch is read and checked, and the base's size and SHA-256 compared, before any byte is
  written. A chain of patches must fit together link by link.
- The base is opened once and only if it is a regular file; the same descriptor is hashed and
  copied, so a file put in its place meanwhile is not read.
- The work happens in a new file next to `target`, named `.<target's name>.<random>.part`. Each
  payload is checked before it is decoded, each section's result after; then the whole result.
- Only then the new file is flushed to the disk and takes the place of `target` at once. On any
  error it is removed and `target` is untouched. After a power cut it may be left; the next run for
  the same target does not use it, but removes it, and nothing else of another name.
- `shutil` and `tempfile` are not used: they bring lzma, a fifth of the memory of a whole run.
- Memory holds one section's payload and streams (see `limits.WORKING_BYTES_MAX`) and one block.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from neural_diff import codec, decode, view
from neural_diff.errors import Corrupt, Malformed, NeuralDiffError, WrongBase
from neural_diff.patch import Patch, read_patch
from neural_diff.region import Region
from neural_diff.section import Section

_BLOCK_ELEMENTS = 1 << 18
_COPY_BYTES = 1 << 18

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes to do; both count payload of the patches."""


NUMPY = find_spec("numpy") is not None
"""Whether numpy decodes. It is loaded by the first `apply`, not by importing this module."""


@dataclass(frozen=True, slots=True)
class Applied:
    """The file that now lies at the target."""

    size: int
    sha256: str


def apply(
    base: Path, patches: Sequence[Path], target: Path, *, progress: Progress | None = None
) -> Applied:
    """Applies a chain of patches to `base` and puts the result at `target`.

    Raises:
        Malformed: a patch is no patch, or breaks a rule of the format.
        WrongBase: the base, or a patch's predecessor, is not what the patch was made for.
        Corrupt: a digest of a patch or of the result is wrong.
        OSError: the disk is full, a file is missing; nothing was left behind.
    """
    with ExitStack() as opened:
        files = [opened.enter_context(open_regular(path, Malformed)) for path in patches]
        chain = [_read(file, path) for file, path in zip(files, patches, strict=True)]
        _check_chain(chain, patches)
        source = opened.enter_context(open_regular(base, WrongBase))
        _check_base(source, chain[0], base)
        _sweep(target)
        _check_space(chain, target.parent)
        work, part = opened.enter_context(_new_file_for(target))
        os.fchmod(work.fileno(), stat.S_IMODE(os.fstat(source.fileno()).st_mode) & 0o777)
        _copy(source, work)
        done, total = 0, sum(section.payload_bytes for patch in chain for section in patch.sections)
        for patch, file, path in zip(chain, files, patches, strict=True):
            work.truncate(patch.to_size)
            for number, section in enumerate(patch.sections):
                _apply_section(patch, section, file, work, f"{path}: section {number}")
                done += section.payload_bytes
                if progress:
                    progress(done, total)
            if sha256_of(work) != patch.to_sha256:
                raise Corrupt(f"{path}: the result is not the file that the patch promises")
        work.flush()
        os.fsync(work.fileno())
        part.replace(target)
        _fsync_directory(target.parent)
    return Applied(chain[-1].to_size, chain[-1].to_sha256)


def open_regular(path: Path, error: type[NeuralDiffError]) -> BinaryIO:
    """Opens a regular file for reading; raises `error` for a link, pipe, device or directory."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as failure:
        if failure.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise error(f"{path}: is a link or no regular file; give the file itself") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path}: is no regular file")
    return os.fdopen(descriptor, "rb")


def sha256_of(file: BinaryIO) -> str:
    """Gives the SHA-256 of a whole open file, in hexadecimal."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_COPY_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _read(file: BinaryIO, path: Path) -> Patch:
    try:
        return read_patch(file, os.fstat(file.fileno()).st_size)
    except NeuralDiffError as error:
        raise type(error)(f"{path}: {error}") from None


def _check_chain(chain: Sequence[Patch], paths: Sequence[Path]) -> None:
    if not chain:
        raise Malformed("no patch was given; a chain has at least one")
    for (before, after), path in zip(pairwise(chain), paths[1:], strict=True):
        if (before.to_size, before.to_sha256) != (after.from_size, after.from_sha256):
            raise WrongBase(f"{path}: was not made for the result of the patch before it")


def _check_base(source: BinaryIO, patch: Patch, base: Path) -> None:
    size = os.fstat(source.fileno()).st_size
    if size != patch.from_size:
        raise WrongBase(f"{base}: has {size} bytes, the patch was made for {patch.from_size}")
    found = sha256_of(source)
    if found != patch.from_sha256:
        raise WrongBase(f"{base}: SHA-256 {found}, the patch was made for {patch.from_sha256}")


def _check_space(chain: Sequence[Patch], directory: Path) -> None:
    need = max(max(patch.from_size, patch.to_size) for patch in chain)
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free < need:
        raise OSError(errno.ENOSPC, f"{need} bytes are needed and {free} free", str(directory))


def _sweep(target: Path) -> None:
    """Removes what runs for this target have left that a power cut ended.

    A run that still goes on holds a lock on its file, which is then left alone.
    """
    ours = re.compile(re.escape(_part_prefix(target)) + r"[0-9a-f]{16}\.part")
    for path in target.parent.iterdir():
        if not ours.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        # Whoever ended between the two looks at the directory has removed its own.
        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as left:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _part_prefix(target: Path) -> str:
    return f".{target.name[:100]}."


@contextlib.contextmanager
def _new_file_for(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Opens a new file in the target's directory and removes it at the end if it is still there."""
    part = target.parent / f"{_part_prefix(target)}{os.urandom(8).hex()}.part"
    with part.open("x+b") as work:
        try:
            fcntl.flock(work, fcntl.LOCK_EX)
            yield work, part
        finally:
            part.unlink(missing_ok=True)


def _apply_section(
    patch: Patch, section: Section, file: BinaryIO, work: BinaryIO, where: str
) -> None:
    file.seek(section.offset)
    payload = file.read(section.payload_bytes)
    if hashlib.sha256(payload).hexdigest() != section.payload_sha256:
        raise Corrupt(f"{where}: its bytes do not have their digest; fetch the patch again")
    region = patch.regions[section.region]
    try:
        streams = codec.unpack(section.streams, payload)
        change = _decoder()(section, region, streams)
    except NeuralDiffError as error:
        raise type(error)(f"{where}: {error}") from None
    if change_file(change, section, region, work) != section.result_sha256:
        raise Corrupt(f"{where}: does not lead to the bytes that the patch promises")


def change_file(change: decode.Change, section: Section, region: Region, work: BinaryIO) -> str:
    """Changes the section's elements in the file, block by block; gives their new digest."""
    digest = hashlib.sha256()
    per_block = region.layout.per_block if region.layout else 2
    step = max(_BLOCK_ELEMENTS // per_block, 1) * per_block
    for first in range(0, section.count, step):
        count = min(step, section.count - first)
        offset, length = view.window(region, section.start + first, count)
        work.seek(offset)
        held = bytearray(work.read(length))
        elements = view.elements_of(region, held)
        change(elements, first)
        digest.update(view.put_elements(region, elements, held))
        work.seek(offset)
        work.write(held)
    return digest.hexdigest()


def _decoder() -> Callable[[Section, Region, Sequence[bytes]], decode.Change]:
    if not NUMPY:
        return decode.change_of
    from neural_diff import decode_numpy

    return decode_numpy.change_of


def _copy(source: BinaryIO, work: BinaryIO) -> None:
    source.seek(0)
    while chunk := source.read(_COPY_BYTES):
        work.write(chunk)


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
