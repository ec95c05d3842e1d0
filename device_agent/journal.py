"""What survives a power cut: small documents, and the state that a device is in.

A `Record` is one JSON document in two files that are written in turn, each with a checksum and a
generation. A torn write hits the older one, so the newer one is always whole. The `Journal` is a
record of the cycle's state that counts: an attempt that is saved or resumed too often is ended,
so that a release that crashes the agent cannot do so for ever.
"""

import json
import os
from dataclasses import asdict
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

from device_agent.errors import Misconfigured
from device_agent.plan import read_plan
from device_agent.states import Idle, State, give_up


class Journal:
    """The saved state of the cycle."""

    def __init__(self, path: Path, saves_max: int) -> None:
        self._record = Record(path)
        self._saves_max = saves_max

    def peek(self) -> State:
        """Return the saved state without entering it."""
        document = self._record.document
        return Idle() if document is None else decode(document["state"])

    def resume(self) -> State:
        """Return the state to go on with; entering it again is counted."""
        state = self.peek()
        return state if isinstance(state, Idle) else self.save(state)

    def save(self, state: State) -> State:
        """Save a state before it is entered, and return it, or the one that ends the attempt."""
        saves = 0 if self._record.document is None else int(self._record.document["saves"])
        saves = 0 if isinstance(state, Idle) else saves + 1
        if saves > self._saves_max:
            state, saves = give_up(state, "E_STATE_LOOP"), 0
        self._record.save({"saves": saves, "state": encode(state)})
        return state


class Record:
    """One JSON document, whole after any power cut.

    Attributes:
        document: what was saved last, or None.

    Raises:
        Misconfigured: both files are damaged, which no power cut does.
    """

    def __init__(self, path: Path) -> None:
        self._files = (path.with_name(f"{path.name}.0"), path.with_name(f"{path.name}.1"))
        found = [_read(file) for file in self._files if file.exists()]
        whole = [entry for entry in found if entry is not None]
        # A single torn file is a first save that never ended.
        if len(found) == 2 and not whole:
            raise Misconfigured(f"{path}.0 and .1 are both damaged; restore or re-enroll")
        newest: tuple[int, dict[str, Any] | None] = max(whole, key=itemgetter(0), default=(0, None))
        self._generation, self.document = newest

    def save(self, document: dict[str, Any]) -> None:
        """Replace the document."""
        generation = self._generation + 1
        body = json.dumps({"generation": generation, "document": document}).encode()
        file = self._files[generation % 2]
        with file.open("wb") as stream:
            stream.write(sha256(body).hexdigest().encode() + b"\n" + body)
            stream.flush()
            os.fsync(stream.fileno())
        if generation <= 2:
            sync_folder(file.parent)
        self._generation, self.document = generation, document


def encode(state: State) -> dict[str, Any]:
    """Return a state as plain JSON values."""
    return {"name": type(state).__name__, **asdict(state)}


def decode(document: dict[str, Any]) -> State:
    """Return the state that `encode` wrote."""
    kind = next(kind for kind in get_args(State) if kind.__name__ == document["name"])
    values = {name: value for name, value in document.items() if name != "name"}
    if "plan" in values:
        values["plan"] = read_plan(values["plan"])
    state: State = kind(**values)
    return state


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file at once: after a power cut it is the old one or the new one."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(file: Path) -> tuple[int, dict[str, Any]] | None:
    digest, _, body = file.read_bytes().partition(b"\n")
    if sha256(body).hexdigest().encode() != digest:
        return None
    entry = json.loads(body)
    return entry["generation"], entry["document"]
