"""The planner against brute force: cheapest under every constraint, and the full file last."""

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.chain import (
    APPLY_BYTES_S,
    BYTES_S,
    HASHED_HOPS_MAX,
    HOP_MS,
    HOPS_MAX,
    PIPELINES_MAX,
    PROCESS_BYTES,
    TRIALS_LEAST,
    Edge,
    File,
    Limits,
    Pipeline,
    Planner,
    Step,
    between,
)

NODES = "abcdef"
nodes = st.sampled_from(NODES)
MB = 1_000_000
FILES = [File(node, 20 * MB + ord(node)) for node in NODES]
SIZES = {file.sha256: file.bytes for file in FILES}
rarely = st.sampled_from([False, False, False, True])
# Few blobs and sizes: ties, parallel edges, cycles and one blob on two edges all come up.
edges_of_a_graph = st.builds(
    Edge,
    *(nodes, nodes, st.sampled_from(["p", "q", "r"])),
    bytes=st.sampled_from([1, 2, 30_000, 3 * MB, 7 * MB, 19 * MB]),
    hashed=st.booleans(),
    back=rarely,
    memory_bytes=st.sampled_from([0, 1, 2, 5 * MB]),
    ok=st.sampled_from([0, 1, 100]),
    failed=st.sampled_from([0, 0, 1, 40]),
    withdrawn=st.sampled_from(["", "", "", "it is bad"]),
)
edge_lists = st.lists(edges_of_a_graph, max_size=11)
limits_of_a_device = st.builds(
    Limits,
    network=st.sampled_from([*BYTES_S, "carrier pigeon"]),
    memory_bytes=st.sampled_from(
        [None, 1, PROCESS_BYTES, PROCESS_BYTES + 2, PROCESS_BYTES + 6 * MB]
    ),
    room_bytes=st.sampled_from([None, 1, 20 * MB, 20 * MB + 200, 24 * MB, 31 * MB]),
    hashed_hops=st.integers(0, HASHED_HOPS_MAX + 1),
    goes_back=st.booleans(),
)
many = settings(max_examples=3000, deadline=None)
quick = settings(max_examples=300, deadline=None)
Path = Sequence[Edge]


def cost(path: Path, target: str, limits: Limits) -> int:
    """What the page says a path costs, said again."""
    rate = BYTES_S.get(limits.network, BYTES_S[""])

    def taking(fetched: int, made: int) -> int:
        return fetched * 1000 // rate + made * 1000 // APPLY_BYTES_S

    full = taking(SIZES[target], SIZES[target])
    if not path:
        return full
    return sum(
        HOP_MS
        + taking(e.bytes, SIZES[e.target])
        + full * e.failed // (e.ok + e.failed + TRIALS_LEAST)
        for e in path
    )


def allowed(path: Path, target: str, limits: Limits) -> bool:
    """Whether a device may be sent along a path, each rule once and by itself."""
    hashed = sum(edge.hashed for edge in path)
    room = sum(edge.bytes for edge in path) + max(SIZES[edge.target] for edge in path)
    memory = PROCESS_BYTES + sum(edge.memory_bytes for edge in path)
    return (
        len(path) <= HOPS_MAX
        and not any(edge.withdrawn for edge in path)
        and len({edge.back for edge in path}) == 1
        and (limits.goes_back or not path[0].back)
        and (not hashed or limits.hashed_hops + hashed <= HASHED_HOPS_MAX)
        and (limits.memory_bytes is None or memory <= limits.memory_bytes)
        and (limits.room_bytes is None or room <= limits.room_bytes)
        and cost(path, target, limits) < cost((), target, limits)
    )


def brute(edges: Sequence[Edge], source: str, target: str) -> list[list[Edge]]:
    """Return every path that visits no node twice (a cycle makes nothing less)."""
    found: list[list[Edge]] = []

    def walk(node: str, path: list[Edge], seen: set[str]) -> None:
        for edge in edges:
            if edge.source == node and edge.target not in seen:
                if edge.target == target:
                    found.append([*path, edge])
                else:
                    walk(edge.target, [*path, edge], {*seen, edge.target})

    if source != target:
        walk(source, [], {source})
    return found


def steps_of(path: Path) -> tuple[Step, ...]:
    ops = {False: "patch", True: "back"}
    return tuple(Step(ops[e.back], e.sha256, e.bytes, e.target, SIZES[e.target]) for e in path)


def planned(
    edges: Sequence[Edge], running: str, target: str, limits: Limits, undo: bool = False
) -> list[Pipeline]:
    return Planner(edges, FILES, target, limits).pipelines(running, undo=undo)


