"""The rules that other rollout tools publish, with one chance in a hundred to halt wrongly.

Each takes the word error rates of devices in their order and returns after how many of them it
halts, or None. Two arms are two different sets of devices, as those tools have them; pairs are
what a device measured on itself.
"""

import math
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.01
WINDOW = 50  # devices in one point of a series
Rates = NDArray[np.float64]


def threshold(old: Rates, new: Rates, harmless: float = 1.02, fails: int = 5) -> int | None:
    """Flagger: every check compares a window with a threshold; after five failed ones, back."""
    failed = np.cumsum(_series(new) > harmless * _series(old))
    return _first(failed >= fails, WINDOW * np.arange(1, len(failed) + 1))


def mann_whitney(old: Rates, new: Rates) -> int | None:
    """Kayenta: a 98 % Mann-Whitney interval of the shift between two series, every five points.

    Halts if its lower end is above a quarter of the estimated shift and the mean did not fall.
    """
    control, canary = _series(old), _series(new)
    apart = canary[:, None] - control[None, :]
    z = NormalDist().inv_cdf(1 - ALPHA)
    for points in range(10, len(canary) + 1, 5):
        if canary[:points].mean() < control[:points].mean():
            continue
        shifts = np.sort(apart[:points, :points], axis=None)
        spread = math.sqrt(points * points * (2 * points + 1) / 12)
        rank = max(0, math.floor(points * points / 2 - z * spread))
        if shifts[rank] > 0.25 * abs(float(np.median(shifts))):
            return points * WINDOW
    return None


def group_sequential(statistic: Rates, looks: NDArray[np.int64], bounds: Rates) -> int | None:
    """Spotify: planned looks with a share of alpha each; `statistic` is z at every look."""
    return _first(statistic > bounds, looks)


def z_paired(change: Rates, looks: NDArray[np.int64]) -> Rates:
    """Return z of the mean paired change at each look."""
    n, mean, variance = _moments(change, looks)
    return np.asarray(mean / np.sqrt(variance / n))


def z_unpaired(old: Rates, new: Rates, looks: NDArray[np.int64]) -> Rates:
    """Return z of the difference of two arms at each look."""
    n, mean_old, variance_old = _moments(old, looks)
    _, mean_new, variance_new = _moments(new, looks)
    return np.asarray((mean_new - mean_old) / np.sqrt((variance_old + variance_new) / n))


def mixture_sprt(change: Rates, looks: NDArray[np.int64], tau: float = 0.005) -> int | None:
    """Optimizely's mSPRT of the paired change, a normal mixture, with the variance as measured."""
    n, mean, variance = _moments(change, looks)
    total = variance + n * tau**2
    log_ratio = (np.log(variance / total) + (n * tau * mean) ** 2 / (variance * total)) / 2
    return _first((mean > 0) & (log_ratio >= math.log(1 / (2 * ALPHA))), looks)


@cache
def spending_bounds(looks: int, alpha: float = ALPHA) -> Rates:
    """Return the z bounds of equally spaced looks that spend alpha as O'Brien and Fleming do.

    Lan & DeMets: alpha(t) = 2 - 2 Phi(z(alpha/2) / sqrt(t)); each bound by bisection on the density
    of the sum that has not crossed yet (Armitage, McPherson & Rowe).
    """
    normal = NormalDist()
    share = normal.inv_cdf(1 - alpha / 2)
    grid = np.linspace(-8 * math.sqrt(looks), 8 * math.sqrt(looks), 6001)
    step = grid[1] - grid[0]
    density = np.exp(-grid * grid / 2) / math.sqrt(2 * math.pi)
    kernel = density[np.abs(grid) <= 8] * step
    spent, bounds = 0.0, []
    for look in range(1, looks + 1):
        if look > 1:
            density = np.convolve(density, kernel, "same")
        target = 2 - 2 * normal.cdf(share / math.sqrt(look / looks))
        allowed = max(target - spent, 1e-20)
        beyond = np.cumsum(density[::-1])[::-1] * step
        place = int(np.argmax(beyond <= allowed))
        spent += float(beyond[place])
        density[place:] = 0
        bounds.append(grid[place] / math.sqrt(look))
    return np.array(bounds)


def _series(rates: Rates) -> Rates:
    points = len(rates) // WINDOW
    return np.asarray(rates[: points * WINDOW].reshape(points, WINDOW).mean(axis=1))


def _moments(values: Rates, looks: NDArray[np.int64]) -> tuple[Rates, Rates, Rates]:
    n = looks.astype(np.float64)
    mean = np.cumsum(values)[looks - 1] / n
    square = np.cumsum(values * values)[looks - 1] / n
    return n, mean, np.maximum(square - mean * mean, 1e-12)


def _first(speaks: NDArray[np.bool_], looks: NDArray[np.int64]) -> int | None:
    place = int(np.argmax(speaks))
    return int(looks[place]) if speaks[place] else None
