"""How often the canary is wrong, and how soon it is right: its operating characteristics.

The verdicts are the product's (`service.core.canary`, `device_agent.canary`), given afresh at
every look: after every report up to 200, every tenth up to 1,000, every 25th up to 3,000, every
hundredth then; with eight classes after every eighth report up to 320, every fortieth then. Only
the devices are drawn (`benchmarks/canary_fleet.py`). At least 400 rollouts a row.

Goals are the figures of the plan. Those were drawn too: a number of devices may be a tenth
larger, the share that +3 % leaves undecided (35.5 %) by two standard errors; at a margin itself
the goal is the chance that the rule promises.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial

import numpy as np

from benchmarks import published
from benchmarks.canary_fleet import WORDS, Fleet, columns, sums_of
from benchmarks.laws import generator
from benchmarks.rows import Row, publish
from device_agent.canary import gate_refuses
from service.core.canary import Gate, Pairs, Sums, decide, judge, log_e_failures

RUNS = 400
PAIRS_MAX = 10_000
GATE = Gate()
CLASSES = 8
BLUR = 1.1  # about two standard errors of the difference of two such medians
RULES = (
    "threshold",
    "Mann-Whitney",
    "group sequential",
    "group sequential, paired",
    "mSPRT, paired",
    "ours",
)

Outcome = tuple[str | None, int]
Goals = dict[str, float]
Case = Callable[[], list[Row]]


@cache
def looks(most: int) -> list[int]:
    """Return after how many reports one looks."""
    often = [*range(1, 201), *range(210, 1_001, 10), *range(1_025, 3_001, 25)]
    times = [*often, *range(3_100, PAIRS_MAX + 1, 100)]
    return [n for n in times if n <= most]


def first_verdict(gate: Gate, fleet: Fleet, rng: np.random.Generator, most: int) -> Outcome:
    """Return the first verdict of one rollout, and after how many devices."""
    for n, sums in _running(gate, fleet, rng, most):
        if verdict := decide(gate, sums):
            return verdict, n
    return None, most


def _running(
    gate: Gate, fleet: Fleet, rng: np.random.Generator, most: int
) -> Iterator[tuple[int, Sums]]:
    total, start = np.zeros((6, 1), np.int64), 0
    while start < most:
        size = min(400, most - start)
        totals = total + np.cumsum(columns(gate, fleet, rng, size), axis=1)
        for n in looks(most):
            if start < n <= start + size:
                yield n, sums_of(totals[:, n - start - 1])
        total, start = totals[:, -1:], start + size


def pooled(
    work: str, gate: Gate, fleet: Fleet, goals: Goals, runs: int, most: int = PAIRS_MAX
) -> list[Row]:
    """Measure one rule on one kind of fleet."""
    rng = generator("canary", work)
    return summarised(work, [first_verdict(gate, fleet, rng, most) for _ in range(runs)], goals)


def summarised(work: str, found: list[Outcome], goals: Goals) -> list[Row]:
    """Return the shares of the verdicts, and the devices that the usual one took."""
    rows = []
    for kind in ("halt", "promote", None):
        share = 100 * sum(verdict == kind for verdict, _ in found) / len(found)
        rows.append(Row(work, kind or "hold", share, "%", goals.get(f"{kind or 'hold'} %")))
    for kind in ("halt", "promote"):
        took = [n for verdict, n in found if verdict == kind]
        if 2 * len(took) >= len(found):
            middle, most = statistics.median(took), float(np.quantile(took, 0.9))
            for figure, value in (("median", middle), ("90 %", most)):
                goal = BLUR * goals[figure] if figure in goals else None
                rows.append(Row(work, f"devices to {kind}, {figure}", value, "", goal))
    return rows


def damaged_class(work: str, change: float, goals: Goals, runs: int) -> list[Row]:
    """One class of eight is worse, the others as before: what do all tests together say?"""
    rng, found, alone = generator("canary", work), [], 0
    for _ in range(runs):
        verdict, devices, pooled_verdict = _first_of_classes(change, rng, 600)
        found.append((verdict, devices))
        alone += pooled_verdict == "promote"
    rows = summarised(work, found, goals)
    return [*rows, Row(work, "pooled test alone would promote", 100 * alone / runs, "%")]


def _first_of_classes(
    change: float, rng: np.random.Generator, most: int
) -> tuple[str | None, int, str | None]:
    fleets = [Fleet(change), *[Fleet(0.0)] * (CLASSES - 1)]
    totals = np.array([np.cumsum(columns(GATE, fleet, rng, most), axis=1) for fleet in fleets])
    verdict, devices, alone = None, most, None
    for n in [*range(40), *range(44, most, 5)]:
        whole = sums_of(totals[:, :, n].sum(axis=0))
        alone = alone or decide(GATE, whole)
        if verdict is None:
            classes = {str(i): sums_of(one[:, n]) for i, one in enumerate(totals)}
            verdict, _ = judge(GATE, Pairs(whole, classes))
            devices = n + 1
        if verdict and alone:
            break
    return verdict, devices, alone


def device_gate(work: str, factor: float, devices: int, goal: float) -> list[Row]:
    """How often does a device keep a release that has `factor` times the errors?"""
    old, new = Fleet(factor - 1).devices(generator("canary", work), devices)
    pairs = zip(old.tolist(), new.tolist(), strict=True)
    refused = 100 * sum(gate_refuses(*pair, WORDS) for pair in pairs) / devices
    if factor == 1:
        return [Row(work, "refused", refused, "%", goal)]
    return [Row(work, "let in", 100 - refused, "%", goal)]


def failing(work: str, share: float, goals: Goals, runs: int) -> list[Row]:
    """How soon is it seen that so many devices fail? A look after every device, 2,000 of them."""
    rng = generator("canary", work)
    found: list[Outcome] = []
    for _ in range(runs):
        places = np.flatnonzero(rng.random(2_000) < share).tolist()
        evidence = (log_e_failures(GATE, k, at + 1) for k, at in enumerate(places, 1))
        speaks = (e >= GATE.threshold_failures for e in evidence)
        at = next((at for at, yes in zip(places, speaks, strict=True) if yes), None)
        found.append((None, 2_000) if at is None else ("halt", at + 1))
    return [row for row in summarised(work, found, goals) if row.figure != "promote"]


def halted_by(rule: str, fleet: Fleet, rng: np.random.Generator, most: int) -> int | None:
    """Return after how many devices a rule halts, on two arms of so many, or on pairs."""
    if rule == "ours":
        verdict, n = first_verdict(GATE, fleet, rng, most)
        return n if verdict == "halt" else None
    (old, new), (other, _) = fleet.devices(rng, most), fleet.devices(rng, most)
    paired, control, canary = (new - old) / WORDS, other / WORDS, new / WORDS
    planned = np.arange(most // 20, most + 1, most // 20)
    bounds = published.spending_bounds(len(planned))
    if rule == "threshold":
        return published.threshold(control, canary)
    if rule == "Mann-Whitney":
        return published.mann_whitney(control, canary)
    if rule == "mSPRT, paired":
        often = np.array([n for n in looks(most) if n >= 50])
        return published.mixture_sprt(paired, often)
    z = published.z_unpaired(control, canary, planned)
    if rule == "group sequential, paired":
        z = published.z_paired(paired, planned)
    return published.group_sequential(z, planned, bounds)


def compared(rule: str, fleet: Fleet, runs: int) -> list[Row]:
    """Measure which share of rollouts a rule halts, and when, with 5,000 devices."""
    rng = generator("canary", "compared", _name(fleet))  # the same for every published rule
    found = [n for _ in range(runs) if (n := halted_by(rule, fleet, rng, 5_000))]
    rows = [Row(f"{rule}: {_name(fleet)}", "halt", 100 * len(found) / runs, "%")]
    if 2 * len(found) >= runs:
        middle = statistics.median(found)
        rows.append(Row(f"{rule}: {_name(fleet)}", "devices to halt", middle, ""))
    return rows


def creep(runs: int) -> list[Case]:
    """Five releases, each 1.5 % worse than the one before, against the base of the chain."""
    rule = GATE.of_chain(CLASSES)
    goals: list[Goals] = [
        {"halt %": 0, "hold %": 0, "median": 181},
        {"halt %": 0, "hold %": 0, "median": 671},
        {"halt %": 0, "hold %": 30},
        {"promote %": 0},
        {"promote %": 0, "hold %": 1.5},
    ]
    return [
        partial(pooled, f"creep, release {k}", rule, Fleet(1.015**k - 1), goal, runs)
        for k, goal in enumerate(goals, 1)
    ]


def rollouts(runs: int) -> list[Case]:
    """The default gate on honest fleets and on others; goals: the plan's figures."""
    honest: list[tuple[float, Goals]] = [
        (-0.05, {"halt %": 0, "hold %": 0, "median": 101, "90 %": 119}),
        (0.0, {"halt %": 0, "hold %": 0, "median": 617, "90 %": 1084}),
        (0.01, {"halt %": 0, "hold %": 1.2, "median": 2814, "90 %": 5658}),
        (0.02, {"halt %": 0.5, "promote %": 5}),
        (0.03, {"promote %": 0, "hold %": 42.3, "median": 6330}),
        (0.05, {"promote %": 0, "hold %": 0, "median": 534, "90 %": 793}),
        (0.10, {"promote %": 0, "hold %": 0, "median": 119, "90 %": 153}),
        (0.20, {"promote %": 0, "hold %": 0, "median": 53, "90 %": 60}),
        (0.50, {"promote %": 0, "hold %": 0, "median": 32, "90 %": 34}),
    ]
    poisoned: list[tuple[Fleet, Goals]] = [
        (Fleet(0.0, 0.01), {"halt %": 0, "hold %": 0, "median": 870}),
        (Fleet(0.05, 0.01, "deflate"), {"promote %": 0, "hold %": 0, "median": 826}),
        (Fleet(0.03, 0.01, "deflate"), {"promote %": 0}),
        (Fleet(0.0, 0.05), {"halt %": 0}),
        (Fleet(0.05, 0.05, "deflate"), {"promote %": 0}),
        (Fleet(0.20, 0.05, "deflate"), {"promote %": 0, "hold %": 0, "median": 76}),
    ]
    fleets = [(Fleet(change), goals) for change, goals in honest] + poisoned
    return [partial(pooled, _name(fleet), GATE, fleet, goals, runs) for fleet, goals in fleets]


