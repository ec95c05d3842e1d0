"""Artifacts in a folder, as `ab/cd/abcd…`.

Every file is reached by descriptors, folder by folder, and no symbolic link below the store's own
folder is followed. An upload grows under a random name in `incoming` and is linked to its digest
when it is whole and on the disk.
"""

import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from service.blobs.store import check_digest, is_stored, receive

UNFINISHED_AGE_S_MAX = 86_400  # what a killed process left in `incoming` goes after a day

_INCOMING = "incoming"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OLD_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NEW_FILE = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL


class LocalBlobs:
    """A store in a folder, which is made if absent; see `Blobs` for each method."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        (self.folder / _INCOMING).mkdir(parents=True, exist_ok=True)
        with self._opened(_INCOMING) as incoming, os.scandir(incoming) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # an upload that ended just now
                    age_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
                    if age_s > UNFINISHED_AGE_S_MAX:
                        os.unlink(entry.name, dir_fd=incoming)

    def __repr__(self) -> str:
        return f"LocalBlobs({str(self.folder)!r})"

    def put(self, chunks: Iterable[bytes], sha256: str, bytes_expected: int) -> bool:
        """Store a body; True if it is new."""
        if is_stored(self, sha256, bytes_expected):
            return False
        with self._new_file() as (file, incoming, name):
            receive(chunks, file, sha256, bytes_expected)
            file.flush()
            os.fsync(file.fileno())
            with self._opened(sha256[:2], sha256[2:4], make=True) as shelf:
                try:
                    # A link, unlike a rename, never replaces: the first of many racers wins.
                    os.link(name, sha256, src_dir_fd=incoming, dst_dir_fd=shelf)
                except FileExistsError:
                    return False
                finally:
                    os.fsync(shelf)
        return True

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
        check_digest(sha256)
        with self._opened(sha256[:2], sha256[2:4]) as shelf:
            descriptor = os.open(sha256, _OLD_FILE, dir_fd=shelf)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"artifact {sha256} is not a regular file")
            yield file

    def path(self, sha256: str) -> Path | None:
        """Return the local file, None if it is absent."""
        found = self.size(sha256) is not None
        return self.folder / sha256[:2] / sha256[2:4] / sha256 if found else None

    def url(self, sha256: str, expires_s: int) -> str | None:
        """Return None: a folder has no URLs."""
        check_digest(sha256)
        return None

    def ready(self) -> None:
        """Write and remove an empty file."""
        with self._new_file():
            pass

    @contextmanager
    def _new_file(self) -> Iterator[tuple[IO[bytes], int, str]]:
        name = secrets.token_hex(16)
        with self._opened(_INCOMING) as incoming:
            descriptor = os.open(name, _NEW_FILE, 0o444, dir_fd=incoming)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    yield file, incoming, name
            finally:
                os.unlink(name, dir_fd=incoming)

    @contextmanager
    def _opened(self, *names: str, make: bool = False) -> Iterator[int]:
        here = os.open(self.folder, _FOLDER)
        try:
            for name in names:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, dir_fd=here)
                        os.fsync(here)
                inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
                os.close(here)
                here = inner
            yield here
        finally:
            os.close(here)
