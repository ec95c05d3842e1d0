"""The planner against brute force: cheapest, short enough, and always with the full file last."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.chain import (
    HOP_COST_BYTES,
    HOPS_MAX,
    PIPELINES_MAX,
    Edge,
    File,
    Step,
    cheapest,
    cost,
    plan,
)

NODES = "abcdef"
nodes = st.sampled_from(NODES)
# Few blobs and sizes: ties, parallel edges, cycles and one blob on two edges all come up.
edge_lists = st.lists(
    st.builds(Edge, nodes, nodes, st.sampled_from(["p", "q", "r"]), st.integers(1, 4)), max_size=9
)
FILES = [File(node, 20_000) for node in NODES]
quick = settings(max_examples=300, deadline=None)


def brute(edges: list[Edge], source: str, target: str, hops: int = HOPS_MAX) -> list[list[Edge]]:
    """Return every path that visits no node twice (a cycle never makes one cheaper)."""
    found: list[list[Edge]] = [[]] if source == target else []

    def walk(node: str, path: list[Edge], seen: set[str]) -> None:
        for edge in edges if len(path) < hops else []:
            if edge.source == node and edge.target not in seen:
                if edge.target == target:
                    found.append([*path, edge])
                else:
                    walk(edge.target, [*path, edge], {*seen, edge.target})

    if source != target:
        walk(source, [], {source})
    return found


@quick
@given(edge_lists, nodes, nodes)
def test_no_path_is_cheaper_than_the_cheapest(edges: list[Edge], source: str, target: str) -> None:
    every = brute(edges, source, target)
    found = cheapest(edges, source, target)
    if not every:
        assert found is None
        return
    assert found is not None
    assert cost(found) == min(map(cost, every))
    assert len(found) == min(len(path) for path in every if cost(path) == cost(found))
    ends = [source, *(edge.target for edge in found)]
    assert ends[-1] == target
    assert [(edge.source, edge.target) for edge in found] == list(pairwise(ends))


@quick
@given(edge_lists, nodes, nodes, st.randoms(use_true_random=False))
def test_the_order_in_which_patches_are_listed_does_not_matter(
    edges: list[Edge], source: str, target: str, random: object
) -> None:
    shuffled = sorted(edges, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert cheapest(edges, source, target) == cheapest(shuffled, source, target)
    assert plan(edges, FILES, source, target) == plan(shuffled, FILES, source, target)


@quick
@given(edge_lists, nodes, nodes, st.booleans(), st.integers(1, 30_000))
def test_every_pipeline_ends_in_the_target_and_none_is_dearer_than_the_full_file(
    edges: list[Edge], source: str, target: str, undo: bool, size: int
) -> None:
    files = [File(node, size) for node in NODES]
    pipelines = plan(edges, files, source, target, undo=undo)
    full = Step("full", target, size, target, size)
    assert pipelines[-1] == [full]
    assert 1 <= len(pipelines) <= PIPELINES_MAX
    assert [p[0].op == "undo" for p in pipelines] == [undo, False, False][: len(pipelines)]
    used: list[Step] = []
    costs = []
    for pipeline in pipelines:
        assert pipeline[-1].to == target and pipeline[-1].to_bytes == size
        assert len(pipeline) <= HOPS_MAX
        if pipeline[0].op == "patch":
            costs.append(sum(step.bytes + HOP_COST_BYTES for step in pipeline))
            used += pipeline
    assert all(paid < size for paid in costs)
    assert costs == sorted(costs)
    assert all(used.count(step) <= edges_like(edges, step) for step in used)


def edges_like(edges: list[Edge], step: Step) -> int:
    """Return how many different patches look like this step."""
    alike = {
        e for e in edges if (e.target, e.sha256, e.bytes) == (step.to, step.sha256, step.bytes)
    }
    return len(alike)


def line(count: int, size: int = 1) -> list[Edge]:
    return [Edge(f"n{i}", f"n{i + 1}", f"p{i}", size) for i in range(count)]


@pytest.mark.attack("D17")
def test_a_path_of_eight_hops_is_taken_and_of_nine_is_not() -> None:
    assert cheapest(line(8), "n0", "n8") == line(8)
    assert cheapest(line(9), "n0", "n9") is None


def test_a_cheap_long_way_does_not_hide_a_dear_short_one() -> None:
    """The cheapest way to n7 has seven hops; only the dear one leaves room for the rest."""
    edges = [*line(9), Edge("n0", "n7", "short", 1_000_000)]
    found = cheapest(edges, "n0", "n9")
    assert found is not None and [edge.sha256 for edge in found] == ["short", "p7", "p8"]


@pytest.mark.attack("D17")
def test_cycles_and_dead_ends_end() -> None:
    cycle = [Edge("a", "b", "p", 1), Edge("b", "a", "q", 1), Edge("b", "d", "r", 1)]
    assert cheapest(cycle, "a", "c") is None
    assert cheapest([*cycle, Edge("a", "a", "s", 1)], "a", "d") == [cycle[0], cycle[2]]
    assert cheapest([], "a", "b") is None


@pytest.mark.attack("D17")
def test_of_two_equal_paths_the_lower_digest_wins() -> None:
    one, other = Edge("a", "b", "p1", 5), Edge("a", "b", "p2", 5)
    assert cheapest([other, one], "a", "b") == cheapest([one, other], "a", "b") == [one]


def test_one_blob_on_two_edges_is_no_trouble() -> None:
    edges = [Edge("s", "a", "x", 1), Edge("s", "b", "x", 1), Edge("a", "t", "y", 1)]
    found = cheapest([*edges, Edge("b", "t", "y", 1), Edge("b", "t", "y", 1)], "s", "t")
    assert found == [edges[0], edges[2]]


def test_a_fork_gives_two_ways_and_then_the_full_file() -> None:
    edges = [Edge("a", "b", "direct", 900), *(Edge("a", "c", "x", 1), Edge("c", "b", "y", 1))]
    ways = plan(edges, FILES, "a", "b")
    assert [[step.sha256 for step in way] for way in ways] == [["direct"], ["x", "y"], ["b"]]
    with_undo = plan(edges, FILES, "a", "b", undo=True)
    assert [way[0].op for way in with_undo] == ["undo", "patch", "full"]
    assert with_undo[0] == [Step("undo", "b", 0, "b", 20_000)]


def test_bytes_that_nobody_knows_get_the_full_file() -> None:
    assert plan([Edge("a", "b", "p", 1)], FILES, "?", "b") == [
        [Step("full", "b", 20_000, "b", 20_000)]
    ]


def test_a_patch_as_dear_as_the_full_file_is_not_offered() -> None:
    files = [File("b", HOP_COST_BYTES + 10)]
    assert len(plan([Edge("a", "b", "p", 10)], files, "a", "b")) == 1
    assert len(plan([Edge("a", "b", "p", 9)], files, "a", "b")) == 2
