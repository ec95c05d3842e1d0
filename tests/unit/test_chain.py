"""The planner against brute force: cheapest under every constraint, and the full file last."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
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


# --- one constraint at a time


def line(count: int, size: int = 1) -> list[Edge]:
    return [Edge(f"n{i}", f"n{i + 1}", f"p{i}", size) for i in range(count)]


def ways(edges: Sequence[Edge], source: str, target: str, **limits: Any) -> list[str]:
    """The pipelines, as the names of their blobs."""
    names = {name for edge in edges for name in (edge.source, edge.target)} | {target}
    files = [File(name, 20 * MB) for name in sorted(names)]
    found = Planner(edges, files, target, Limits(**limits)).pipelines(source)
    return [" ".join(step.sha256 for step in way.steps) for way in found]


def reasons(edges: Sequence[Edge], source: str, target: str, **limits: Any) -> dict[str, str]:
    """Of the first way that is excluded."""
    names = {name for edge in edges for name in (edge.source, edge.target)} | {target}
    files = [File(name, 20 * MB) for name in sorted(names)]
    return Planner(edges, files, target, Limits(**limits)).excluded(source)[0].excluded


@pytest.mark.attack("D17")
def test_a_path_of_eight_hops_is_taken_and_of_nine_is_not() -> None:
    assert ways(line(8), "n0", "n8") == ["p0 p1 p2 p3 p4 p5 p6 p7", "n8"]
    assert ways(line(9), "n0", "n9") == ["n9"]
    assert reasons(line(9), "n0", "n9") == {"hops": "takes 9, at most 8"}


def test_a_cheap_long_way_does_not_hide_a_dear_short_one() -> None:
    """The cheapest way to n7 has seven hops; only the dear one leaves room for the rest."""
    edges = [*line(9), Edge("n0", "n7", "short", 8 * MB)]
    assert ways(edges, "n0", "n9")[0] == "short p7 p8"


def test_a_cheap_hashed_way_does_not_hide_one_that_leaves_hashed_hops() -> None:
    edges = [replace(edge, hashed=True) for edge in line(HASHED_HOPS_MAX + 1)]
    plain = Edge("n0", "n1", "plain", 5 * MB)
    assert ways(edges, "n0", f"n{len(edges)}") == [f"n{len(edges)}"]
    assert ways([*edges, plain], "n0", f"n{len(edges)}")[0] == "plain p1 p2 p3 p4 p5"


def test_after_so_many_hashed_hops_a_device_gets_the_full_file_again() -> None:
    hashed, sparse = Edge("a", "b", "h", 1, hashed=True), Edge("a", "b", "s", 2)
    used_up = {"hashed_hops": HASHED_HOPS_MAX}
    assert ways([hashed], "a", "b", hashed_hops=HASHED_HOPS_MAX - 1) == ["h", "b"]
    assert ways([hashed], "a", "b", **used_up) == ["b"]
    assert ways([hashed, sparse], "a", "b", **used_up) == ["s", "b"], "a sparse one drifts not"
    assert reasons([hashed], "a", "b", **used_up) == {"hashed_hops": "takes 6, at most 5"}


def test_the_patches_of_a_chain_need_their_memory_together() -> None:
    edges = [replace(edge, memory_bytes=5) for edge in line(2)]
    assert ways(edges, "n0", "n2", memory_bytes=PROCESS_BYTES + 10) == ["p0 p1", "n2"]
    assert ways(edges, "n0", "n2", memory_bytes=PROCESS_BYTES + 9) == ["n2"]
    why = reasons(edges, "n0", "n2", memory_bytes=PROCESS_BYTES + 9)
    assert why == {"memory_bytes": f"takes {PROCESS_BYTES + 10}, at most {PROCESS_BYTES + 9}"}


def test_the_patches_and_the_new_file_must_fit_on_the_disk() -> None:
    edges = line(2, size=MB)
    assert ways(edges, "n0", "n2", room_bytes=22 * MB) == ["p0 p1", "n2"]
    assert ways(edges, "n0", "n2", room_bytes=22 * MB - 1) == ["n2"]
    assert "room_bytes" in reasons(edges, "n0", "n2", room_bytes=22 * MB - 1)


def test_a_withdrawn_patch_is_not_used_and_its_reason_is_told() -> None:
    bad = Edge("a", "b", "bad", 1, withdrawn="it crashes chips of 2019")
    assert ways([bad, Edge("a", "b", "good", 2)], "a", "b") == ["good", "b"]
    assert reasons([bad], "a", "b") == {"withdrawn": "bad: it crashes chips of 2019"}


def test_a_patch_that_fails_often_costs_what_its_failures_cost() -> None:
    shaky, sound = Edge("a", "b", "shaky", 1, failed=40), Edge("a", "b", "sound", 3 * MB)
    assert ways([shaky, sound], "a", "b") == ["sound", "shaky", "b"]
    assert ways([replace(shaky, ok=10_000), sound], "a", "b") == ["shaky", "sound", "b"]


def test_one_failure_does_not_make_a_patch_dearer_than_the_full_file() -> None:
    assert ways([Edge("a", "b", "p", 1, failed=1)], "a", "b") == ["p", "b"]


def test_where_bytes_are_dear_more_hops_are_taken_to_save_some() -> None:
    edges = [*line(8, size=10_000), Edge("n0", "n8", "direct", 300_000)]
    assert ways(edges, "n0", "n8", network="fast")[0] == "direct"
    assert ways(edges, "n0", "n8", network="metered")[0] == "p0 p1 p2 p3 p4 p5 p6 p7"


def test_a_patch_is_undone_only_by_an_agent_that_can_and_never_within_a_chain() -> None:
    back = Edge("b", "a", "p", 1, back=True)
    assert ways([back], "b", "a") == ["a"]
    assert ways([back], "b", "a", goes_back=True) == ["p", "a"]
    assert ways([back, Edge("a", "c", "q", 1)], "b", "c", goes_back=True) == ["c"]


@pytest.mark.attack("D17")
def test_cycles_and_dead_ends_end() -> None:
    cycle = [Edge("a", "b", "p", 1), Edge("b", "a", "q", 1), Edge("b", "d", "r", 1)]
    assert ways(cycle, "a", "c") == ["c"]
    assert ways([*cycle, Edge("a", "a", "s", 1)], "a", "d")[0] == "p r"
    assert ways([], "a", "b") == ["b"]


@pytest.mark.attack("D17")
def test_of_two_equal_paths_the_lower_digest_wins() -> None:
    one, other = Edge("a", "b", "p1", 5), Edge("a", "b", "p2", 5)
    assert ways([other, one], "a", "b") == ways([one, other], "a", "b") == ["p1", "p2", "b"]


def test_one_blob_on_two_edges_is_no_trouble() -> None:
    edges = [Edge("s", "a", "x", 1), Edge("s", "b", "x", 1), Edge("a", "t", "y", 1)]
    assert ways([*edges, Edge("b", "t", "y", 1), Edge("b", "t", "y", 1)], "s", "t")[0] == "x y"


def test_an_undo_comes_first_and_costs_nothing() -> None:
    way, full = planned([], "a", "b", Limits(), undo=True)
    assert way.steps == (Step("undo", "b", 0, "b", SIZES["b"]),) and way.cost_ms == 0
    assert full.steps[0].op == "full"


def test_bytes_that_nobody_knows_get_the_full_file() -> None:
    assert ways([Edge("a", "b", "p", 1)], "?", "b") == ["b"]


def test_a_patch_as_dear_as_the_full_file_is_not_offered_and_says_so() -> None:
    edge = Edge("a", "b", "p", 20 * MB - HOP_MS * 1000)
    assert ways([edge], "a", "b") == ["b"]
    assert ways([replace(edge, bytes=edge.bytes - 1000)], "a", "b") == ["p", "b"]
    assert reasons([edge], "a", "b") == {"cost_ms": "20400, and the full file 20400"}


def test_the_cheapest_path_joins_its_ends() -> None:
    edges = line(5)
    files = [File(f"n{n}", MB) for n in range(6)]
    path = Planner(edges, files, "n5", Limits()).cheapest(edges, "n0")
    assert path is not None and all(one.target == two.source for one, two in pairwise(path))
