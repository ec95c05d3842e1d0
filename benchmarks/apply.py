"""How long a device works on a patch, and how much memory it takes, against the least and bspatch.

F is what nobody can leave out: copy the old file, SHA-256 of the old, SHA-256 of the new file, done
in the same process in turn with the application. All times are processor seconds, the least of
several rounds; bspatch is a process of its own and hashes nothing. Of a chain, whose sections are
decoded ahead by a thread, the time that passes is given as well.
"""

import gc
import sys
import time
from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path

from benchmarks import ours, peers, process
from benchmarks.patch import arguments, make
from benchmarks.rows import FOLDER, Row, publish
from benchmarks.workloads import BY_NAME, WORKS, Built, Work, build, chain
from neural_diff.apply import apply

ROOM = FOLDER / "apply"
ROUNDS, PROCESS_ROUNDS = 7, 3
BLOCK_BYTES = 1 << 18
BSPATCH_MAX = 0.5  # from 2 % on
NUMPY_MIB_MAX = 12  # over Python with numpy
STDLIB_MB_MAX = 20  # the whole process
STDLIB_BSPATCH_MAX = {"int8 uniform 2.0%": 1.3, "int8 uniform 10.0%": 2.5}
LARGE = "78M int8 uniform 2.0%"
STDLIB_MEMORY = ["int8 uniform 2.0%", "int8 uniform 10.0%", LARGE]
NUMPY_MEMORY = [
    *("int8 uniform 2.0%", "int8 magnitude 10.0%", "int8 hashed 10.0%", "fp16 noise 10.0%", LARGE),
]
CHAIN, CHAIN_MAX = 5, 1.5


def floor_max(work: Work) -> float | None:
    """Give the goal of a workload as a multiple of F, or None where there is none."""
    if work.law in ("hashed", "noise"):
        return 3.2
    if work.model.kind != "int8":
        return None
    if work.law == "flips":
        return {0.05: 2.3}.get(work.density)
    if work.law == "magnitude":
        return {0.005: 1.5, 0.1: 6.0}.get(work.density)
    return {0.005: 1.5, 0.02: 2.0, 0.1: 3.2}.get(work.density)


def main() -> int:
    """Measure and publish."""
    said = arguments("make bench-apply", __doc__)
    present = {peer.name: peer for peer in peers.present(said.without)}
    bsdiff = present.get("bsdiff")
    ROOM.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for work in WORKS:
        if said.only not in work.name or work.family in ("demo", "other"):
            continue
        print(f"{work.name} ...", file=sys.stderr, flush=True)
        built = build(work)
        patch, _, _ = make(built)
        asked = bsdiff if work.quick or not said.quick else None
        rows += _warm(built, patch, asked)
        rows += _alone(built, patch, asked)
        if work.name in NUMPY_MEMORY:
            rows += _memory(work.name, built.old, patch)
        if work.name == "int8 uniform 2.0%":
            for peer in present.values():
                rows += _peer(peer, built)
    if said.only in "chain":
        rows += _chain()
    return publish("apply", rows)


def _warm(built: Built, patch: Path, bsdiff: peers.Peer | None) -> list[Row]:
    """Compare within this process: the floor, our application; bspatch for its own sake."""
    work, out = built.work, ROOM / "new"
    apply(built.old, [patch], out)
    if out.read_bytes() != built.new.read_bytes():
        sys.exit(f"{patch}: leads to another file")
    floor_s, ours_s = _least(lambda: _floor(built), lambda: apply(built.old, [patch], out))
    rows = [
        Row(work.name, "F", floor_s, "s"),
        Row(work.name, "apply, warm, numpy", ours_s, "s"),
        Row(work.name, "apply / F", ours_s / floor_s, "", floor_max(work)),
    ]
    if bsdiff and work.density >= 0.02:
        peer_s, _ = _bspatch(bsdiff, built)
        rows.append(Row(work.name, "bspatch", peer_s, "s"))
        rows.append(Row(work.name, "apply, warm / bspatch", ours_s / peer_s, "", BSPATCH_MAX))
    return rows


