"""The planner: by which patches does a device get from the bytes it runs to its target? Pure.

Releases are nodes, patches are edges, and the full file reaches its release from anywhere. A
pipeline is a list of steps that all end in the same bytes; the device tries the next pipeline
when one fails, and the full file always comes last. What a way costs is counted in milliseconds:
its bytes on the device's network, a pass over the file for each hop, and what was seen to fail.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

HOPS_MAX = 8  # what a device takes in one go
HASHED_HOPS_MAX = 5  # since the last full file: hashed updates are approximations, and drift
PIPELINES_MAX = 3
CANDIDATES_MAX = 12  # that an explanation goes through
# Bytes per second by network class; where bytes are paid for, they weigh as if they were slow.
BYTES_S = {"": 1_000_000, "fast": 10_000_000, "slow": 100_000, "metered": 10_000}
APPLY_BYTES_S = 50_000_000  # of the file that a hop makes
HOP_MS = 4  # what a hop costs beside its bytes: another request, another file
TRIALS_LEAST = 10  # one failure is no rate yet
PROCESS_BYTES = 20_000_000  # what an applier takes, whatever the patch


@dataclass(frozen=True, order=True)
class Edge:
    """A patch file that turns the file with one digest into the file with another.

    Attributes:
        back: the patch leads the other way, and is to be undone.
        memory_bytes: what applying it takes at most, beside the process itself.
        ok, failed: how often devices made it, or could not.
        withdrawn: why it must not be used; mostly empty.
    """

    source: str
    target: str
    sha256: str
    bytes: int
    hashed: bool = False
    back: bool = False
    memory_bytes: int = 0
    ok: int = 0
    failed: int = 0
    withdrawn: str = ""


@dataclass(frozen=True)
class File:
    """A full model file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Limits:
    """What one device allows; None where it did not say.

    Attributes:
        network: its class, a key of `BYTES_S`.
        memory_bytes: that it has.
        room_bytes: that an update may take on its disk.
        hashed_hops: that it made since its last full file.
        goes_back: its agent undoes patches.
    """

    network: str = ""
    memory_bytes: int | None = None
    room_bytes: int | None = None
    hashed_hops: int = 0
    goes_back: bool = False


@dataclass(frozen=True)
class Step:
    """One step of a pipeline.

    Attributes:
        op: "undo" (the bytes are in the device's spare slot), "patch", "back" or "full".
        sha256, bytes: the blob to fetch; for undo the result itself, nothing is fetched.
        to, to_bytes: the model file after this step.
    """

    op: str
    sha256: str
    bytes: int
    to: str
    to_bytes: int


@dataclass(frozen=True)
class Pipeline:
    """A way to the target.

    Attributes:
        cost_ms: what it takes, by the planner's reckoning.
        excluded: constraint -> in which way it breaks that; empty if it may be used.
    """

    steps: tuple[Step, ...]
    cost_ms: int
    excluded: dict[str, str]


class Use(NamedTuple):
    """What a path takes of that which is limited."""

    hops: int = 0
    hashed_hops: int = 0
    memory_bytes: int = PROCESS_BYTES
    fetched_bytes: int = 0
    largest_bytes: int = 0


NOTHING = Use()


def between(edges: Iterable[Edge], sources: Iterable[str], target: str) -> set[str]:
    """Return the patches on any way from some files to another, whatever a device allows."""
    edges = list(edges)
    reached = _reached([(e.source, e.target) for e in edges], sources)
    leading = _reached([(e.target, e.source) for e in edges], [target])
    return {edge.sha256 for edge in edges if edge.source in reached and edge.target in leading}


def _reached(arrows: Sequence[tuple[str, str]], starts: Iterable[str]) -> set[str]:
    found, more = set(), set(starts)
    while more:
        found |= more
        more = {end for start, end in arrows if start in more} - found
    return found


