"""Files that are whole after a power cut, and the two slots: one is active, the other spare.

    current -> slots/a
    slots/a/  model   components/tokenizer.json …   components.sha256
    slots/b/  likewise

`current` is the only thing that says which slot is active; it is replaced in one rename, so a
power cut finds it pointing at one whole slot or at the other. What a slot holds is asked of its
bytes, and only of files that really are some. `components.sha256` lists what must lie beside the
model; a slot in which that is not so never has the digest of its model. The engine opens
`current/model` and what lies in `current/components`.
"""

import errno
import os
import shutil
from collections.abc import Iterable
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import BinaryIO

from device_agent.errors import Rejected
from neural_diff.errors import WrongBase
from neural_diff.link import open_regular, sha256_of
from trust.roles import Component

COMPONENTS, LIST = "components", "components.sha256"
FULL = (errno.ENOSPC, errno.EDQUOT)


def tell_if_full(error: OSError, folder: Path) -> None:
    """Let the error of a full disk say where that is, how much is free there, and what to do."""
    if error.errno in FULL and "make room" not in str(error):
        error.filename = error.filename or str(folder)
        free = shutil.disk_usage(folder).free
        error.strerror = f"{error.strerror}, {free} bytes are free; make room there"


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


def list_of(components: Iterable[Component]) -> bytes:
    """Return the list of components, in the form that `sha256sum --check` reads."""
    return "".join(sorted(f"{part.sha256}  {part.name}\n" for part in components)).encode()


def wanted_in(slot: Path) -> bytes:
    """Return the list of what must lie beside the model of a slot."""
    file = slot / LIST
    return file.read_bytes() if file.exists() else b""


def hash_slot(slot: Path) -> str:
    """Return the digest of a slot's model, or one of nothing that exists if a component is amiss.

    Raises:
        Rejected: E_BASE if anything in it is no regular file.
    """
    model, files = hash_file(slot / "model"), (slot / COMPONENTS).glob("*")
    there = list_of(Component(p.name, hash_file(p), p.stat().st_size) for p in files)
    whole = there == wanted_in(slot)
    return model if whole else new_sha256(model.encode() + there).hexdigest()


class Slots:
    """The models of a device, each with its components."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._current = folder / "current"
        self.active = self._current / "model"  # not there before the first model
        for name in ("a", "b"):
            (folder / "slots" / name).mkdir(parents=True, exist_ok=True)
        self._known: tuple[list[tuple[int, int, int, int]], str] = [], ""

    @property
    def spare(self) -> Path:
        """The model file that may be written."""
        on_a = os.path.lexists(self._current) and self._current.readlink().name == "a"
        return self._folder / "slots" / ("b" if on_a else "a") / "model"

    def active_sha256(self, *, fresh: bool) -> str:
        """Return the digest of the active slot, or empty if it has no model.

        Args:
            fresh: read it now; otherwise a digest of the same inodes, sizes and times will do.
        """
        if not os.path.lexists(self.active):
            return ""
        found = [path.lstat() for path in sorted(self._current.rglob("*"))]
        identity = [(f.st_dev, f.st_ino, f.st_size, f.st_mtime_ns) for f in found]
        if fresh or self._known[0] != identity:
            self._known = identity, hash_slot(self._current)
        return self._known[1]

    def spare_sha256(self) -> str:
        """Return the digest of the spare slot, read now, or empty if it has no model."""
        return hash_slot(self.spare.parent) if self.spare.is_file() else ""

    def spare_holds(self, sha256: str, components: Iterable[Component]) -> bool:
        """Whether the spare slot, read now, is this model with exactly these components."""
        listed = wanted_in(self.spare.parent) == list_of(components)
        return listed and self.spare_sha256() == sha256

    def held(self) -> dict[str, Path]:
        """Return the components of both slots by their digests, read now."""
        return {hash_file(p): p for p in self._folder.glob(f"slots/*/{COMPONENTS}/*")}

    def prepare(self, components: Iterable[Component], source: Path) -> None:
        """Put components, which lie in `source` by their digests, into the spare slot.

        The model that was there is gone before any of them is, and the new one comes last: no
        power cut leaves a model beside the components of another.
        """
        slot = self.spare.parent
        self.spare.unlink(missing_ok=True)
        sync(slot)
        if (slot / COMPONENTS).exists():
            shutil.rmtree(slot / COMPONENTS)
        (slot / COMPONENTS).mkdir()
        for component in components:
            os.link(source / component.sha256, slot / COMPONENTS / component.name)
        sync(slot / COMPONENTS)
        write_durably(slot / LIST, list_of(components))

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
