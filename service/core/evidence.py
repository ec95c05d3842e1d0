"""How strongly do numbers speak against "our mean is at most zero"? In nats; `math` only.

The evidence is an e-process: its expectation stays at or below one while the mean does, whoever
stops it and whenever, so P(it ever exceeds ln(1/alpha)) <= alpha (Ville). It is the
gamma-exponential mixture of Howard, Ramdas, McAuliffe & Sekhon, "Time-uniform, nonparametric,
nonasymptotic confidence sequences", Annals of Statistics 2021, Theorem 4 and Proposition 9, for
numbers that are bounded below, with the sum of their squares as their variance. No normality, no
equal devices, no planned number of looks.
"""

import math
from functools import lru_cache

_POINTS = 80
_DEPTH = 40.0  # what is e**-40 of the largest term does not count
_SMOOTH = 20  # from this exponent on, the integrand is one smooth hill


def _fejer(points: int) -> list[tuple[float, float]]:
    """Return nodes and weights of Fejér's rule on [0, 2]."""
    rule = []
    for i in range(points):
        angle = (i + 0.5) * math.pi / points
        waves = (math.cos(2 * j * angle) / (4 * j * j - 1) for j in range(1, points // 2 + 1))
        rule.append((1 + math.cos(angle), (2 - 4 * math.fsum(waves)) / points))
    return rule


_RULE = _fejer(_POINTS)


def log_e(s: float, v: float, rho: float, c: float) -> float:
    """Return ln of the e-value for "the mean is at most zero"; minus infinity if far below.

    The bet lambda in [0, 1/c) earns exp(lambda s - psi(lambda) v), where psi(lambda) =
    (-ln(1 - c lambda) - c lambda) / c**2. With u = 1 - c lambda, the average over all bets is a
    ratio of two integrals of one form, over u**(a-1) exp(x (1-u)).

    Args:
        s: sum of the numbers.
        v: sum of their squares.
        rho: where the mixture is sharpest, in units of v; see `sharpest`.
        c: no number is below -c.
    """
    r, a = rho / c**2, (v + rho) / c**2
    if a + s / c <= 0:  # an e-value below one anyway
        return -math.inf
    return _log_mixture(a, s / c) - _log_norm(r)


def sharpest(v: float, alpha: float) -> float:
    """Return the `rho` that makes the mixture sharpest at that sum of squares."""
    level = 2 * math.log(1 / (2 * alpha))
    return v / (level + math.log1p(level))


def log_e_share(hits: int, of: int, fine: float, bad: float) -> float:
    """Return ln of the likelihood ratio of a share `bad` against a share `fine`."""
    return hits * math.log(bad / fine) + (of - hits) * math.log((1 - bad) / (1 - fine))


@lru_cache(maxsize=1_000)
def _log_norm(r: float) -> float:
    """Return ln F(r, r): what the average over the bets is divided by."""
    return _log_mixture(r, 0.0)


def _log_mixture(a: float, over: float) -> float:
    """Return ln F(a, a + over), F(a, x) the integral of u**(a-1) exp(x (1-u)) over u in [0, 1].

    F is also e**x x**-a gamma(a, x). Taken as an integral it costs the same for ten devices and
    for a billion, and no two large numbers are subtracted. Below `_SMOOTH`, by parts:
    a F(a, x) = 1 + x F(a+1, x).
    """
    steps = max(0, math.ceil(_SMOOTH - a))
    total = _log_hill(a + steps, over - steps)
    for step in reversed(range(steps)):
        rest = total + math.log(a + over)
        total = max(0.0, rest) + math.log1p(math.exp(-abs(rest))) - math.log(a + step)
    return total


def _log_hill(a: float, over: float) -> float:
    """Return ln F for a large `a`, by quadrature in y = -ln u around the highest point."""
    rising, falling = max(0.0, over), min(0.0, over)
    peak = math.log1p(rising / a)
    depth = _DEPTH / a
    width = math.sqrt(2 * depth)
    start, end = -min(peak, width), depth + width
    if falling < -_DEPTH:
        end = min(end, -math.log1p(_DEPTH / falling))
    half = (end - start) / 2
    area = 0.0
    for node, weight in _RULE:
        y = start + half * node
        fall = math.expm1(-y)
        area += weight * math.exp(-a * (y + fall) - falling * fall)
    return rising - a * peak + math.log(half * area)
