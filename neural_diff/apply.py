"""Applies patches: one exact file becomes another exact file, or nothing happens.

The rules:
- Every patch is read and checked, every payload compared with its digest, and the base's size
  looked at, before any byte is written. A chain of patches must fit together link by link.
- The base is opened once and only if it is a regular file, and read once: the bytes that are
  hashed are the bytes that are used. Chains are fused (see `stream`); only a patch that moves bytes
  needs the file before it whole, so a chain is cut there.
- The work happens in a new file next to `target`, named `.<target's name>.<16 digits>.part`. Each
  section's digest is compared as the pass reaches its end; then base and result as a whole.
- Only then the new file is flushed to the disk and takes the place of `target` at once. On any
  error it is removed and `target` is untouched. After a power cut it may be left; the next run for
  the same target goes on from the last section of it that is right, or removes it.
- Whatever `progress` raises ends the run like an error: that is how to cancel it.
- `shutil` and `tempfile` are not used: they bring lzma, a fifth of the memory of a whole run.
- Memory holds a piece and one section's payload and streams for every patch of a fused chain; where
  numpy decodes, the sections of a chain are decoded ahead by a thread, and it holds the next ones.
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
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from neural_diff import stream
from neural_diff.errors import Corrupt, NeuralDiffError, WrongBase
from neural_diff.link import (
    COPY_BYTES,
    Link,
    check_base,
    check_chain,
    check_size,
    fused,
    open_link,
    open_regular,
    sha256_of,
)
from neural_diff.patch import Patch

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

    from neural_diff.ahead import Begin

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes to do; both count bytes of the files that are made."""


class Applied(NamedTuple):
    """The file that now lies at the target."""

    size: int
    sha256: str


def apply(
    base: Path,
    patches: Sequence[Path],
    target: Path,
    *,
    back: bool = False,
    progress: Progress | None = None,
) -> Applied:
    """Applies a chain of patches to `base` and puts the result at `target`.

    With `back`, `base` is what the chain leads to, and `target` becomes what it starts from.

    Raises:
        Malformed: a patch is no patch, or breaks a rule of the format.
        WrongBase: the base, or a patch's predecessor, is not what the patch was made for.
        Corrupt: a digest of a patch or of the result is wrong.
        Unsuitable: a patch does not go back.
        OSError: the disk is full, a file is missing; nothing was left behind.
    """
    with ExitStack() as opened:
        chain = [open_link(opened, path, back=back) for path in patches][:: -1 if back else 1]
        check_chain(chain)
        source = opened.enter_context(open_regular(base, WrongBase))
        mode = stat.S_IMODE(os.fstat(source.fileno()).st_mode) & 0o777
        check_size(source, chain[0].patch, base)
        runs = list(fused(chain))
        parts = [_part(target, run[-1].patch.to_sha256) for run in runs]
        _sweep(target, keep=parts[-1])
        _check_space(runs, target.parent)
        ahead = None
        if stream.NUMPY and len(chain) > 1:  # nothing else goes on beside a thread
            from neural_diff.ahead import worker

            ahead = opened.enter_context(worker())
        done, total = 0, sum(link.patch.to_size for link in chain)
        for run, part in zip(runs, parts, strict=True):
            work, part = opened.enter_context(_new_file(part))
            os.fchmod(work.fileno(), mode)
            before = done
            for done in write_new(source, run, work, base, back, ahead):
                if progress:
                    progress(before + done, total)
            source, base = work, part
        work.flush()
        os.fsync(work.fileno())
        part.replace(target)
        fsync_directory(target.parent)
    last = chain[-1].patch
    return Applied(last.to_size, last.to_sha256)


