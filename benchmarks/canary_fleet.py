"""Devices that never were: word errors of an old and of a new model, and liars among them.

A device hears 500 words. Its errors are Poisson about a mean that differs between people (CV 0.5)
and days (CV 0.2), 10 % of the words on average. The new model keeps seven of ten errors and makes
others instead; by how many more is the change, which differs between devices (5 %). The paired
change has a standard deviation of 1.24 points. A liar tells the worst that passes validation.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from service.core.canary import Gate, Sums, contribution

WORDS = 500
RATE = 0.10
CHURN = 0.3
CHANGE_SPREAD = 0.05
LIES = {"inflate": (0, WORDS), "deflate": (WORDS, 0)}

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Fleet:
    """What is true of a release: its change, and which share of the devices lies, and how."""

    change: float
    liars: float = 0.0
    lie: str = "inflate"

    def devices(self, rng: np.random.Generator, n: int) -> tuple[Counts, Counts]:
        """Return the errors of the old and of the new model on n devices."""
        spread = np.log(1 + 0.5**2)
        people = rng.lognormal(-spread / 2, np.sqrt(spread), n)
        mean = WORDS * RATE * people * rng.gamma(25, 1 / 25, n)
        old = rng.poisson(mean)
        change = self.change + rng.normal(0, CHANGE_SPREAD, n)
        new = rng.binomial(old, 1 - CHURN) + rng.poisson(mean * np.maximum(CHURN + change, 0))
        lying = rng.random(n) < self.liars
        old[lying], new[lying] = LIES[self.lie]
        return np.minimum(old, 2 * WORDS), np.minimum(new, 2 * WORDS)


@cache
def _counted(gate: Gate, old: int, new: int) -> tuple[int, int]:
    return contribution(gate, old, new, WORDS)


def columns(gate: Gate, fleet: Fleet, rng: np.random.Generator, n: int) -> Counts:
    """Return what n devices add to the six sums, one column a device; the product counts."""
    old, new = fleet.devices(rng, n)
    pairs = [_counted(gate, *pair) for pair in zip(old.tolist(), new.tolist(), strict=True)]
    d, b = np.array(pairs, np.int64).T
    return np.array([np.ones(n, np.int64), d, d * d, b, b * b, d * b])


def sums_of(column: Counts) -> Sums:
    """Return one column of running totals as the state of the statistic."""
    return Sums(*column.tolist())
