"""Files that are whole after a power cut, and the two slots: one is active, the other spare.

    slots/a/model   slots/b/model   current -> slots/a

`current` is the only thing that says which slot is active; it is replaced in one rename, so a
power cut finds it pointing at one whole slot or at the other. What a slot holds is asked of its
bytes, and only of a file that really is one. The engine opens `current/model`.
"""

import os
from pathlib import Path
from typing import BinaryIO

from device_agent.errors import Rejected
from neural_diff.errors import WrongBase
from neural_diff.link import open_regular, sha256_of


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file at once: after a power cut it is the old one or the new one."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode, exist_ok=False)
    temporary.write_bytes(data)
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
    with open_file(path) as stream:
        return sha256_of(stream)


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading, if it is one; a pipe would block and a link lead elsewhere.

    Raises:
        Rejected: E_BASE.
    """
    try:
        return open_regular(path, WrongBase)
    except WrongBase as error:
        raise Rejected("E_BASE", f"{path} is not a regular file") from error


class Slots:
    """The model files of a device."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._current = folder / "current"
        self.active = self._current / "model"  # not there before the first model
        for name in ("a", "b"):
            (folder / "slots" / name).mkdir(parents=True, exist_ok=True)
        self._known: tuple[tuple[int, ...], str] = (), ""

    @property
    def spare(self) -> Path:
        """The model file that may be written."""
        on_a = os.path.lexists(self._current) and self._current.readlink().name == "a"
        return self._folder / "slots" / ("b" if on_a else "a") / "model"

    def active_sha256(self, *, fresh: bool) -> str:
        """Return the digest of the active model file, or empty if there is none.

        Args:
            fresh: read the file now; otherwise a digest of the same inode, size and time will do.
        """
        if not os.path.lexists(self.active):
            return ""
        found = self.active.lstat()
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if fresh or self._known[0] != identity:
            self._known = identity, hash_file(self.active)
        return self._known[1]

    def spare_sha256(self) -> str:
        """Return the digest of the spare model file, read now, or empty if there is none."""
        return hash_file(self.spare) if self.spare.is_file() else ""

    def try_link(self) -> Path:
        """Make the link to the spare slot that `activate` puts in the place of `current`."""
        link = self._folder / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(self.spare.parent.relative_to(self._folder))
        return link

    def activate(self, sha256: str, refusal: str) -> None:
        """Make the slot that holds these bytes, read now, the active one; empty means no model.

        Raises:
            Rejected: with the code `refusal` if neither slot holds them.
        """
        if sha256 and self.spare_sha256() != sha256:
            if self.active_sha256(fresh=True) != sha256:
                raise Rejected(refusal, f"neither slot holds {sha256[:12]}")
        elif sha256:
            self.try_link().replace(self._current)
        else:
            self._current.unlink(missing_ok=True)
        sync(self._folder)
