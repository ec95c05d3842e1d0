"""Files that are whole after a power cut, and files that are really files."""

import errno
import os
import stat
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from device_agent.errors import Rejected

CHUNK_BYTES = 1 << 20


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file at once: after a power cut it is the old one or the new one."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
        stream.write(data)
    settle(temporary, path)


def settle(finished: Path, path: Path) -> None:
    """Give a finished file its name, durably."""
    sync(finished)
    finished.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a regular file.

    Raises:
        Rejected: E_BASE if it is a link, a pipe, a device or a folder.
        OSError: it cannot be read.
    """
    digest = sha256()
    with open_regular(path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, if it is one; a pipe would block and a link lead elsewhere.

    Raises:
        Rejected: E_BASE.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise Rejected("E_BASE", f"{path} is not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Rejected("E_BASE", f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")
