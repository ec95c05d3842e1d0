"""The canary statistic against its definition, its guarantees and its limits.

The oracle of `log_e` is the definition itself: the integral over lambda of
exp(lambda s - psi(lambda) v), psi the exponential bound, weighted by the truncated gamma density
of Proposition 9 and normalised numerically, by Simpson's rule on a grid in ln(1 - c lambda).
It shares no gamma function with the closed form.
"""

import math
import random
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.core.evidence import log_e

quick = settings(max_examples=100, deadline=None)
# Pieces of t = ln(1 - c lambda), with an even number of steps each: fine where the mass lies.
PIECES = ((-60.0, -2.0, 1500), (-2.0, -0.1, 2000), (-0.1, 0.0, 2000))


@cache
def grid() -> list[tuple[float, float]]:
    """Return Simpson's (t, ln weight) over all pieces."""
    points = []
    for low, high, steps in PIECES:
        h = (high - low) / steps
        weights = [1.0, *((4.0, 2.0) * steps)[: steps - 1], 1.0]
        points += [(low + i * h, math.log(w * h / 3)) for i, w in enumerate(weights)]
    return points


@cache
def prior(r: float) -> list[float]:
    """Return the logarithms of u**(r-1) exp(-r u) du at the grid, u = exp(t)."""
    return [weight + r * t - r * math.exp(t) for t, weight in grid()]


def log_sum(terms: list[float]) -> float:
    most = max(terms)
    return most + math.log(math.fsum(math.exp(term - most) for term in terms))


def by_integration(s: float, v: float, rho: float, c: float) -> float:
    weighted = []
    for (t, _), density in zip(grid(), prior(rho / c**2), strict=True):
        below = -math.expm1(t)  # c lambda
        weighted.append(density + below * s / c + v * (t + below) / c**2)
    return log_sum(weighted) - log_sum(prior(rho / c**2))


@pytest.mark.parametrize("rho", [0.0008, 0.0062, 0.05])
@pytest.mark.parametrize("c", [0.03, 0.04])
@pytest.mark.parametrize("n", [0, 1, 20, 300, 5000])
@pytest.mark.parametrize("shift", [-0.004, -0.0005, 0.0, 0.001, 0.01])
def test_log_e_is_the_mixture_that_defines_it(rho: float, c: float, n: int, shift: float) -> None:
    s, v = n * shift, n * 0.012**2
    if c * s + v + rho > 0:
        assert log_e(s, v, rho, c) == pytest.approx(by_integration(s, v, rho, c), abs=1e-6)


def test_where_the_closed_form_ends_the_evidence_is_nil() -> None:
    """Below x = 0 the closed form has no value; the true one is far below any threshold."""
    assert log_e(-10.0, 0.1, 0.006, 0.03) == -math.inf
    assert by_integration(-10.0, 0.1, 0.006, 0.03) < 0
    assert log_e(0.0, 0.0, 0.006, 0.03) == pytest.approx(0, abs=1e-12)


sums_s = st.floats(-50, 50)
sums_v = st.floats(0, 50)


@quick
@given(sums_s, st.floats(0, 5), sums_v, st.floats(0, 5))
def test_evidence_rises_with_the_sum_and_falls_with_the_spread(
    s: float, more_s: float, v: float, more_v: float
) -> None:
    here = log_e(s, v, 0.006, 0.04)
    tiny = 1e-10 * (1 + abs(here)) if here > -math.inf else 0.0
    assert log_e(s + more_s, v, 0.006, 0.04) >= here - tiny
    # Not where x <= 0: there the closed form says minus infinity, which is lower still.
    assume(0.04 * s + v + 0.006 > 0)
    assert log_e(s, v + more_v, 0.006, 0.04) <= here + tiny


@pytest.mark.parametrize("low", [-0.04, -0.02, -0.004])
@pytest.mark.parametrize("high", [0.002, 0.02, 0.3])
@pytest.mark.parametrize("n", [1, 7, 60, 400])
def test_the_expected_e_value_of_a_harmless_change_is_at_most_one(
    low: float, high: float, n: int
) -> None:
    """Exact: two outcomes with mean zero, the binomial sum over how often the high one came."""
    p = -low / (high - low)
    total = 0.0
    for k in range(n + 1):
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        chance = ways + k * math.log(p) + (n - k) * math.log1p(-p)
        e = log_e(k * high + (n - k) * low, k * high**2 + (n - k) * low**2, 0.0062, 0.04)
        total += math.exp(chance + e)
    assert 0 < total <= 1 + 1e-9


def test_the_expected_e_value_is_at_most_one_by_simulation_too() -> None:
    rng = random.Random(20260601)
    found = []
    for _ in range(10_000):
        z = [rng.choice((-0.04, -0.01, 0.0, 0.01, 0.04)) for _ in range(10)]
        found.append(math.exp(log_e(sum(z), sum(x * x for x in z), 0.0062, 0.04)))
    assert 0.8 < sum(found) / len(found) <= 1


def test_the_largest_sums_agree_with_the_integral() -> None:
    n = 1_000_000
    for mean in (-0.0001, 0.0, 0.0001, 0.001):
        s, v = n * mean, n * 0.012**2
        exact = by_integration(s, v, 0.0062, 0.04)
        assert log_e(s, v, 0.0062, 0.04) == pytest.approx(exact, rel=1e-6, abs=1e-4)
