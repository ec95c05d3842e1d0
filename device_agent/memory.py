"""What a device knows beside its state: floors that never sink, and what it already settled.

The floors are the one thing here that matters for safety (a device that forgets them can be shown
old metadata again), so the whole is one durable record, written before anything acts on it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from device_agent.journal import Record
from trust.roles import Family
from trust.verify import Floors

GIVEN_UP_KEPT_MAX = 16


@dataclass(frozen=True)
class Memory:
    """Values; `Notebook` keeps them.

    Attributes:
        root_version: the root that the metadata cache is under, 0 for the pinned one.
        etag: of the last answer that left nothing to do; empty if there is something.
        fresh_until: when the first of the signed documents it rests on expires.
        refusals: attempts in a row that ended badly; they slow the polling down.
        deployment: the last one that was begun.
        given_up: deployments that this device decided against and does not try again.
        back_edges: (from, to) digests that the family signs as ways back.
        attempt: (release, deployment, number) of the last trial on the canary.
    """

    floors: Floors
    root_version: int = 0
    etag: str = ""
    fresh_until: str = ""
    refusals: int = 0
    deployment: str = ""
    given_up: tuple[str, ...] = ()
    back_edges: tuple[tuple[str, str], ...] = ()
    attempt: tuple[str, str, int] = ("", "", 0)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.__dict__, "floors": self.floors.to_json()}

    @staticmethod
    def from_json(document: dict[str, Any]) -> "Memory":
        """Return the memory that `to_json` wrote."""
        release, deployment, number = document["attempt"]
        return Memory(
            **{
                **document,
                "floors": Floors.from_json(document["floors"]),
                "given_up": tuple(document["given_up"]),
                "back_edges": tuple((a, b) for a, b in document["back_edges"]),
                "attempt": (release, deployment, number),
            }
        )

    def with_attempt(self, release: str, deployment: str) -> "Memory":
        """Return the memory with this trial counted; the same trial twice counts once."""
        last_release, last_deployment, number = self.attempt
        if (last_release, last_deployment) == (release, deployment):
            return self
        number = number + 1 if last_release == release else 1
        return replace(self, attempt=(release, deployment, number))

    def without(self, deployment: str) -> "Memory":
        """Return the memory with a deployment given up."""
        kept = [*(d for d in self.given_up if d != deployment), deployment]
        return replace(self, given_up=tuple(kept[-GIVEN_UP_KEPT_MAX:]))


class Notebook:
    """The memory on disk."""

    def __init__(self, path: Path) -> None:
        self._record = Record(path)
        document = self._record.document
        self.memory = Memory(Floors()) if document is None else Memory.from_json(document)

    def write(self, memory: Memory) -> None:
        """Make this the memory, durably."""
        if memory != self.memory:
            self._record.save(memory.to_json())
            self.memory = memory


def back_edges(family: Family) -> tuple[tuple[str, str], ...]:
    """Return the ways back that a family signs, as digests (from, to)."""
    return tuple(
        (family.releases[source].sha256, release.sha256)
        for release in family.releases.values()
        if release.status == "active"
        for source in release.rollback_from
        if source in family.releases and family.releases[source].seq > release.seq
    )
