"""The canary statistic: six integer sums in, evidence out. Pure, `math` only.

Each device contributes one pair, measured on the same audio with the old and the new model:
`d`, the clipped change of its word error rate, and `b`, its old rate. The question is whether
the mean of `z = d - margin * b` is above zero (harm) or below (safe). The evidence is an
e-process, the gamma-exponential mixture of Howard, Ramdas, McAuliffe & Sekhon, "Time-uniform,
nonparametric, nonasymptotic confidence sequences", Annals of Statistics 2021, Theorem 4 and
Proposition 9: one may look after every report, and stop whenever it is high enough.
"""

import math
from dataclasses import astuple, dataclass, field
from typing import Any

UNIT = 100_000  # the integer sums count in 1e-5 of a word error rate
_SERIES_MAX = 10_000
_EPSILON = 1e-16


def _bounded(default: float, least: float, most: float) -> Any:
    """Return a field of a gate; beyond its bounds the statistic does not compute."""
    return field(default=default, metadata={"bounds": (least, most)})


@dataclass(frozen=True)
class Gate:
    """What a rollout demands of its canary; fixed before the first report.

    Attributes:
        margin_rel: harmless change, as a share of the old word error rate.
        clip: largest change of rate that one device may contribute.
        base_cap: largest old rate that one device may contribute.
        hostile_count, hostile_share: how many counted reports may be lies, k + share * n.
        alpha_halt, alpha_promote, alpha_failures: the chance of each wrong verdict.
        pairs_halt_least, pairs_promote_least: no verdict before so many devices.
        sigma, pairs_expected: where the mixture is sharpest: variance sigma**2 per device.
        failures_fine, failures_bad: share of failing devices that is harmless and harmful.
        undecided_s: after so long in a stage without a verdict, a person decides.
        proven_share_least: share of the reporting devices that must have an outcome, which only
            a poll with the new bytes, a refusal or a failure gives, before a stage may pass.
    """

    margin_rel: float = _bounded(0.02, 0, 1)
    clip: float = _bounded(0.03, 0.001, 1)
    base_cap: float = _bounded(0.5, 0.001, 1)
    hostile_count: int = _bounded(3, 0, 1_000_000)
    hostile_share: float = _bounded(0.01, 0, 1)
    alpha_halt: float = _bounded(0.005, 1e-9, 0.49)
    alpha_promote: float = _bounded(0.05, 1e-9, 0.49)
    alpha_failures: float = _bounded(0.005, 1e-9, 0.49)
    pairs_halt_least: int = _bounded(20, 1, 10_000_000)
    pairs_promote_least: int = _bounded(100, 1, 10_000_000)
    sigma: float = _bounded(0.012, 0.0001, 1)
    pairs_expected: int = _bounded(500, 1, 10_000_000)
    failures_fine: float = _bounded(0.02, 0.0001, 0.9999)
    failures_bad: float = _bounded(0.08, 0.0001, 0.9999)
    undecided_s: int = _bounded(259_200, 1, 365 * 86400)
    proven_share_least: float = _bounded(0.8, 0, 1)

    @property
    def threshold_halt(self) -> float:
        """Evidence of harm, in nats, that halts."""
        return math.log(1 / self.alpha_halt)

    @property
    def threshold_promote(self) -> float:
        """Evidence of safety, in nats, that promotes."""
        return math.log(1 / self.alpha_promote)

    @property
    def threshold_failures(self) -> float:
        """Evidence of failing devices, in nats, that halts."""
        return math.log(1 / self.alpha_failures)


@dataclass(frozen=True)
class Sums:
    """The state of the statistic: counts and sums in `UNIT`s, exact and order-free."""

    n: int = 0
    sd: int = 0
    sdd: int = 0
    sb: int = 0
    sbb: int = 0
    sdb: int = 0


@dataclass(frozen=True)
class Evidence:
    """What the sums say, in nats against each threshold, and the change with its band.

    Attributes:
        change, lower, upper: mean change of the word error rate (absolute), always-valid band.
    """

    harm: float
    safe: float
    failures: float
    change: float
    lower: float
    upper: float


def contribution(gate: Gate, old_errors: int, new_errors: int, ref_words: int) -> tuple[int, int]:
    """Return one device's (d, b) in `UNIT`s, clipped by the gate."""
    clip, cap = round(gate.clip * UNIT), round(gate.base_cap * UNIT)
    # Rounded, not floored: a floor would make every change look a little better than it is.
    d = round((new_errors - old_errors) * UNIT / ref_words)
    return max(-clip, min(clip, d)), min(cap, round(old_errors * UNIT / ref_words))


def evidence(gate: Gate, sums: Sums, failures: int, devices: int) -> Evidence:
    """Return the evidence after `sums.n` pairs and `failures` among `devices` finished."""
    change = sums.sd / sums.n / UNIT if sums.n else 0.0
    lower, upper = _band(gate, sums) if sums.n else (-gate.clip, gate.clip)
    return Evidence(
        harm=_harm(gate, sums, 0.0),
        safe=_safe(gate, sums, 0.0),
        failures=log_e_failures(gate, failures, devices),
        change=change,
        lower=lower,
        upper=upper,
    )


def log_e_failures(gate: Gate, failures: int, devices: int) -> float:
    """Return ln of the likelihood ratio of `failures_bad` against `failures_fine`."""
    p0, p1 = gate.failures_fine, gate.failures_bad
    return failures * math.log(p1 / p0) + (devices - failures) * math.log((1 - p1) / (1 - p0))


