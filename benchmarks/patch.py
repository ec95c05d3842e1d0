"""How large a patch is: against the least that any code can reach, and against its peers.

`--quick` runs the peers on the workloads of 2 % only; `--only WORD` those whose name has the word.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import ours, process
from benchmarks.rows import FOLDER, Row, publish
from benchmarks.workloads import WORKS, Built, build

PATCHES = FOLDER / "patches"
FULL_MAX = 1.01  # of the whole file, whatever changed
CREATE_S_MAX = 2.0  # processor seconds per 24 million weights
WEIGHTS = 24e6


def main() -> int:
    """Measure and publish."""
    said = _arguments()
    rows: list[Row] = []
    for work in WORKS:
        if said.only not in work.name:
            continue
        built = build(work)
        print(f"{work.name} ...", file=sys.stderr, flush=True)
        rows += _ours(built)
    return publish("patch", rows)


def make(built: Built) -> tuple[Path, float, int]:
    """Make our patch of a workload; gives it, and what making it used."""
    PATCHES.mkdir(parents=True, exist_ok=True)
    patch = PATCHES / f"{built.work.name.replace(' ', '-')}.ndiff"
    return patch, *process.run(ours.make_command(built.old, built.new, built.buckets, patch))


def _ours(built: Built) -> list[Row]:
    work, (patch, cpu_s, peak) = built.work, make(built)
    size, full = patch.stat().st_size, built.new.stat().st_size
    rows = [Row(work.name, "patch", size, "B")]
    if built.bound_bytes:
        rows.append(Row(work.name, "bound", built.bound_bytes, "B"))
        rows.append(Row(work.name, "patch / bound", size / built.bound_bytes, "", work.goal))
    rows.append(Row(work.name, "patch / full file", size / full, "", FULL_MAX))
    per_weights = cpu_s / (built.weights / WEIGHTS)
    if work.family != "demo":
        rows.append(Row(work.name, "create, CPU per 24 M weights", per_weights, "s", CREATE_S_MAX))
    return [*rows, Row(work.name, "create, peak memory", peak / 2**20, "MiB")]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-patch", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="peers on few workloads")
    parser.add_argument("--only", default="", metavar="WORD", help="workloads by name")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
