"""When would the product have spoken first, if one looked after every single report?

That is the hardest schedule for a promise about "whenever you like", and the quickest to end. Each
verdict is the product's own; most looks need not be taken, since one answers for a whole range of
them: the evidence rises with the sum and falls with the squares, so where nothing would be said
of the largest sum and the smallest squares of a range, nothing is said at any look inside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from service.core.canary import UNIT, Gate, Sums, decide
from service.core.evidence import log_e, sharpest

Counts = NDArray[np.int64]
Draw = Callable[[int], Counts]  # what so many more devices add to the six sums, one column each
Say = Callable[[int], str | None]  # the product's word at one look
Outcome = tuple[str | None, int]

ROUNDING = 1e-6  # in nats
CHUNKS = (0, 128, 512, 2_048, *range(4_096, 100_000, 2_048))


@dataclass(frozen=True)
class Side:
    """One of the two questions of a test, at every look of a range."""

    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    rho: float
    c: float
    threshold: float

    def may_speak(self, first: int, end: int) -> bool:
        """Whether this side could reach its threshold at any look from `first` to before `end`."""
        largest = float(self.sums[first:end].max())
        beyond = log_e(largest, float(self.squares[first]), self.rho, self.c)
        return beyond >= self.threshold - ROUNDING


def sides_of(gate: Gate, totals: Counts) -> tuple[Side, Side]:
    """Return what halts and what promotes, from the running totals of the six sums."""
    n, sd, sdd, sb, sbb, sdb = totals.astype(np.float64)
    m, least = gate.margin_rel, gate.clip + gate.margin_rel * gate.base_cap
    sums = (sd - m * sb) / UNIT
    squares = np.maximum((sdd + m * m * sbb - 2 * m * sdb) / UNIT**2, 0.0)
    budget = np.minimum(gate.hostile_count + gate.hostile_share * n, n)
    variance = gate.pairs_expected * gate.sigma**2
    halt, promote = (sharpest(variance, alpha) for alpha in (gate.alpha_halt, gate.alpha_promote))
    return (
        Side(sums - budget * gate.clip, squares, halt, least, gate.threshold_halt),
        Side(-sums - budget * least, squares, promote, gate.clip, gate.threshold_promote),
    )


def first_said(tests: Sequence[tuple[Gate, Counts]], say: Say) -> tuple[str, int] | None:
    """Return the first verdict on tests of which any may halt and all must promote; and its look.

    Args:
        tests: the rule of each, and the running totals at each look.
        say: the product's verdict at one look.
    """
    halts, promotes = zip(*(sides_of(*test) for test in tests), strict=True)

    def search(first: int, end: int) -> tuple[str, int] | None:
        may_halt = any(side.may_speak(first, end) for side in halts)
        if not may_halt and not all(side.may_speak(first, end) for side in promotes):
            return None
        if end - first == 1:
            verdict = say(first)
            return None if verdict is None else (verdict, first)
        middle = (first + end) // 2
        return search(first, middle) or search(middle, end)

    return search(0, tests[0][1].shape[1])


def said_by(gate: Gate, totals: Counts) -> tuple[str, int] | None:
    """Return the first verdict by one test, and its look."""
    return first_said([(gate, totals)], lambda look: decide(gate, sums_of(totals[:, look])))


def first_verdict(gate: Gate, draw: Draw, most: int) -> Outcome:
    """Return the first verdict of one rollout by one test, and after how many devices."""
    total = np.zeros((6, 1), np.int64)
    for start, end in pairwise(CHUNKS):
        totals = total + np.cumsum(draw(min(end, most) - start), axis=1)
        if said := said_by(gate, totals):
            return said[0], start + said[1] + 1
        if end >= most:
            break
        total = totals[:, -1:]
    return None, most


def sums_of(column: Counts) -> Sums:
    """Return one column of running totals as the state of the statistic."""
    return Sums(*column.tolist())
