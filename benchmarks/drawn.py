"""Figures that were drawn, and one rule for when such a figure misses its goal.

It misses if luck does not explain it: if even the exact one-sided interval of 99 % of what was
drawn lies beyond the goal. A share has that of Clopper and Pearson, a median (or another quantile)
the one of order statistics; neither assumes anything about the distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.rows import Row

LUCK = 0.01


@dataclass(frozen=True)
class Drawn(Row):
    """A figure of which the true value is at least `least`, with a chance of 99 %."""

    least: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the goal is not excluded."""
        return self.goal is None or self.least <= self.goal


def share(work: str, figure: str, hits: int, of: int, goal: float | None = None) -> Drawn:
    """Return a share in percent."""
    least = float(stats.beta.ppf(LUCK, hits, of - hits + 1)) if hits else 0.0
    return Drawn(work, figure, 100 * hits / of, "%", goal, 100 * least)


def quantile(
    work: str, figure: str, values: Sequence[float], q: float, goal: float | None = None
) -> Drawn:
    """Return a quantile of what was drawn."""
    # But for one chance in a hundred, at least so many are not above the true quantile.
    below = int(stats.binom.ppf(LUCK, len(values), q))
    least = sorted(values)[below - 1] if below else 0.0
    return Drawn(work, figure, float(np.quantile(values, q)), "", goal, least)
