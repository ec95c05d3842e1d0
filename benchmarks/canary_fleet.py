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

from benchmarks.canary_looks import Counts, Draw
from service.core.canary import Gate, contribution
from service.core.evaluation import known_changes

WORDS = 500
RATE = 0.10
CHURN = 0.3
CHANGE_SPREAD = 0.05
ERRORS_MAX = 2 * WORDS
LIES = {"inflate": (0, WORDS), "deflate": (WORDS, 0)}


def means(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Return how many errors of the old model are to be expected, n times."""
    spread = np.log(1 + 0.5**2)
    people = rng.lognormal(-spread / 2, np.sqrt(spread), n)
    return np.asarray(WORDS * RATE * people * rng.gamma(25, 1 / 25, n))


@dataclass(frozen=True)
class Fleet:
    """What is true of a release: its change, and which share of the devices lies, and how.

    Attributes:
        churn: share of the old model's errors that the new one does not make; it makes others.
    """

    change: float
    liars: float = 0.0
    lie: str = "inflate"
    churn: float = CHURN

    def devices(self, rng: np.random.Generator, n: int) -> tuple[Counts, Counts]:
        """Return the errors of the old and of the new model on n devices."""
        mean = means(rng, n)
        old = rng.poisson(mean)
        change = self.change + rng.normal(0, CHANGE_SPREAD, n)
        made = rng.poisson(mean * np.maximum(self.churn + change, 0))
        new = rng.binomial(old, 1 - self.churn) + made
        lying = rng.random(n) < self.liars
        old[lying], new[lying] = LIES[self.lie]
        return np.minimum(old, ERRORS_MAX), np.minimum(new, ERRORS_MAX)

    def draw(self, gate: Gate, rng: np.random.Generator) -> Draw:
        """Begin a rollout: return what gives its devices, as the product counts them."""
        return lambda n: _columns(*_counted(gate, *self.devices(rng, n)))


@dataclass(frozen=True)
class Pool:
    """A canary set that was recorded once: devices that hear the same shard err much alike.

    Attributes:
        shards: of 500 words each, drawn anew for every rollout.
        differing: share of the errors that a device makes otherwise than the maker's machine.
        spread: of the change, between devices.
        known: whether the release carries what its maker measured on each shard.
    """

    change: float
    shards: int = 1_000
    differing: float = 1 / 30
    spread: float = CHANGE_SPREAD
    known: bool = True

    def draw(self, gate: Gate, rng: np.random.Generator) -> Draw:
        """Begin a rollout: draw the set, and return what gives its devices."""
        mean = means(rng, self.shards)
        rates = (1 - CHURN) * mean, CHURN * mean, (CHURN + self.change) * mean
        kept, mended, made = heard = tuple(rng.poisson(rate) for rate in rates)
        said = {"old": (kept + mended).tolist(), "new": (kept + made).tolist()}
        listed = [{"id": str(shard), "ref_words": WORDS} for shard in range(self.shards)]

        known = list(known_changes(gate, said, listed).values()) if self.known else []

        def more(n: int) -> Counts:
            at = rng.integers(self.shards, size=n)
            own = rng.normal(0, self.spread, n) / (CHURN + self.change)
            factors = 1.0, 1.0, np.maximum(1 + own, 0)
            kept, mended, made = (
                self._again(rng, errors[at], rate[at], factor)
                for errors, rate, factor in zip(heard, rates, factors, strict=True)
            )
            old = np.minimum(kept + mended, ERRORS_MAX)
            new = np.minimum(kept + made, ERRORS_MAX)
            if not self.known:
                return _columns(*_counted(gate, old, new))
            rows = zip(old.tolist(), new.tolist(), at.tolist(), strict=True)
            pairs = [contribution(gate, o, e, WORDS, known[shard]) for o, e, shard in rows]
            return _columns(*np.array(pairs, np.int64).T)

        return more

    def _again(
        self,
        rng: np.random.Generator,
        errors: Counts,
        rate: NDArray[np.float64],
        factor: NDArray[np.float64] | float,
    ) -> Counts:
        """Return what devices make of the errors that the maker's machine made."""
        same = (1 - self.differing) * np.minimum(factor, 1)
        return np.asarray(rng.binomial(errors, same) + rng.poisson(rate * (factor - same)))


@cache
def _table(gate: Gate) -> Counts:
    """Return a place for each pair of counts; what the product makes of it is filled in later."""
    return np.full(((ERRORS_MAX + 1) ** 2, 2), -1, np.int64)


def _counted(gate: Gate, old: Counts, new: Counts) -> tuple[Counts, Counts]:
    """Return d and b of each device: the product counts each pair of counts, once."""
    table, place = _table(gate), old * (ERRORS_MAX + 1) + new
    for unseen in np.unique(place[table[place, 1] < 0]).tolist():  # no rate is negative
        table[unseen] = contribution(gate, *divmod(unseen, ERRORS_MAX + 1), WORDS)
    d, b = table[place].T
    return d, b


def _columns(d: Counts, b: Counts) -> Counts:
    return np.array([np.ones_like(d), d, d * d, b, b * b, d * b])
