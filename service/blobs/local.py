"""Artifacts in one folder, each a read-only file named by its digest.

An upload grows under a random name beside them and is linked to its digest when it is whole and
on the disk. No symbolic link in the folder is followed.
"""

import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from service.blobs.store import Blobs, checked

UNFINISHED = ".unfinished"  # the suffix of what is not yet checked
UNFINISHED_AGE_S_MAX = 86_400  # what a killed process left goes after a day


class LocalBlobs(Blobs):
    """A store in a folder, which is made if absent; see `Blobs` for each method."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"*{UNFINISHED}"):
            with suppress(FileNotFoundError):  # an upload that ended just now
                if time.time() - left.lstat().st_mtime > UNFINISHED_AGE_S_MAX:
                    left.unlink()

    def size(self, sha256: str) -> int | None:
        """Return the size in bytes, None if there is no such artifact."""
        try:
            with self.open(sha256) as file:
                return os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return None

    @contextmanager
    def open(self, sha256: str) -> Iterator[IO[bytes]]:
        """Yield the artifact as a file; raises `FileNotFoundError` if it is absent."""
        # Not to block is for a pipe that somebody put there, which nobody would ever write to.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(self.folder / checked(sha256), flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(f"artifact {sha256} is not a regular file")
            yield file

    def path(self, sha256: str) -> Path | None:
        """Return the local file, None if it is absent."""
        return None if self.size(sha256) is None else self.folder / sha256

    def delete(self, sha256: str) -> None:
        """Remove an artifact; whoever reads it just now reads it to its end."""
        (self.folder / checked(sha256)).unlink(missing_ok=True)

    def ready(self) -> None:
        """Write and remove an empty file."""
        with self._spool():
            pass

    @contextmanager
    def _spool(self) -> Iterator[IO[bytes]]:
        path = self.folder / (secrets.token_hex(16) + UNFINISHED)
        with open(path, "x+b", opener=_read_only) as file:
            try:
                yield file
            finally:
                path.unlink()

    def _keep(self, file: IO[bytes], sha256: str) -> bool:
        file.flush()
        os.fsync(file.fileno())
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # A link, unlike a rename, never replaces: the first of many racers wins.
            os.link(file.name, self.folder / sha256)
        except FileExistsError:
            return False
        finally:
            os.fsync(folder)
            os.close(folder)
        return True


def _read_only(path: str, flags: int) -> int:
    """Make a file that nobody, once this descriptor is closed, can write to."""
    return os.open(path, flags, 0o444)
