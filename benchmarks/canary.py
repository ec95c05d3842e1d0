"""How often the canary is wrong, and how soon it is right: its operating characteristics.

Goals are the figures that the rule was chosen by (the design page), as printed: a share that is
rounded there stands for the nearest one that rounds to it. At a margin itself the goal is the
chance that the rule promises. One rule says whether a goal is held (`drawn.py`): it is, unless the
exact one-sided interval of 99 % of what was drawn excludes it. It was fixed before the first whole
run.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial

from benchmarks.canary_fleet import CHURN, Fleet, Pool
from benchmarks.canary_rows import (
    CLASSES,
    GATE,
    Goals,
    compared,
    damaged_class,
    device_gate,
    failing,
    failing_exactly,
    name_of,
    noiseless,
    pooled,
    spread,
)
from benchmarks.rows import Row, publish

RUNS = 400
RUNS_QUICK = 20
RULES = (
    "threshold",
    "Mann-Whitney",
    "group sequential",
    "group sequential, paired",
    "mSPRT, paired",
    "ours",
)

Case = Callable[[], list[Row]]


def rollouts(runs: int) -> list[Case]:
    """The default gate on honest fleets and on others (2.3 and 2.4 of the design)."""
    honest: list[tuple[float, Goals]] = [
        (-0.05, {"halt %": 0, "hold %": 0, "median": 101, "90 %": 119}),
        (0.0, {"halt %": 0, "hold %": 0, "median": 617, "90 %": 1084}),
        (0.01, {"halt %": 0, "hold %": 1.25, "median": 2814, "90 %": 5658}),
        (0.02, {"halt %": 0.5, "promote %": 5}),
        (0.03, {"promote %": 0, "hold %": 35.5, "median": 6330, "90 %": 9069}),
        (0.05, {"promote %": 0, "hold %": 0, "median": 534, "90 %": 793}),
        (0.10, {"promote %": 0, "hold %": 0, "median": 119, "90 %": 153}),
        (0.20, {"promote %": 0, "hold %": 0, "median": 53, "90 %": 60}),
        (0.50, {"promote %": 0, "hold %": 0, "median": 32, "90 %": 34}),
    ]
    poisoned: list[tuple[Fleet, Goals]] = [
        (Fleet(0.0, 0.01), {"halt %": 0, "hold %": 0, "median": 870}),
        (Fleet(0.05, 0.01, "deflate"), {"promote %": 0, "hold %": 0, "median": 826}),
        (Fleet(0.03, 0.01, "deflate"), {"promote %": 0, "hold %": 99.5}),
        (Fleet(0.0, 0.05), {"halt %": 0, "hold %": 98.5}),
        (Fleet(0.05, 0.05, "deflate"), {"promote %": 0, "hold %": 97.5}),
        (Fleet(0.20, 0.05, "deflate"), {"promote %": 0, "hold %": 0, "median": 76}),
    ]
    fleets = [(Fleet(change), goals) for change, goals in honest] + poisoned
    return [partial(pooled, name_of(fleet), GATE, fleet, goals, runs) for fleet, goals in fleets]


def parts(runs: int) -> list[Case]:
    """One class, one class of eight, failing devices, and the gate on the device (2.5)."""
    rule, name = GATE.of_class(CLASSES), "one class alone"
    one: list[tuple[float, Goals]] = [
        (0.0, {"halt %": 0, "hold %": 0, "median": 75, "90 %": 95}),
        (0.05, {"halt %": 0, "hold %": 0, "median": 191}),
        (0.10, {"halt %": 0, "promote %": 5}),
        (0.20, {"promote %": 0, "hold %": 0, "median": 218}),
        (0.50, {"promote %": 0, "hold %": 0, "median": 75}),
        (1.00, {"promote %": 0, "hold %": 0, "median": 67}),
    ]
    shares = [(0.05, 5.5, 290), (0.1, 0.0, 60), (0.2, 0.0, 23), (0.5, 0.0, 9)]
    gates = [(1.0, 0.0), (1.5, 97.45), (2.0, 54.5), (3.0, 5.5), (6.0, 0.0045)]
    return [
        *[partial(pooled, f"{name}, {c:+.0%}", rule, Fleet(c), g, runs, 8_000) for c, g in one],
        partial(
            *(pooled, f"{name}, +10%, base_cap 0.3", replace(rule, base_cap=0.3)),
            *(Fleet(0.1), {}, runs, 8_000),
        ),
        partial(damaged_class, "eight classes, none worse", 0.0, {"halt %": 0, "hold %": 0}, runs),
        *[
            partial(damaged_class, f"eight classes, one {change:+.0%}", change, goals, runs)
            for change, goals in ((0.10, {"promote %": 0.0}), *one[3:])
        ],
        partial(failing, "failing devices, 2 %", 0.02, {"halt %": 0.5}, 5 * runs),
        *[
            partial(failing, f"failing devices, {s:.0%}", s, {"hold %": h, "median": m}, 5 * runs)
            for s, h, m in shares
        ],
        *[
            partial(failing_exactly, f"failing devices, {s:.0%}, exactly", s)
            for s in (0.02, *[s for s, _, _ in shares])
        ],
        *[
            partial(device_gate, f"device gate, errors x {f:g}", f, 1_000 * runs, goal)
            for f, goal in gates
        ],
    ]


def creep(runs: int) -> list[Case]:
    """Five releases, each 1.5 % worse than the one before, against the base of the chain (2.7).

    Each keeps seven of ten errors of the one before, so of the base's errors fewer and fewer. The
    fleet has one hardware class, so the chain has all of `alpha_parts`.
    """
    goals: list[Goals] = [
        {"halt %": 0, "hold %": 0, "median": 181},
        {"halt %": 0, "hold %": 0, "median": 671},
        {"halt %": 0, "hold %": 30},
        {"promote %": 0},
        {"promote %": 0, "hold %": 1.5},
    ]
    rule = GATE.of_chain(0)
    return [
        partial(pooled, f"creep, release {k}{name}", gate, fleet, goal, runs)
        for name, gate in (("", rule), (", base_cap 0.3", replace(rule, base_cap=0.3)))
        for k, goal in enumerate(goals, 1)
        for fleet in [Fleet(1.015**k - 1, churn=1 - (1 - CHURN) ** k)]
    ]


def sets(runs: int) -> list[Case]:
    """How large the canary set is, and what it saves to know it (2.6)."""
    sizes: list[tuple[int, Goals]] = [
        (1, {"halt %": 40.7}),
        (10, {"halt %": 19.3}),
        (100, {"halt %": 0.7}),
        (1_000, {"halt %": 0}),
    ]
    pools = [(Pool(0.0, shards, 0.0, known=False), goals) for shards, goals in sizes]
    known: list[tuple[float, Goals]] = [
        (0.0, {"median": 108}),
        (0.01, {"median": 240}),
        (0.05, {"median": 110}),
    ]
    alike, apart = Pool(0.0, differing=1 / 15, spread=0.0), Pool(0.0)
    fleets = {"known shards, engines alike": alike, "known shards, engines differ": apart}
    fleets |= {"the same shards, not known": replace(apart, known=False)}
    return [
        *[
            partial(pooled, f"a set of {500 * pool.shards:,} words, no change", GATE, pool, g, runs)
            for pool, g in pools
        ],
        *[partial(spread, name, GATE, fleet, 250 * runs) for name, fleet in fleets.items()],
        *[
            partial(pooled, f"{name}, {c:+.0%}", GATE, replace(fleet, change=c), goals, runs)
            for name, fleet in fleets.items()
            for c, goal in known
            for goals in [goal if fleet.known else {}]
        ],
    ]


def floors(_: int) -> list[Case]:
    """What the rule itself asks for, however little noise there is."""
    chain, one = GATE.of_chain(0), GATE.of_class(CLASSES)
    asked = [("", GATE, 0.0), ("", GATE, 0.01), ("", GATE, 0.05)]
    asked += [("nobody lies, ", GATE.trusting(), change) for change in (0.0, 0.01, 0.05)]
    asked += [("chain, ", chain, 1.015**k - 1) for k in (1, 2, 3)] + [("class, ", one, 0.0)]
    return [partial(noiseless, f"no noise, {what}{c:+.1%}", gate, c) for what, gate, c in asked]


def null(runs: int) -> list[Case]:
    """Any harm counts, nobody lies, nothing changed: the chance of a wrong halt, 1 % allowed."""
    rule = replace(GATE.trusting(), margin_rel=0.0, alpha_halt=0.01, pairs_promote_least=10**7)
    work = "no margin, no budget, alpha 1 %, no change"
    return [partial(pooled, work, rule, Fleet(0.0), {"halt %": 1.0}, 10 * runs, 3_000)]


def comparison(runs: int) -> list[Case]:
    """The published rules and ours on the same fleets."""
    fleets = [Fleet(0.0), Fleet(0.05), Fleet(0.2), Fleet(0.0, 0.01), Fleet(0.0, 0.05)]
    fleets += [Fleet(0.05, 0.01, "deflate"), Fleet(0.2, 0.05, "deflate")]
    return [partial(compared, rule, fleet, runs) for rule in RULES for fleet in fleets]


def cases(runs: int) -> list[Case]:
    """Return everything that is measured, in the order of the table."""
    parts_of = (rollouts, parts, creep, sets, floors, null, comparison)
    return [case for part in parts_of for case in part(runs)]


def measured(work: list[Case], processes: int) -> list[Row]:
    """Return the rows of all cases, and say which are done."""
    began = time.monotonic()
    with ProcessPoolExecutor(processes) as pool:
        futures = [pool.submit(case) for case in work]
        for done, future in enumerate(as_completed(futures), 1):
            name = future.result()[0].work
            spent = time.monotonic() - began
            print(f"{done:>3} of {len(work)}, {spent:5.0f} s: {name}", file=sys.stderr, flush=True)
        return [row for future in futures for row in future.result()]


def main() -> int:
    """Measure everything, and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{RUNS_QUICK} runs a row, no figures")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: all")
    asked = parser.parse_args()
    rows = measured(cases(RUNS_QUICK if asked.quick else RUNS), asked.processes)
    return publish("canary-quick" if asked.quick else "canary", rows)


if __name__ == "__main__":
    sys.exit(main())
