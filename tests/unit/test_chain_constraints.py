"""The planner, one constraint at a time."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from service.core.chain import (
    HASHED_HOPS_MAX,
    HOP_MS,
    PROCESS_BYTES,
    Edge,
    File,
    Limits,
    Planner,
    Step,
)

MB = 1_000_000


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
    way, full = Planner([], [File("b", MB)], "b", Limits()).pipelines("a", undo=True)
    assert way.steps == (Step("undo", "b", 0, "b", MB),) and way.cost_ms == 0
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