def _alone(built: Built, patch: Path, bsdiff: peers.Peer | None) -> list[Row]:
    """Measure a whole process with nothing but the standard library."""
    name = built.work.name
    if name not in STDLIB_MEMORY:
        return []
    command = ours.apply_command(built.old, ROOM / "new", patch, numpy=False)
    cpu_s, peak = _least_process(command)
    rows = [
        Row(name, "standard library alone, process", cpu_s, "s"),
        Row(name, "standard library alone, peak memory", peak / 1e6, "MB", STDLIB_MB_MAX),
    ]
    if bsdiff and name in STDLIB_BSPATCH_MAX:
        peer_s, _ = _bspatch(bsdiff, built)
        goal = STDLIB_BSPATCH_MAX[name]
        rows.append(Row(name, "standard library alone / bspatch", cpu_s / peer_s, "", goal))
    return rows


def _memory(name: str, old: Path, *patches: Path) -> list[Row]:
    """Measure what an application takes over a process that has loaded numpy and does nothing."""
    _, idle = _least_process(ours.idle_command(numpy=True))
    _, peak = _least_process(ours.apply_command(old, ROOM / "new", *patches, numpy=True))
    over = (peak - idle) / 2**20
    return [
        Row(name, "with numpy, peak memory", peak / 2**20, "MiB"),
        Row(name, "... over Python with numpy", over, "MiB", NUMPY_MIB_MAX),
    ]


def _peer(peer: peers.Peer, built: Built) -> list[Row]:
    made = peers.measure(peer, built.old, built.new, built.work.model.kind)
    mark = f"{peer.name}{' (cached)' if made.cached else ''}: apply"
    return [
        Row(built.work.name, f"{mark}, process", made.apply_s, "s"),
        Row(built.work.name, f"{mark}, peak memory", made.apply_peak_bytes / 2**20, "MiB"),
    ]


def _chain() -> list[Row]:
    """Apply five patches in one call, and one by one."""
    print("chain ...", file=sys.stderr, flush=True)
    steps = [build(work) for work in chain(CHAIN)]
    patches = [make(built)[0] for built in steps]
    base, out = steps[0].old, ROOM / "new"
    apply(base, patches, out)
    at_once, held = out.read_bytes(), base
    for number, patch in enumerate(patches):
        apply(held, [patch], ROOM / f"step-{number % 2}")
        held = ROOM / f"step-{number % 2}"
    differs = at_once != held.read_bytes() or at_once != steps[-1].new.read_bytes()
    works = [lambda: apply(base, patches[:1], out), lambda: apply(base, patches, out)]
    one_cpu_s, all_cpu_s = _least(*works)
    one_s, all_s = _least(*works, clock=time.perf_counter)
    name = f"chain of {CHAIN} patches of {BY_NAME['int8 uniform 2.0%'].density:.0%}"
    return [
        Row(name, "results that differ from one by one", int(differs), "", 0),
        Row(name, "one patch, CPU", one_cpu_s, "s"),
        Row(name, "all in one call, CPU", all_cpu_s, "s"),
        Row(name, "all / one, CPU", all_cpu_s / one_cpu_s, ""),
        Row(name, "one patch, elapsed", one_s, "s"),
        Row(name, "all in one call, elapsed", all_s, "s"),
        Row(name, "all / one, elapsed", all_s / one_s, "", CHAIN_MAX),
        *_memory(name, base, *patches),
    ]


def _floor(built: Built) -> None:
    with built.old.open("rb") as source, (ROOM / "copy").open("wb") as target:
        while block := source.read(BLOCK_BYTES):
            target.write(block)
    for path in (built.old, built.new):
        with path.open("rb") as file:
            file_digest(file, "sha256")


def _least(
    *works: Callable[[], object], clock: Callable[[], float] = time.process_time
) -> list[float]:
    """Do things in turn, several rounds; gives the least seconds of each, if not told of the CPU.

    What they wrote is removed before, since giving up the pages of a file takes time as well.
    """
    least = [float("inf")] * len(works)
    for _ in range(ROUNDS):
        for place, work in enumerate(works):
            for left in ROOM.iterdir():
                left.unlink()
            gc.collect()
            began = clock()
            work()
            least[place] = min(least[place], clock() - began)
    return least


def _least_process(command: peers.Command) -> tuple[float, int]:
    used = [process.run(command) for _ in range(PROCESS_ROUNDS)]
    return min(cpu_s for cpu_s, _ in used), min(peak for _, peak in used)


def _bspatch(bsdiff: peers.Peer, built: Built) -> tuple[float, int]:
    kind = built.work.model.kind
    peers.measure(bsdiff, built.old, built.new, kind)
    patch = peers.kept_patch(bsdiff, built.old, built.new, kind)
    return _least_process(bsdiff.apply(built.old, ROOM / "peer", patch, 8))


if __name__ == "__main__":
    sys.exit(main())
