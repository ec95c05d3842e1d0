"""Files named by their SHA-256: hashing, uploading, downloading."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from release_manager import show
from release_manager.client import Client
from release_manager.errors import Refused

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """A local file and what names it."""

    path: Path
    sha256: str
    bytes: int


def hash_file(path: Path) -> Artifact:
    """Read a file once and return its digest and size.

    Raises:
        Refused: it is empty.
        OSError: it cannot be read.
    """
    digest, done = sha256(), 0
    with path.open("rb") as file, show.progress(f"hashing {path.name}") as report:
        size = path.stat().st_size
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            report(done, max(size, done))
    if not done:
        raise Refused(f"{path} is empty", "give the file that was meant")
    return Artifact(path, digest.hexdigest(), done)


def upload(client: Client, artifact: Artifact) -> None:
    """Upload a file unless the server has it."""
    where = f"/v1/artifacts/{artifact.sha256}"
    if client.exists(where):
        return
    with show.progress(f"uploading {artifact.path.name}") as report:
        client.upload(where, artifact.path, report)


def download(client: Client, digest: str, target: Path) -> bool:
    """Download an artifact to `target`; False if the server does not have it.

    Raises:
        Refused: the bytes are not those that the digest names.
    """
    where = f"/v1/artifacts/{digest}"
    if not client.exists(where):
        return False
    with show.progress(f"downloading {digest[:12]}") as report:
        client.download(where, target, report)
    if hash_file(target).sha256 != digest:
        raise Refused(
            f"the server sent other bytes for {digest}",
            "the server's store is damaged or somebody is in between; do not publish until cleared",
        )
    return True
