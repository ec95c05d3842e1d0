"""One kind of row of `make bench-canary` each: what is drawn, and what the product says of it.

The verdicts are the product's (`service.core.canary`, `device_agent.canary`); only the devices are
drawn (`canary_fleet.py`). One looks after every report; of classes, when each has one more.
"""

import numpy as np

from benchmarks import published
from benchmarks.canary_fleet import RATE, WORDS, Fleet, Pool
from benchmarks.canary_looks import Outcome, first_said, first_verdict, said_by, sums_of
from benchmarks.drawn import quantile, share
from benchmarks.laws import generator
from benchmarks.rows import Row
from device_agent.canary import gate_refuses
from service.core.canary import UNIT, Gate, Pairs, judge, log_e_failures

GATE = Gate()
CLASSES = 8
PAIRS_MAX = 10_000
CLASS_PAIRS_MAX = 600
FINISHED_MAX = 2_000

Goals = dict[str, float]


def pooled(
    work: str, gate: Gate, fleet: Fleet | Pool, goals: Goals, runs: int, most: int = PAIRS_MAX
) -> list[Row]:
    """Measure one test on one kind of fleet."""
    rng = generator("canary", work)
    found = [first_verdict(gate, fleet.draw(gate, rng), most) for _ in range(runs)]
    return summarised(work, found, goals)


def summarised(work: str, found: list[Outcome], goals: Goals) -> list[Row]:
    """Return the shares of the verdicts, and the devices that the usual one took."""
    rows: list[Row] = []
    for kind in ("halt", "promote", "hold"):
        hits = sum((verdict or "hold") == kind for verdict, _ in found)
        rows.append(share(work, kind, hits, len(found), goals.get(f"{kind} %")))
    for kind in ("halt", "promote"):
        took = [n for verdict, n in found if verdict == kind]
        if 2 * len(took) >= len(found):
            for name, q in (("median", 0.5), ("90 %", 0.9)):
                rows.append(quantile(work, f"devices to {kind}, {name}", took, q, goals.get(name)))
    return rows


def spread(work: str, gate: Gate, fleet: Fleet | Pool, devices: int) -> list[Row]:
    """How far apart are the changes that devices report, as the product counts them?"""
    d = fleet.draw(gate, generator("canary", work))(devices)[1]
    return [Row(work, "standard deviation of a pair's change", 100 * float(d.std()) / UNIT, "pt")]


def damaged_class(work: str, change: float, goals: Goals, runs: int) -> list[Row]:
    """One class of eight is worse, the others as before: what do all tests together say?"""
    rng = generator("canary", work)
    found = [_first_of_classes(change, rng) for _ in range(runs)]
    alone = sum(by_pooled == "promote" for _, by_pooled in found)
    together = summarised(work, [outcome for outcome, _ in found], goals)
    return [*together, share(work, "pooled test alone would promote", alone, runs)]


def _first_of_classes(change: float, rng: np.random.Generator) -> tuple[Outcome, str | None]:
    fleets = [Fleet(change), *[Fleet(0.0)] * (CLASSES - 1)]
    draws = [fleet.draw(GATE, rng)(CLASS_PAIRS_MAX) for fleet in fleets]
    classes = [np.cumsum(draw, axis=1) for draw in draws]
    whole = np.sum(classes, axis=0)

    def together(look: int) -> str | None:
        parts = {str(number): sums_of(one[:, look]) for number, one in enumerate(classes)}
        return judge(GATE, Pairs(sums_of(whole[:, look]), parts))[0]

    tests = [(GATE, whole), *((GATE.of_class(CLASSES), one) for one in classes)]
    said = first_said(tests, together)
    alone = said_by(GATE, whole)
    outcome = (None, CLASS_PAIRS_MAX) if said is None else (said[0], said[1] + 1)
    return outcome, alone and alone[0]


