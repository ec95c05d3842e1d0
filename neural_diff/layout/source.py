"""The bytes of a model file, read with no offset and no length trusted.

Every number read counts, so a file that says its header has 2^60 entries, or whose offsets go in
circles, comes to an end within seconds: at the end of the file, or at the limit.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neural_diff.errors import Malformed

READS_MAX = 1 << 22  # numbers in the header of one file; a vocabulary in GGUF has a million
DIMENSIONS_MAX = 64
NESTING_MAX = 64  # a message within a message, an array within an array


class Source:
    """A file open for reading, and how much of its header has been read."""

    def __init__(self, path: Path, held: bytes | mmap.mmap) -> None:
        self.path, self.size = path, len(held)
        self._held, self._reads = held, 0

    def bytes_at(self, start: int, length: int, what: str) -> bytes:
        """Gives bytes of the file; `what` is what they are called in a refusal."""
        self._reads += 1
        if self._reads > READS_MAX:
            raise self.broken(f"its header says more than {READS_MAX} things", start)
        if not 0 <= start <= start + length <= self.size:
            raise self.broken(f"{what} of {length} bytes does not lie in {self.size} bytes", start)
        return self._held[start : start + length]

    def number(self, start: int, length: int, what: str) -> int:
        """Gives an unsigned little-endian integer of `length` bytes."""
        return int.from_bytes(self.bytes_at(start, length, what), "little")

    def broken(self, what: str, where: int) -> Malformed:
        """Makes the refusal of a file that begins well and is broken."""
        return Malformed(f"{self.path}: byte {where}: {what}; fetch or export the model again")


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Opens a file as a source, its bytes read when they are looked at."""
    with path.open("rb") as file:
        if not file.read(1):
            yield Source(path, b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            yield Source(path, held)