def parts(runs: int) -> list[Case]:
    """One class, one class of eight, failing devices, and the gate on the device."""
    rule, name = GATE.of_class(CLASSES), "one class alone"
    one: list[tuple[float, Goals]] = [
        (0.0, {"halt %": 0, "hold %": 0, "median": 75, "90 %": 95}),
        (0.05, {"halt %": 0, "hold %": 0, "median": 191}),
        (0.10, {"halt %": 0, "promote %": 5}),
        (0.20, {"promote %": 0, "hold %": 0, "median": 218}),
        (0.50, {"promote %": 0, "hold %": 0, "median": 75}),
        (1.00, {"promote %": 0, "hold %": 0, "median": 67}),
    ]
    shares = [(0.05, 5.0, 290), (0.1, 0.0, 60), (0.2, 0.0, 23), (0.5, 0.0, 9)]
    gates = [(1.0, 0.0), (1.5, 97.45), (2.0, 54.5), (3.0, 5.5), (6.0, 0.0045)]
    return [
        *[partial(pooled, f"{name}, {c:+.0%}", rule, Fleet(c), g, runs, 8_000) for c, g in one],
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
            partial(device_gate, f"device gate, errors x {f:g}", f, 1_000 * runs, goal)
            for f, goal in gates
        ],
    ]


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


def _name(fleet: Fleet) -> str:
    lies = f", {fleet.liars:.0%} {fleet.lie}" if fleet.liars else ""
    return f"{fleet.change:+.0%}{lies}"


def main() -> int:
    """Measure on every processor, and publish."""
    work = [case for part in (null, rollouts, parts, creep, comparison) for case in part(RUNS)]
    with ProcessPoolExecutor() as pool:
        rows = [pool.submit(case) for case in work]
        return publish("canary", [row for found in rows for row in found.result()])


if __name__ == "__main__":
    sys.exit(main())