def pairs_missing(gate: Gate, sums: Sums) -> int | None:
    """Return about how many more pairs make the change decidable; None if that is unknown.

    If the coming pairs are like those so far, the evidence grows with n: the smallest n, by
    doubling and bisection, at which the promoting or the halting test would speak.
    """
    if sums.n < 2:
        return None

    def decided(n: int) -> bool:
        scaled = Sums(n, *(round(s * n / sums.n) for s in astuple(sums)[1:]))
        return decide(gate, scaled) is not None

    most = sums.n
    while not decided(most):
        most *= 2
        if most > 10_000_000:
            return None
    least = sums.n
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if decided(middle) else (middle + 1, most)
    return least - sums.n


def decide(gate: Gate, sums: Sums) -> str | None:
    """Return "halt", "promote" or None: what the pooled pairs say."""
    if sums.n >= gate.pairs_halt_least and _harm(gate, sums, 0.0) >= gate.threshold_halt:
        return "halt"
    if sums.n >= gate.pairs_promote_least and _safe(gate, sums, 0.0) >= gate.threshold_promote:
        return "promote"
    return None


def log_e(s: float, v: float, rho: float, c: float) -> float:
    """Return ln of the gamma-exponential mixture e-value for "mean <= 0".

    Args:
        s: sum of the observations.
        v: sum of their squares.
        rho: where the mixture is sharpest, in units of v.
        c: no observation is below -c.
    """
    r, a = rho / c**2, (v + rho) / c**2
    x = (c * s + v) / c**2 + r
    if x <= 0:
        return -math.inf
    norm = r * math.log(r) - math.lgamma(r) - _log_gamma_p(r, r)
    return norm + math.lgamma(a) + _log_gamma_p(a, x) - a * math.log(x) + (x - r)


def _z(gate: Gate, sums: Sums, shift: float) -> tuple[float, float]:
    """Return sum and sum of squares of z = d - margin*b - shift."""
    m = gate.margin_rel
    sd, sb = sums.sd / UNIT, sums.sb / UNIT
    sdd, sbb, sdb = (value / UNIT**2 for value in (sums.sdd, sums.sbb, sums.sdb))
    s = sd - m * sb - shift * sums.n
    v = sdd + m * m * sbb + sums.n * shift**2 - 2 * m * sdb - 2 * shift * sd + 2 * m * shift * sb
    return s, max(v, 0.0)


def _rho(gate: Gate, alpha: float) -> float:
    """Return the mixture's scale, sharpest when V = pairs_expected * sigma**2."""
    level = math.log(1 / (2 * alpha))
    return gate.pairs_expected * gate.sigma**2 / (2 * level + math.log(1 + 2 * level))


def _budget(gate: Gate, sums: Sums) -> float:
    return min(gate.hostile_count + gate.hostile_share * sums.n, sums.n)


def _harm(gate: Gate, sums: Sums, shift: float) -> float:
    """Return the evidence that the change is above the margin plus `shift`, lies allowed for."""
    s, v = _z(gate, sums, shift)
    most = gate.clip + max(0.0, -shift)
    c = gate.clip + gate.margin_rel * gate.base_cap + max(0.0, shift)
    return log_e(s - _budget(gate, sums) * most, v, _rho(gate, gate.alpha_halt), c)


def _safe(gate: Gate, sums: Sums, shift: float) -> float:
    """Return the evidence that the change is below the margin plus `shift`, lies allowed for."""
    s, v = _z(gate, sums, shift)
    most = gate.clip + gate.margin_rel * gate.base_cap + max(0.0, shift)
    c = gate.clip + max(0.0, -shift)
    return log_e(-s - _budget(gate, sums) * most, v, _rho(gate, gate.alpha_promote), c)


def _band(gate: Gate, sums: Sums) -> tuple[float, float]:
    """Return the always-valid band of the mean change, by bisection on the shift."""
    plain = Gate(**{**vars(gate), "margin_rel": 0.0})

    def edge(speaks: bool) -> float:
        least, most = -2 * gate.clip, 2 * gate.clip
        for _ in range(40):
            middle = (least + most) / 2
            if speaks:  # lower edge: the largest shift that harm still rejects
                rejected = _harm(plain, sums, middle) >= plain.threshold_halt
                least, most = (middle, most) if rejected else (least, middle)
            else:
                rejected = _safe(plain, sums, middle) >= plain.threshold_promote
                least, most = (least, middle) if rejected else (middle, most)
        return (least + most) / 2

    clip = gate.clip
    return max(-clip, min(clip, edge(True))), max(-clip, min(clip, edge(False)))


def _log_gamma_p(a: float, x: float) -> float:
    """Return ln P(a, x), the regularised lower incomplete gamma function.

    Series for x < a + 1, Lentz's continued fraction otherwise (Abramowitz & Stegun 6.5.29,
    6.5.31).
    """
    if x < a + 1:
        term = total = 1 / a
        for n in range(1, _SERIES_MAX):
            term *= x / (a + n)
            total += term
            if term < total * _EPSILON:
                break
        return math.log(total) + a * math.log(x) - x - math.lgamma(a)
    b = x + 1 - a
    c, d = 1e300, 1 / b
    fraction = d
    for n in range(1, _SERIES_MAX):
        factor = -n * (n - a)
        b += 2
        d = 1 / (factor * d + b)
        c = b + factor / c
        fraction *= c * d
        if abs(c * d - 1) < _EPSILON:
            break
    upper = math.exp(a * math.log(x) - x - math.lgamma(a)) * fraction
    return math.log1p(-upper) if upper < 1 else -math.inf