@many
@given(edge_lists, nodes, nodes, limits_of_a_device)
def test_no_path_that_is_allowed_is_cheaper_than_the_cheapest(
    edges: list[Edge], source: str, target: str, limits: Limits
) -> None:
    left = edges
    for way in planned(edges, source, target, limits)[:-1]:
        # The second way is the cheapest of what the first one leaves.
        every = [path for path in brute(left, source, target) if allowed(path, target, limits)]
        costs = [cost(path, target, limits) for path in every]
        assert way.cost_ms == min(costs)
        assert len(way.steps) == min(
            len(path) for path, ms in zip(every, costs, strict=True) if ms == way.cost_ms
        )
        taken = [path for path in every if steps_of(path) == way.steps]
        assert taken, "it is no way of this graph"
        cheapest = [path for path in taken if cost(path, target, limits) == way.cost_ms]
        left = [edge for edge in left if edge not in min(cheapest)]
    if len(planned(edges, source, target, limits)) < PIPELINES_MAX:
        assert not [path for path in brute(left, source, target) if allowed(path, target, limits)]


@quick
@given(edge_lists, nodes, nodes, limits_of_a_device, st.randoms(use_true_random=False))
def test_the_order_in_which_patches_are_listed_does_not_matter(
    edges: list[Edge], source: str, target: str, limits: Limits, random: Any
) -> None:
    shuffled = sorted(edges, key=lambda _: random.random())
    for say in (Planner.pipelines, Planner.excluded):
        first, other = (say(Planner(e, FILES, target, limits), source) for e in (edges, shuffled))
        assert first == other


@quick
@given(edge_lists, nodes, nodes, limits_of_a_device, st.booleans())
def test_every_pipeline_ends_in_the_target_and_the_full_file_comes_last(
    edges: list[Edge], source: str, target: str, limits: Limits, undo: bool
) -> None:
    size = SIZES[target]
    *ways, last = planned(edges, source, target, limits, undo)
    assert last.steps == (Step("full", target, size, target, size),)
    assert len(ways) < PIPELINES_MAX
    assert [way.steps[0].op == "undo" for way in ways] == [undo, False][: len(ways)]
    for way in ways:
        assert way.steps[-1].to == target and way.steps[-1].to_bytes == size
        assert way.cost_ms < last.cost_ms and not way.excluded
    assert [way.cost_ms for way in ways] == sorted(way.cost_ms for way in ways)


@quick
@given(edge_lists, nodes, nodes, limits_of_a_device)
def test_an_excluded_way_says_all_that_speaks_against_it_and_nothing_else(
    edges: list[Edge], source: str, target: str, limits: Limits
) -> None:
    within = [edge for edge in edges if limits.goes_back or not edge.back]
    for way in Planner(edges, FILES, target, limits).excluded(source):
        alike = [path for path in brute(within, source, target) if steps_of(path) == way.steps]
        assert alike and not any(
            allowed(path, target, limits)
            for path in alike
            if cost(path, target, limits) == way.cost_ms and len(alike) == 1
        )
        for name in way.excluded:
            assert lifted(name, alike, target, limits), f"{name} does not speak against it"


def lifted(name: str, alike: list[list[Edge]], target: str, limits: Limits) -> bool:
    """Whether one of these paths does break this constraint."""
    rules: dict[str, Callable[[Path], bool]] = {
        "hops": lambda path: len(path) > HOPS_MAX,
        "withdrawn": lambda path: any(edge.withdrawn for edge in path),
        "hashed_hops": lambda path: limits.hashed_hops + len(path) > HASHED_HOPS_MAX,
        "memory_bytes": lambda _: limits.memory_bytes is not None,
        "room_bytes": lambda _: limits.room_bytes is not None,
        "cost_ms": lambda path: cost(path, target, limits) >= cost((), target, limits),
    }
    return any(map(rules[name], alike))


@quick
@given(edges=edge_lists, limits=limits_of_a_device, source=nodes, target=nodes)
def test_what_any_plan_takes_lies_between_its_ends(
    edges: list[Edge], limits: Limits, source: str, target: str
) -> None:
    kept = between(edges, [source], target)
    for way in Planner(edges, FILES, target, limits).pipelines(source):
        assert {step.sha256 for step in way.steps if step.op in ("patch", "back")} <= kept


@quick
@given(edges=edge_lists, source=nodes, target=nodes)
def test_what_lies_between_is_on_some_way_and_nothing_else_is(
    edges: list[Edge], source: str, target: str
) -> None:
    near = {(node, node) for node in NODES} | {(e.source, e.target) for e in edges}
    for via in NODES:  # Warshall's algorithm
        near |= {(a, b) for a in NODES for b in NODES if {(a, via), (via, b)} <= near}
    on_a_way = {e.sha256 for e in edges if {(source, e.source), (e.target, target)} <= near}
    assert between(edges, [source], target) == on_a_way