def write_new(
    source: BinaryIO,
    run: Sequence[Link],
    work: BinaryIO,
    base: Path,
    back: bool,
    ahead: "Begin | None" = None,
) -> Iterator[int]:
    """Makes a new file of an old one by patches that can be fused; gives the bytes done."""
    first, last = run[0].patch, run[-1].patch
    start, new = (0, hashlib.sha256()) if back or len(run) > 1 else _resumed(work, last)
    work.truncate(start)
    work.seek(start)
    old = hashlib.sha256()
    try:
        if first.moves:
            check_base(sha256_of(source), first, base)
            take = stream.taken_from(stream.moved(source, first.moves))
        else:
            source.seek(0)
            take = _hashing(source, old)
        for link in run:
            changes = stream.Changes(link.patch, link.file, str(link.path), back=back, ahead=ahead)
            prefix = new if link is run[-1] else None
            made = stream.stage(link.patch, changes, take, prefix, start)
            take = stream.taken_from(made)
        done, total = start, sum(link.patch.to_size for link in run)
        for piece in made:
            work.write(piece)
            done += len(piece)
            yield total * done // last.to_size
        if new.hexdigest() != last.to_sha256:
            raise Corrupt(f"{run[-1].path}: the result is not the file that the patch promises")
    except NeuralDiffError:
        # Of a wrong base any section may say something else; the base's own digest decides.
        _check_rest(source, old, first, base)
        raise
    _check_rest(source, old, first, base)


def _resumed(work: BinaryIO, patch: Patch) -> tuple[int, "Hash"]:
    """Gives how much of a file that a power cut left is right, by its sections' digests."""
    digest, good = hashlib.sha256(), (0, hashlib.sha256())
    for piece in stream.pieces_of(patch) if work.seek(0, os.SEEK_END) else ():
        work.seek(piece.offset)
        digest.update(work.read(piece.length))
        ended = list(stream.ended(patch, piece))
        # A section that looks at old values has counted them, one with a digest of its own has
        # seen them: neither can begin in its middle.
        going_on = [patch.sections[n] for n, _ in piece.work if n not in ended]
        if any(section.looks or section.result_sha256 for section in going_on):
            continue
        if any(patch.sections[n].prefix_sha256 == digest.hexdigest() for n in ended):
            good = (piece.offset + piece.length, digest.copy())
    return good


def _hashing(source: BinaryIO, digest: "Hash") -> stream.Take:
    def take(count: int) -> bytearray:
        held = bytearray(count)
        if source.readinto(held) != count:  # type: ignore[attr-defined]
            raise WrongBase(f"{source.name}: became shorter while it was read")
        digest.update(held)
        return held

    return take


def _check_rest(source: BinaryIO, digest: "Hash", patch: Patch, base: Path) -> None:
    """Reads what is left of the base, and compares it as a whole."""
    if patch.moves:
        return
    while chunk := source.read(COPY_BYTES):
        digest.update(chunk)
    check_base(digest.hexdigest(), patch, base)


def _check_space(runs: Sequence[Sequence[Link]], directory: Path) -> None:
    need = sum(run[-1].patch.to_size for run in runs)
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free < need:
        raise OSError(errno.ENOSPC, f"{need} bytes are needed and {free} free", str(directory))


def _sweep(target: Path, keep: Path) -> None:
    """Removes what runs for this target have left that a power cut ended, but for one file.

    A run that still goes on holds a lock on its file, which is then left alone.
    """
    ours = re.compile(re.escape(_part_prefix(target)) + r"[0-9a-f]{16}\.part")
    for path in target.parent.iterdir():
        if not ours.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        # Whoever ended between the two looks at the directory has removed its own.
        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as left:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path != keep:
                path.unlink()


def _part_prefix(target: Path) -> str:
    return f".{target.name[:100]}."


def _part(target: Path, digits: str) -> Path:
    return target.parent / f"{_part_prefix(target)}{digits[:16]}.part"


@contextlib.contextmanager
def _new_file(part: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Opens a file to work in, and removes it at the end if it is still there.

    It is `part`, new or as a power cut left it, or another one if somebody else works in that.
    """
    work = _own(part)
    if work is None:
        part = part.with_name(f"{part.name[:-21]}{os.urandom(8).hex()}.part")
        work = part.open("x+b")
        fcntl.flock(work, fcntl.LOCK_EX)
    try:
        yield work, part
    finally:
        part.unlink(missing_ok=True)
        work.close()


def _own(part: Path) -> BinaryIO | None:
    """Opens and locks a regular file that nobody else works in, or gives None."""
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except (IsADirectoryError, FileExistsError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise
    work = os.fdopen(descriptor, "r+b")
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(work, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who held the lock until now may have put the file into its target's place.
        if part.stat().st_ino == os.fstat(descriptor).st_ino:
            return work
    work.close()
    return None


def fsync_directory(directory: Path) -> None:
    """Puts the names of a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
