"""How large a patch is, against the least that any code can reach and against its peers.

Everything is made in this one run, on the same files; what peers made before is shown as `cached`.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import ours, peers, process
from benchmarks.peers import Made, Peer
from benchmarks.rows import FOLDER, Row, publish
from benchmarks.workloads import WORKS, Built, build

PATCHES = FOLDER / "patches"
FULL_MAX = 1.01  # of the whole file, whatever changed
PEER_MAX = 1.0
HASHED_PEER_MAX = 1 / 45  # a hashed change of 2 %: nothing else knows what it is
CREATE_S_MAX = 2.0  # processor seconds per 24 million weights
CREATE_BSDIFF_MAX = 0.1
WEIGHTS = 24e6


def main() -> int:
    """Measure and publish."""
    said = arguments("make bench-patch", __doc__)
    present = peers.present(said.without)
    rows: list[Row] = []
    table = [["update", "patch, B", "of file", "/ bound", *(p.name for p in present)]]
    for work in WORKS:
        if said.only not in work.name:
            continue
        built = build(work)
        print(f"{work.name} ...", file=sys.stderr, flush=True)
        patch, cpu_s, peak = make(built)
        rows += _ours(built, patch.stat().st_size, cpu_s, peak)
        asked = present if work.quick or not said.quick else []
        found = {peer.name: _peer(peer, built) for peer in asked}
        rows += _against(built, patch.stat().st_size, cpu_s, found)
        table.append(_line(built, patch.stat().st_size, [found.get(p.name) for p in present]))
    ended = publish("patch", rows)
    print("\nPeers: their patch as a multiple of ours.\n")
    print("\n".join(f"| {' | '.join(line)} |" for line in [table[0], _rule(table[0]), *table[1:]]))
    return ended


def make(built: Built) -> tuple[Path, float, int]:
    """Make our patch of a workload; gives it, and what making it used."""
    PATCHES.mkdir(parents=True, exist_ok=True)
    patch = PATCHES / f"{built.work.name.replace(' ', '-')}.ndiff"
    return patch, *process.run(ours.make_command(built.old, built.new, built.buckets, patch))


def arguments(program: str, said: str | None) -> argparse.Namespace:
    """Read the words after the command."""
    parser = argparse.ArgumentParser(prog=program, description=said)
    parser.add_argument("--quick", action="store_true", help="peers on few workloads")
    parser.add_argument("--only", default="", metavar="WORD", help="workloads with it in the name")
    parser.add_argument(
        "--without", action="append", default=[], choices=peers.NAMES, help="leave a peer out"
    )
    return parser.parse_args()


def _ours(built: Built, size: int, cpu_s: float, peak: int) -> list[Row]:
    work, full = built.work, built.new.stat().st_size
    rows = [Row(work.name, "patch", size, "B")]
    if built.bound_bytes:
        rows.append(Row(work.name, "bound", built.bound_bytes, "B"))
        rows.append(Row(work.name, "patch / bound", size / built.bound_bytes, "", work.goal))
    rows.append(Row(work.name, "patch / full file", size / full, "", FULL_MAX))
    if work.family != "demo":
        per_weights = cpu_s / (built.weights / WEIGHTS)
        rows.append(Row(work.name, "create, CPU per 24 M weights", per_weights, "s", CREATE_S_MAX))
    return [*rows, Row(work.name, "create, peak memory", peak / 2**20, "MiB")]


def _peer(peer: Peer, built: Built) -> Made:
    print(f"    {peer.name} ...", file=sys.stderr, flush=True)
    return peers.measure(peer, built.old, built.new, built.work.model.kind)


def _against(built: Built, size: int, cpu_s: float, found: dict[str, Made]) -> list[Row]:
    work, rows = built.work, []
    for name, made in found.items():
        mark = " (cached)" if made.cached else ""
        rows.append(Row(work.name, f"{name}{mark}: patch", made.patch_bytes, "B"))
        rows.append(Row(work.name, f"{name}{mark}: create, CPU", made.make_s, "s"))
        peak = made.make_peak_bytes / 2**20
        rows.append(Row(work.name, f"{name}{mark}: create, peak memory", peak, "MiB"))
    if found:
        best = min(found, key=lambda name: found[name].patch_bytes)
        goal = HASHED_PEER_MAX if work.name == "int8 hashed 2.0%" else PEER_MAX
        ratio = size / found[best].patch_bytes
        rows.append(Row(work.name, f"patch / smallest peer's ({best})", ratio, "", goal))
    if "bsdiff" in found and work.family != "demo":
        ratio = cpu_s / found["bsdiff"].make_s
        rows.append(Row(work.name, "create, CPU / bsdiff's", ratio, "", CREATE_BSDIFF_MAX))
    return rows


def _line(built: Built, size: int, found: list[Made | None]) -> list[str]:
    bound = f"{size / built.bound_bytes:.4f}" if built.bound_bytes else ""
    share = f"{size / built.new.stat().st_size:.2%}"
    times = [f"{made.patch_bytes / size:.3f}" if made else "" for made in found]
    return [built.work.name, f"{size:,}", share, bound, *times]


def _rule(head: list[str]) -> list[str]:
    return ["---", *("---:" for _ in head[1:])]


if __name__ == "__main__":
    sys.exit(main())
