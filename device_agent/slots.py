"""Two slots, a and b: one is active, the other spare.

    slots/a/model   slots/b/model   current -> slots/a

`current` is the only thing that says which slot is active; it is replaced in one rename, so a
power cut finds it pointing at one whole slot or at the other. What a slot holds is asked of its
bytes. The engine opens `current/model`.
"""

import os
from pathlib import Path

from device_agent.disk import hash_file, sync


class Slots:
    """The model files of a device."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._current = folder / "current"
        for name in ("a", "b"):
            (folder / "slots" / name).mkdir(parents=True, exist_ok=True)
        self._known: tuple[tuple[int, int, int, int], str] | None = None

    @property
    def active(self) -> Path | None:
        """The active model file, or None before the first model."""
        link = self._current
        return self._file(link.readlink().name) if os.path.lexists(link) else None

    @property
    def spare(self) -> Path:
        """The model file that may be written."""
        return self._file("b" if self.active == self._file("a") else "a")

    def active_sha256(self, *, fresh: bool) -> str:
        """Return the digest of the active model file, or empty if there is none.

        Args:
            fresh: read the file now; otherwise a digest of the same inode, size and time will do.
        """
        path = self.active
        if path is None or not os.path.lexists(path):
            return ""
        found = path.lstat()
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if fresh or self._known is None or self._known[0] != identity:
            self._known = identity, hash_file(path)
        return self._known[1]

    def spare_sha256(self) -> str:
        """Return the digest of the spare model file, read now, or empty if there is none."""
        return hash_file(self.spare) if self.spare.is_file() else ""

    def switch(self) -> None:
        """Make the spare slot the active one, at once."""
        link = self._folder / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("slots") / self.spare.parent.name)
        link.replace(self._current)
        sync(self._folder)

    def empty(self) -> None:
        """Leave the device without an active model, as before its first."""
        self._current.unlink(missing_ok=True)
        sync(self._folder)

    def _file(self, name: str) -> Path:
        return self._folder / "slots" / name / "model"
