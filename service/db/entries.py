"""What devices were told last, in memory, for as long as nothing changed that could change it.

A poll that asks the same again is answered from here and reaches no database. What makes an entry
stale is told by scope: one device, one model, or everything. It is told before a transaction
commits and again after it, and while one is at it nothing is kept: no answer is ever given from
an entry that a committed change of this process made stale. Changes of other processes are heard
of by `service.db.changes.watch`; without news from it, no entry is used.
"""

import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from threading import Lock
from typing import NamedTuple

EVERYTHING = "*"
HEARD_S_MAX = 5.0  # without a word on what others changed: then the database is asked


def of_device(device_id: str) -> str:
    """Return the scope of what only one device's answer depends on."""
    return f"device {device_id}"


def of_model(model: str) -> str:
    """Return the scope of what the answers to all devices of a model depend on."""
    return f"model {model}"


class Entry(NamedTuple):
    """One device's last answer, which was "nothing changed".

    Attributes:
        asked: digest of the whole question: credential, parameters, ETag.
        model: what the device runs.
        certificate: without which it is not the device, if there is one.
        until: when time alone changes the answer.
        after_s: when it is to come again, before jitter.
    """

    asked: bytes
    model: str
    certificate: str | None
    until: datetime
    after_s: float


class Entries:
    """Entries by device, the least recently used of which goes when there are too many."""

    def __init__(self, most: int) -> None:
        self.name = secrets.token_hex(8)  # by which others are told who changed something
        self._most = most
        self._lock = Lock()
        self._kept: OrderedDict[str, tuple[int, Entry]] = OrderedDict()
        self._versions: Counter[str] = Counter()  # of models, and of everything
        self._changes = self._committing = 0
        self._heard_until_s = 0.0

    def heard(self, at_s: float) -> None:
        """Note that all that others had committed at this moment (monotonic) is known here."""
        self._heard_until_s = at_s + HEARD_S_MAX

    def mark(self) -> int:
        """Return what `keep` needs; to be taken before the answer is looked up."""
        return self._changes

    def keep(self, mark: int, device_id: str, entry: Entry) -> None:
        """Keep an answer, unless anything changed since the mark."""
        with self._lock:
            if mark != self._changes or self._committing:
                return
            self._kept[device_id] = (self._version(entry.model), entry)
            self._kept.move_to_end(device_id)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def find(self, device_id: str) -> Entry | None:
        """Return what a device was told last, if that still stands."""
        with self._lock:
            version, entry = self._kept.get(device_id, (0, None))
            if entry is None or time.monotonic() >= self._heard_until_s:
                return None
            if version != self._version(entry.model):
                del self._kept[device_id]
                return None
            self._kept.move_to_end(device_id)
            return entry

    def drop(self, scopes: Iterable[str]) -> None:
        """Forget what these scopes make stale."""
        with self._lock:
            for scope in scopes:
                self._changes += 1
                kind, _, name = scope.partition(" ")
                if kind == "device":
                    self._kept.pop(name, None)
                else:
                    self._versions[name or EVERYTHING] += 1

    @contextmanager
    def changing(self, scopes: Iterable[str]) -> Iterator[None]:
        """Enter the moment in which a transaction that touched these scopes commits."""
        with self._lock:
            self._committing += 1
        try:
            self.drop(scopes)
            yield
        finally:
            self.drop(scopes)
            with self._lock:
                self._committing -= 1

    def _version(self, model: str) -> int:
        return self._versions[EVERYTHING] + self._versions[model]
