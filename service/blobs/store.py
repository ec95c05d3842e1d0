"""What a store of artifacts can do, and the one way in that every store shares."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

_DIGEST = re.compile(r"[0-9a-f]{64}")


class WrongDigest(Exception):
    """The bytes are not what their name says."""


class WrongLength(Exception):
    """There are more or fewer bytes than were announced."""


class NotADigest(ValueError):
    """The name is no SHA-256 of 64 lower-case hexadecimal digits."""


class Unavailable(OSError):
    """The object store does not answer, or refuses this server."""


class Blobs(ABC):
    """A store of immutable artifacts; each method raises `NotADigest` on any other name."""

    def put(self, chunks: Iterable[bytes], sha256: str, bytes_expected: int) -> bool:
        """Store a body; True if it is new, False (and nothing is read) if it was there.

        Racing uploads of one artifact all succeed and leave one; on S3 several may answer True.

        Raises:
            WrongDigest: the body is not what `sha256` says; nothing is left behind.
            WrongLength: the body, or what is stored already, has not `bytes_expected` bytes.
            OSError: the store failed; nothing is left behind.
        """
        found = self.size(sha256)
        if found is None:
            with self._spool() as file:
                receive(chunks, file, sha256, bytes_expected)
                return self._keep(file, sha256)
        if found != bytes_expected:
            raise WrongLength(f"{sha256} is stored with {found} bytes, not {bytes_expected}")
        return False

    @abstractmethod
    def size(self, sha256: str) -> int | None:
        """Return the size in bytes, None if there is no such artifact."""

    @abstractmethod
    def open(self, sha256: str) -> AbstractContextManager[IO[bytes]]:
        """Yield the artifact as a seekable file; raises `FileNotFoundError` if it is absent."""

    def path(self, sha256: str) -> Path | None:
        """Return the local file; None if it is absent or the store is not local."""
        checked(sha256)
        return None

    def url(self, sha256: str, expires_s: int) -> str | None:
        """Return a secret URL, valid for `expires_s`; None if local.

        Nobody is asked whether the artifact exists.
        """
        checked(sha256)
        return None

    @abstractmethod
    def delete(self, sha256: str) -> None:
        """Remove an artifact; one that is absent is removed already."""

    @abstractmethod
    def ready(self) -> None:
        """Raise an `OSError` that says why, if the store cannot be used."""

    @abstractmethod
    def _spool(self) -> AbstractContextManager[IO[bytes]]:
        """Yield a file for a body not yet checked, which is gone at the end of the block."""

    @abstractmethod
    def _keep(self, file: IO[bytes], sha256: str) -> bool:
        """Make a checked body visible under its name in one step; True if it is new."""


def checked(sha256: str) -> str:
    """Return the name if it may become a path or a key; raise `NotADigest` if not."""
    if not _DIGEST.fullmatch(sha256):
        raise NotADigest("an artifact is named by 64 lower-case hexadecimal digits (SHA-256)")
    return sha256


def receive(chunks: Iterable[bytes], file: IO[bytes], sha256: str, bytes_expected: int) -> None:
    """Write a body to a file and rewind it, counting and hashing; stop at the first byte too many.

    Raises:
        WrongDigest: the body is not what `sha256` says.
        WrongLength: the body has not `bytes_expected` bytes.
    """
    digest, count = hashlib.sha256(), 0
    for chunk in chunks:
        count += len(chunk)
        if count > bytes_expected:
            raise WrongLength(f"the body is longer than the {bytes_expected} bytes announced")
        digest.update(chunk)
        file.write(chunk)
    if count < bytes_expected:
        raise WrongLength(f"the body ended after {count} of {bytes_expected} bytes")
    if digest.hexdigest() != sha256:
        raise WrongDigest(f"the body hashes to {digest.hexdigest()}, not to {sha256}")
    file.seek(0)