def device_gate(work: str, factor: float, devices: int, goal: float) -> list[Row]:
    """How often does a device keep a release that has `factor` times the errors?"""
    old, new = Fleet(factor - 1).devices(generator("canary", work), devices)
    pairs = zip(old.tolist(), new.tolist(), strict=True)
    refused = sum(gate_refuses(*pair, WORDS) for pair in pairs)
    if factor == 1:
        return [share(work, "refused", refused, devices, goal)]
    return [share(work, "let in", devices - refused, devices, goal)]


def failing(work: str, share_failing: float, goals: Goals, runs: int) -> list[Row]:
    """How soon is it seen that so many devices fail? A look after each of 2,000 devices."""
    rng = generator("canary", work)
    found: list[Outcome] = []
    for _ in range(runs):
        places = np.flatnonzero(rng.random(FINISHED_MAX) < share_failing).tolist()
        evidence = (log_e_failures(GATE, k, at + 1) for k, at in enumerate(places, 1))
        speaks = (e >= GATE.threshold_failures for e in evidence)
        at = next((at for at, yes in zip(places, speaks, strict=True) if yes), None)
        found.append((None, FINISHED_MAX) if at is None else ("halt", at + 1))
    return [row for row in summarised(work, found, goals) if row.figure != "promote"]


def failing_exactly(work: str, share_failing: float) -> list[Row]:
    """Answer the same by adding up the chances of all that can happen."""
    quiet = np.zeros(FINISHED_MAX + 2)  # by how many failed: the chance, and nothing was said yet
    quiet[0], said, found, loud = 1.0, [], 0.0, 0
    for n in range(1, FINISHED_MAX + 1):
        quiet[1:] = quiet[1:] * (1 - share_failing) + quiet[:-1] * share_failing
        quiet[0] *= 1 - share_failing
        while loud <= n and log_e_failures(GATE, loud, n) < GATE.threshold_failures:
            loud += 1
        found += float(quiet[loud:].sum())
        quiet[loud:] = 0
        said.append(found)
    rows = [Row(work, "halt", 100 * found, "%")]
    if found >= 0.5:
        middle = int(np.searchsorted(said, found / 2)) + 1
        rows.append(Row(work, "devices to halt, median", middle, ""))
    return rows


def noiseless(work: str, gate: Gate, change: float) -> list[Row]:
    """How many devices does a verdict take, if all report the very same change?"""
    b = round(RATE * UNIT)
    d, devices = round(change * b), np.arange(1, PAIRS_MAX + 1)
    totals = np.array([1, d, d * d, b, b * b, d * b])[:, None] * devices
    verdict, look = said_by(gate, totals) or ("hold", PAIRS_MAX - 1)
    return [Row(work, f"devices to {verdict}", look + 1, "")]


def compared(rule: str, fleet: Fleet, runs: int, most: int = 5_000) -> list[Row]:
    """Measure which share of rollouts a rule halts, and when, with so many devices an arm."""
    work = f"{rule}: {name_of(fleet)}"
    rng = generator("canary", "compared", name_of(fleet))  # the same for every published rule
    found = [n for _ in range(runs) if (n := halted_by(rule, fleet, rng, most))]
    rows: list[Row] = [share(work, "halt", len(found), runs)]
    if 2 * len(found) >= runs:
        rows.append(quantile(work, "devices to halt, median", found, 0.5))
    return rows


def halted_by(rule: str, fleet: Fleet, rng: np.random.Generator, most: int) -> int | None:
    """Return after how many devices a rule halts, on two arms of so many, or on pairs."""
    if rule == "ours":
        verdict, n = first_verdict(GATE, fleet.draw(GATE, rng), most)
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
        return published.mixture_sprt(paired, np.arange(50, most + 1))
    z = published.z_unpaired(control, canary, planned)
    if rule == "group sequential, paired":
        z = published.z_paired(paired, planned)
    return published.group_sequential(z, planned, bounds)


def name_of(fleet: Fleet) -> str:
    """Return what is true of a fleet, in a few words."""
    lies = f", {fleet.liars:.0%} {fleet.lie}" if fleet.liars else ""
    return f"{fleet.change:+.0%}{lies}"
