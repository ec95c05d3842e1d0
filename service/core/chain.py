"""The planner: by which patches does a device get from the bytes it runs to its target? Pure.

Releases are nodes, patches are edges, and the full file reaches its release from anywhere. A
pipeline is a list of steps that all end in the same bytes; the device tries the next pipeline
when one fails, and the full file always comes last.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HOPS_MAX = 8
PIPELINES_MAX = 3
# What a hop costs beside its bytes: another file to fetch, a pass over the model.
HOP_COST_BYTES = 4096


@dataclass(frozen=True, order=True)
class Edge:
    """A patch file that turns the file with one digest into the file with another."""

    source: str
    target: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class File:
    """A full model file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Step:
    """One step of a pipeline.

    Attributes:
        op: "undo" (the bytes are in the device's spare slot), "patch" or "full".
        sha256, bytes: the blob to fetch; for undo the result itself, nothing is fetched.
        to, to_bytes: the model file after this step.
    """

    op: str
    sha256: str
    bytes: int
    to: str
    to_bytes: int


def plan(
    edges: Iterable[Edge], files: Iterable[File], running: str, target: str, *, undo: bool = False
) -> list[list[Step]]:
    """Return up to three pipelines from `running` to `target`, the cheapest first.

    Args:
        edges: the patches that may be used.
        files: the full file of every release.
        running: digest of the device's active model file; may be unknown.
        target: digest of the release to reach.
        undo: the device keeps the target in its spare slot.
    """
    bytes_of = {file.sha256: file.bytes for file in files}
    full = Step("full", target, bytes_of[target], target, bytes_of[target])
    pipelines = [[Step("undo", target, 0, target, bytes_of[target])]] if undo else []
    left = list(edges)
    while len(pipelines) < PIPELINES_MAX - 1:
        path = cheapest(left, running, target)
        if not path or cost(path) >= full.bytes:
            break
        pipelines.append(
            [Step("patch", e.sha256, e.bytes, e.target, bytes_of[e.target]) for e in path]
        )
        left = [edge for edge in left if edge not in path]
    return [*pipelines, [full]]


def cost(path: Sequence[Edge]) -> int:
    """Return what a path costs, in bytes."""
    return sum(edge.bytes + HOP_COST_BYTES for edge in path)


def cheapest(edges: Iterable[Edge], source: str, target: str) -> list[Edge] | None:
    """Return the cheapest path of at most `HOPS_MAX` edges, or None.

    Dijkstra's algorithm over (digest, hops): without the hops a cheap long way would hide a
    dearer one that is short enough. Ties go to fewer hops, then to the lower digests.
    """
    leaving: dict[str, list[Edge]] = {}
    for edge in edges:
        leaving.setdefault(edge.source, []).append(edge)
    queue: list[tuple[int, int, list[Edge]]] = [(0, 0, [])]
    done: dict[str, int] = {}
    while queue:
        so_far, hops, path = heapq.heappop(queue)
        node = path[-1].target if path else source
        if node == target:
            return path
        if done.get(node, HOPS_MAX + 1) <= hops or hops == HOPS_MAX:
            continue
        done[node] = hops
        for edge in leaving.get(node, []):
            heapq.heappush(queue, (so_far + cost([edge]), hops + 1, [*path, edge]))
    return None
