"""Two slots, a and b: one is active, the other spare.

    slots/a/model  slots/a/mark.json  slots/b/…      current -> slots/a

`current` is the only thing that says which slot is active; it is replaced in one rename, so a
power cut finds it pointing at one whole slot or at the other. A mark says whether a slot's bytes
are on trial or good. The engine opens `current/model`.
"""

import errno
import json
import os
import shutil
import stat
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from device_agent.errors import Rejected
from device_agent.journal import sync_folder, write_durably

NAMES = ("a", "b")
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Mark:
    """What a slot was last filled with, and whether that proved itself."""

    sha256: str = ""
    release: str = ""
    good: bool = False


class Slots:
    """The model files of a device."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._current = folder / "current"
        for name in NAMES:
            (folder / "slots" / name).mkdir(parents=True, exist_ok=True)
        self._known: tuple[tuple[int, int, int, int], str] | None = None

    @property
    def active(self) -> str | None:
        """The name of the active slot, or None before the first model."""
        try:
            name = self._current.readlink().name
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Rejected("E_BASE", f"{self._current} is not a symbolic link") from error
        return name

    @property
    def spare(self) -> str:
        """The name of the slot that may be written."""
        return "b" if self.active == "a" else "a"

    def file(self, name: str) -> Path:
        """Return the path of a slot's model file."""
        return self._folder / "slots" / name / "model"

    def active_file(self) -> Path | None:
        """Return the active model file, or None before the first model."""
        return self.file(self.active) if self.active else None

    def active_sha256(self, *, fresh: bool) -> str:
        """Return the digest of the active model file, or empty if there is none.

        Args:
            fresh: read the file now; otherwise a digest of the same inode, size and time will do.
        """
        path = self.active_file()
        if path is None or not os.path.lexists(path):
            return ""
        found = path.lstat()
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if fresh or self._known is None or self._known[0] != identity:
            self._known = identity, hash_file(path)
        return self._known[1]

    def spare_holds(self, digest: str) -> bool:
        """Return whether the spare slot's bytes, read now, have this digest."""
        path = self.file(self.spare)
        return path.is_file() and hash_file(path) == digest

    def clear_spare(self) -> Path:
        """Empty the spare slot and return the path to write to."""
        path = self.file(self.spare)
        (path.parent / "mark.json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return path

    def switch(self) -> None:
        """Make the spare slot the active one, at once."""
        link = self._folder / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("slots") / self.spare)
        link.replace(self._current)
        sync_folder(self._folder)
        self._known = None

    def empty(self) -> None:
        """Leave the device without an active model, as before its first."""
        self._current.unlink(missing_ok=True)
        sync_folder(self._folder)
        self._known = None

    def mark(self, name: str) -> Mark:
        """Return what is known of a slot; nothing if it was never marked."""
        path = self.file(name).parent / "mark.json"
        return Mark(**json.loads(path.read_bytes())) if path.exists() else Mark()

    def set_mark(self, name: str, mark: Mark) -> None:
        """Replace a slot's mark."""
        path = self.file(name).parent / "mark.json"
        write_durably(path, json.dumps(asdict(mark)).encode())

    def require_space(self, needed: int) -> None:
        """Refuse if the disk has fewer bytes free than an update needs.

        Raises:
            Rejected: E_SPACE.
        """
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise Rejected("E_SPACE", f"{needed} bytes are needed and {free} are free")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a regular file.

    Raises:
        Rejected: E_BASE if it is a link, a pipe, a device or a folder.
        OSError: it cannot be read.
    """
    with open_regular(path) as stream:
        digest = sha256()
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


def copy_durably(source: Path, target: Path) -> str:
    """Copy a regular file, make it durable and return its SHA-256."""
    digest = sha256()
    with open_regular(source) as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    sync_folder(target.parent)
    return digest.hexdigest()