class Planner:
    """The ways to one target, for one device."""

    def __init__(
        self, edges: Iterable[Edge], files: Iterable[File], target: str, limits: Limits
    ) -> None:
        self._edges = [edge for edge in edges if limits.goes_back or not edge.back]
        self._bytes_of = {file.sha256: file.bytes for file in files}
        self._target, self._limits = target, limits
        self._rate = BYTES_S.get(limits.network, BYTES_S[""])
        self.full_ms = self._ms(self._bytes_of[target], self._bytes_of[target])

    def pipelines(self, running: str, *, undo: bool = False) -> list[Pipeline]:
        """Return up to three pipelines from the bytes that run, the cheapest first.

        Args:
            running: digest of the device's active model file; may be unknown.
            undo: the device keeps the target in its spare slot.
        """
        size = self._bytes_of[self._target]
        full = Pipeline((Step("full", self._target, size, self._target, size),), self.full_ms, {})
        last = Pipeline((Step("undo", self._target, 0, self._target, size),), 0, {})
        found = [last] if undo else []
        left = [edge for edge in self._edges if not edge.withdrawn]
        while len(found) < PIPELINES_MAX - 1:
            path = self.cheapest(left, running)
            if not path:
                break
            found.append(self._pipeline(path))
            left = [edge for edge in left if edge not in path]
        return [*found, full]

    def excluded(self, running: str) -> list[Pipeline]:
        """Return ways that would be there without constraints, and which of them each breaks."""
        found, left = [], list(self._edges)
        for _ in range(CANDIDATES_MAX):
            path = self.cheapest(left, running, free=True)
            if not path:
                break
            if (way := self._pipeline(path)).excluded:
                found.append(way)
            left = [edge for edge in left if edge not in path]
        return found

    def chain(self, running: str) -> list[Edge] | None:
        """Return the cheapest path by patches that may be used, None if the full file is best."""
        return self.cheapest((edge for edge in self._edges if not edge.withdrawn), running)

    def lacks_chain(self, running: str) -> bool:
        """Whether a patch could save something here, and none does; a tiny file needs none."""
        return self.full_ms > HOP_MS and not self.chain(running)

    def cheapest(
        self, edges: Iterable[Edge], source: str, *, free: bool = False
    ) -> list[Edge] | None:
        """Return the cheapest path that is cheaper than the full file, or None.

        Dijkstra's algorithm over (digest, use): without the use a cheap way that takes much of
        what is limited would hide a dearer one that leaves enough. Ties go to fewer hops, then
        to the lower digests. One that is `free` of constraints may cost what it likes. A path
        goes all forward or all back, for that is what a device does in one pass.
        """
        leaving: dict[str, list[tuple[Edge, int]]] = {}
        for edge in edges:
            if edge.source in self._bytes_of and edge.target in self._bytes_of:
                leaving.setdefault(edge.source, []).append((edge, self._edge_ms(edge)))
        queue: list[tuple[int, int, list[Edge], Use]] = [(0, 0, [], NOTHING)]
        kept: dict[tuple[str, bool], list[Use]] = {}
        while queue:
            so_far, hops, path, use = heapq.heappop(queue)
            node, back = (path[-1].target, path[-1].back) if path else (source, False)
            if node == self._target:
                return path
            known = kept.setdefault((node, back), [])
            if any(all(map(int.__le__, other, use)) for other in known):
                continue
            known.append(use)
            for edge, ms in leaving.get(node, ()):
                if path and edge.back != back:
                    continue
                more = NOTHING if free else self._more(use, edge)
                if free or (so_far + ms < self.full_ms and not self._broken(more)):
                    heapq.heappush(queue, (so_far + ms, hops + 1, [*path, edge], more))
        return None

    def _more(self, use: Use, edge: Edge) -> Use:
        """Return the use after one more hop; what nobody limits is not counted."""
        limits, memory, fetched, largest = self._limits, use.memory_bytes, 0, 0
        if limits.memory_bytes is not None:
            memory += edge.memory_bytes  # the patches of a chain are applied in one pass
        if limits.room_bytes is not None:
            fetched = use.fetched_bytes + edge.bytes
            largest = max(use.largest_bytes, self._bytes_of[edge.target])
        return Use(use.hops + 1, use.hashed_hops + edge.hashed, memory, fetched, largest)

    def _broken(self, use: Use) -> dict[str, str]:
        """Return constraint -> in which way this use breaks it."""
        limits = self._limits
        hashed, room = limits.hashed_hops + use.hashed_hops, use.fetched_bytes + use.largest_bytes
        of_use: list[tuple[str, int, int | None]] = [
            ("hops", use.hops, HOPS_MAX),
            ("hashed_hops", hashed if use.hashed_hops else 0, HASHED_HOPS_MAX),
            ("memory_bytes", use.memory_bytes, limits.memory_bytes),
            ("room_bytes", room, limits.room_bytes),
        ]
        return {
            name: f"takes {taken}, at most {most}"
            for name, taken, most in of_use
            if most is not None and taken > most
        }

    def _pipeline(self, path: Sequence[Edge]) -> Pipeline:
        """Return a path as a device is told of it, and what speaks against it."""
        use, cost_ms = NOTHING, sum(map(self._edge_ms, path))
        for edge in path:
            use = self._more(use, edge)
        why = self._broken(use)
        if withdrawn := "; ".join(f"{e.sha256[:12]}: {e.withdrawn}" for e in path if e.withdrawn):
            why["withdrawn"] = withdrawn
        if cost_ms >= self.full_ms:
            why["cost_ms"] = f"{cost_ms}, and the full file {self.full_ms}"
        size = self._bytes_of
        steps = (
            Step("back" if e.back else "patch", e.sha256, e.bytes, e.target, size[e.target])
            for e in path
        )
        return Pipeline(tuple(steps), cost_ms, why)

    def _edge_ms(self, edge: Edge) -> int:
        # Whoever fails takes the full file in the end.
        tried = edge.ok + edge.failed + TRIALS_LEAST
        risk_ms = self.full_ms * edge.failed // tried
        return HOP_MS + self._ms(edge.bytes, self._bytes_of[edge.target]) + risk_ms

    def _ms(self, fetched: int, made: int) -> int:
        return fetched * 1000 // self._rate + made * 1000 // APPLY_BYTES_S
