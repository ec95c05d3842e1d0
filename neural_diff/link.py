"""The files that an application begins with: patches that fit together, and their base.

Every file is opened once, and only if it is a regular one; what is checked is what is used.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

from neural_diff import limits
from neural_diff.errors import Corrupt, Malformed, NeuralDiffError, WrongBase
from neural_diff.patch import Patch, read_patch

COPY_BYTES = 1 << 17


class Link(NamedTuple):
    """One patch of a chain, open."""

    patch: Patch
    file: BinaryIO
    path: Path


def open_regular(path: Path, error: type[NeuralDiffError], *, write: bool = False) -> BinaryIO:
    """Opens a regular file; raises `error` for a link, pipe, device or directory."""
    access = os.O_RDWR if write else os.O_RDONLY
    try:
        descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as failure:
        if failure.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise error(f"{path}: is a link or no regular file; give the file itself") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path}: is no regular file")
    return os.fdopen(descriptor, "r+b" if write else "rb")


def sha256_of(file: BinaryIO) -> str:
    """Gives the SHA-256 of a whole open file, in hexadecimal."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(COPY_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def open_link(opened: ExitStack, path: Path, *, back: bool = False) -> Link:
    """Opens and reads a patch; compares every payload with its digest.

    Raises:
        Malformed, Corrupt: as `read_patch`, or a payload does not have its digest.
        Unsuitable: the patch does not go back.
    """
    file = opened.enter_context(open_regular(path, Malformed))
    try:
        patch = read_patch(file, os.fstat(file.fileno()).st_size)
        for number in damaged(patch, file):
            raise Corrupt(f"section {number}: its bytes do not have their digest; fetch it again")
        patch = patch.back if back else patch
    except NeuralDiffError as error:
        raise type(error)(f"{path}: {error}") from None
    return Link(patch, file, path)


def damaged(patch: Patch, file: BinaryIO) -> Iterator[int]:
    """Gives the sections whose bytes in the patch file are not those that were made.

    Only these need to be fetched again: their `offset` and `payload_bytes` say which bytes.
    """
    for number, section in enumerate(patch.sections):
        file.seek(section.offset)
        digest, left = hashlib.sha256(), section.payload_bytes
        while chunk := file.read(min(left, COPY_BYTES)):
            digest.update(chunk)
            left -= len(chunk)
        if digest.hexdigest() != section.payload_sha256:
            yield number


def check_chain(chain: Sequence[Link]) -> None:
    """Refuses a chain of no patches or too many, or whose patches do not fit together."""
    if not 1 <= len(chain) <= limits.CHAIN_PATCHES_MAX:
        found = f"{len(chain)} patches were" if chain else "no patch was"
        raise Malformed(f"{found} given; a chain has 1 to {limits.CHAIN_PATCHES_MAX}")
    for before, after in pairwise(chain):
        made = before.patch.to_size, before.patch.to_sha256
        if made != (after.patch.from_size, after.patch.from_sha256):
            raise WrongBase(f"{after.path}: was not made for the result of the patch before it")


def fused(chain: Sequence[Link]) -> Iterator[Sequence[Link]]:
    """Cuts a chain before every patch that moves bytes."""
    cuts = [0, *(n for n, link in enumerate(chain) if n and link.patch.moves), len(chain)]
    return (chain[start:end] for start, end in pairwise(cuts))


def check_size(source: BinaryIO, patch: Patch, base: Path) -> None:
    """Raises WrongBase unless an open file has the size of the patch's base."""
    size = os.fstat(source.fileno()).st_size
    if size != patch.from_size:
        raise WrongBase(f"{base}: has {size} bytes, the patch was made for {patch.from_size}")


def check_base(found: str, patch: Patch, base: Path) -> None:
    """Raises WrongBase unless a digest is that of the patch's base."""
    if found != patch.from_sha256:
        raise WrongBase(f"{base}: SHA-256 {found}, the patch was made for {patch.from_sha256}")
