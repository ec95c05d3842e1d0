"""The canary's rule: six integer sums in, "halt", "promote" or nothing out. Pure, `math` only.

Each device contributes one pair, measured on the same audio with the old and the new model:
`d`, the clipped change of its word error rate, and `b`, its old rate. The question is whether
the mean of `z = d - margin * b` is above zero (harm) or below (safe), even if a budget of reports
are lies; `evidence.py` answers it, and one may look after every report. docs/canary.md says in
words what that guarantees, and how it compares.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from service.core.evidence import log_e, log_e_share, sharpest

UNIT = 100_000  # the integer sums count in 1e-5 of a word error rate


def _bounded(default: float, least: float, most: float) -> Any:
    """Return a field of a gate; beyond its bounds the statistic does not compute."""
    return field(default=default, metadata={"bounds": (least, most)})


@dataclass(frozen=True)
class Gate:
    """What a rollout demands of its canary; fixed before the first report.

    Attributes:
        margin_rel: harmless change of all devices, as a share of the old word error rate.
        class_margin_rel, chain_margin_rel: likewise of one hardware class, and against the base.
        clip, base_cap: largest change of rate, and old rate, that one device may contribute.
        hostile_count, hostile_share: how many counted reports may be lies, k + share * n.
        alpha_halt, alpha_promote, alpha_failures: the chance of each wrong verdict.
        alpha_parts, alpha_signals: the chance that any class or the chain halts wrongly, and that
            any signal speaks wrongly; they share it.
        pairs_halt_least, pairs_promote_least: no verdict before so many devices.
        class_pairs_promote_least: likewise to promote one class.
        sigma, pairs_expected: where the mixture is sharpest: variance sigma**2 per device.
        failures_fine, failures_bad: share of failing devices that is harmless and harmful.
        undecided_s: after so long in a stage without a verdict, a person decides.
        control_share: share of the devices that run the old model against itself.
        signal_share: share of the devices that may say worse of a signal, less those with better.
        latency_ratio: times as long that a model must take to be slower.
        batch_share_most: largest share of the pairs that devices of one enrollment token may have,
            unless twice their share of the fleet is more.
        proven_share_least: share of the reporting devices that must have an outcome, which only
            a poll with the new bytes, a refusal or a failure gives, before a stage may pass.
    """

    margin_rel: float = _bounded(0.02, 0, 1)
    class_margin_rel: float = _bounded(0.10, 0, 1)
    chain_margin_rel: float = _bounded(0.05, 0, 1)
    clip: float = _bounded(0.03, 0.001, 1)
    base_cap: float = _bounded(0.5, 0.001, 1)
    hostile_count: int = _bounded(3, 0, 1_000_000)
    hostile_share: float = _bounded(0.01, 0, 1)
    alpha_halt: float = _bounded(0.005, 1e-9, 0.49)
    alpha_promote: float = _bounded(0.05, 1e-9, 0.49)
    alpha_failures: float = _bounded(0.005, 1e-9, 0.49)
    alpha_parts: float = _bounded(0.005, 1e-9, 0.49)
    alpha_signals: float = _bounded(0.005, 1e-9, 0.49)
    pairs_halt_least: int = _bounded(20, 1, 10_000_000)
    pairs_promote_least: int = _bounded(100, 1, 10_000_000)
    class_pairs_promote_least: int = _bounded(50, 1, 10_000_000)
    sigma: float = _bounded(0.012, 0.0001, 1)
    pairs_expected: int = _bounded(500, 1, 10_000_000)
    failures_fine: float = _bounded(0.02, 0.0001, 0.9999)
    failures_bad: float = _bounded(0.08, 0.0001, 0.9999)
    undecided_s: int = _bounded(259_200, 1, 365 * 86400)
    control_share: float = _bounded(0.05, 0, 0.5)
    batch_share_most: float = _bounded(0.05, 0.0001, 1)
    proven_share_least: float = _bounded(0.8, 0, 1)
    signal_share: float = _bounded(0.05, 0, 1)
    latency_ratio: float = _bounded(1.5, 1, 1_000)

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

    def of_class(self, classes: int) -> "Gate":
        """Return the rule for each of so many classes: the same, with another margin."""
        alpha = self.alpha_parts / (classes + 1)
        least = self.class_pairs_promote_least
        margin = self.class_margin_rel
        return replace(self, margin_rel=margin, alpha_halt=alpha, pairs_promote_least=least)

    def of_chain(self, classes: int) -> "Gate":
        """Return the rule for the new model against the base of its chain."""
        alpha = self.alpha_parts / (classes + 1)
        return replace(self, margin_rel=self.chain_margin_rel, alpha_halt=alpha)

    def of_placebo(self) -> "Gate":
        """Return the rule for the old model against itself, where any verdict is an alarm."""
        alpha, least = self.alpha_halt, self.pairs_halt_least
        return replace(self, margin_rel=0.0, alpha_promote=alpha, pairs_promote_least=least)

    def trusting(self) -> "Gate":
        """Return the same rule for a fleet in which nobody lies."""
        return replace(self, hostile_count=0, hostile_share=0.0)


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
class Pairs:
    """All pairs of a rollout, by the test that they are for.

    Attributes:
        pooled: of all devices.
        classes: of each hardware class that is large enough to be asked; which ones these are
            is fixed before the first report, or the chance of a wrong halt is not kept.
        chain: of the new model and the base of its chain, where it is not the old one.
        placebo: of the old model and itself.
    """

    pooled: Sums
    classes: Mapping[str, Sums] = field(default_factory=dict)
    chain: Sums | None = None
    placebo: Sums = Sums()


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


def contribution(
    gate: Gate, old_errors: int, new_errors: int, ref_words: int, known: int = 0
) -> tuple[int, int]:
    """Return one device's (d, b) in `UNIT`s, clipped by the gate.

    `known` is by how much more than the whole pool this shard changes, where the maker ran both
    models on all of it: taken out, it leaves the mean over the shards as it is, without noise.
    """
    clip, cap = round(gate.clip * UNIT), round(gate.base_cap * UNIT)
    # Rounded, not floored: a floor would make every change look a little better than it is.
    d = round((new_errors - old_errors) * UNIT / ref_words) - known
    return max(-clip, min(clip, d)), min(cap, round(old_errors * UNIT / ref_words))


def judge(gate: Gate, pairs: Pairs) -> tuple[str | None, str]:
    """Return the verdict of all tests, and the test that gave it or that it waits for.

    Any test may halt. All must promote, and the placebo must be still.
    """
    verdicts = {name: decide(*test) for name, test in tests_of(gate, pairs).items()}
    for kind in ("halt", None):
        if kind in verdicts.values():
            return kind, next(name for name in verdicts if verdicts[name] == kind)
    moved = decide(gate.of_placebo(), pairs.placebo) is not None
    return (None, "placebo") if moved else ("promote", "pooled")


def tests_of(gate: Gate, pairs: Pairs) -> dict[str, tuple[Gate, Sums]]:
    """Return the tests that may halt, by name, each with the rule and the pairs it is for."""
    classes = len(pairs.classes)
    tests = {"pooled": (gate, pairs.pooled)}
    if pairs.chain is not None:
        tests["chain"] = gate.of_chain(classes), pairs.chain
    for name, sums in pairs.classes.items():
        tests[f"class {name}"] = gate.of_class(classes), sums
    return tests


def decide(gate: Gate, sums: Sums) -> str | None:
    """Return "halt", "promote" or None: what the pairs of one test say."""
    if sums.n >= gate.pairs_halt_least and harm(gate, sums) >= gate.threshold_halt:
        return "halt"
    if sums.n >= gate.pairs_promote_least and safe(gate, sums) >= gate.threshold_promote:
        return "promote"
    return None


def evidence(gate: Gate, sums: Sums, failures: int, devices: int) -> Evidence:
    """Return the evidence after `sums.n` pairs and `failures` among `devices` finished."""
    change = sums.sd / sums.n / UNIT if sums.n else 0.0
    lower, upper = band(gate, sums)
    failing = log_e_failures(gate, failures, devices)
    return Evidence(harm(gate, sums), safe(gate, sums), failing, change, lower, upper)


def log_e_failures(gate: Gate, failures: int, devices: int) -> float:
    """Return the evidence that more devices fail than are fine."""
    return log_e_share(failures, devices, gate.failures_fine, gate.failures_bad)


def harm(gate: Gate, sums: Sums, shift: float = 0.0) -> float:
    """Return the evidence that the change is above the margin plus `shift`, lies allowed for."""
    s, v = _z(gate, sums, shift)
    most, least = _bounds(gate, shift)
    return log_e(s - _budget(gate, sums) * most, v, _rho(gate, gate.alpha_halt), -least)


def safe(gate: Gate, sums: Sums, shift: float = 0.0) -> float:
    """Return the evidence that the change is below the margin plus `shift`, lies allowed for."""
    s, v = _z(gate, sums, shift)
    most, least = _bounds(gate, shift)
    return log_e(-s + _budget(gate, sums) * least, v, _rho(gate, gate.alpha_promote), most)


def band(gate: Gate, sums: Sums) -> tuple[float, float]:
    """Return the always-valid band of the mean change: what neither evidence rejects."""
    plain, clip = replace(gate, margin_rel=0.0), gate.clip

    def edge(inside: float, outside: float, rejected: Callable[[float], bool]) -> float:
        for _ in range(40):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        return outside

    lower = edge(clip, -clip, lambda shift: harm(plain, sums, shift) >= gate.threshold_halt)
    upper = edge(-clip, clip, lambda shift: safe(plain, sums, shift) >= gate.threshold_promote)
    return lower, upper


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


def _z(gate: Gate, sums: Sums, shift: float) -> tuple[float, float]:
    """Return sum and sum of squares of z = d - margin*b - shift."""
    m = gate.margin_rel
    sd, sb = sums.sd / UNIT, sums.sb / UNIT
    sdd, sbb, sdb = (value / UNIT**2 for value in (sums.sdd, sums.sbb, sums.sdb))
    s = sd - m * sb - shift * sums.n
    v = sdd + m * m * sbb + sums.n * shift**2 - 2 * m * sdb - 2 * shift * sd + 2 * m * shift * sb
    return s, max(v, 0.0)


def _bounds(gate: Gate, shift: float) -> tuple[float, float]:
    """Return the largest and the smallest z of any report, never narrower than without shift."""
    most = gate.clip + max(0.0, -shift)
    return most, -(gate.clip + gate.margin_rel * gate.base_cap + max(0.0, shift))


def _rho(gate: Gate, alpha: float) -> float:
    return sharpest(gate.pairs_expected * gate.sigma**2, alpha)


def _budget(gate: Gate, sums: Sums) -> float:
    """Return how many of the reports may be lies: each can move the sum by the bound of z.

    Without them the sum would be at most that much smaller, and the squares no larger: so what
    is computed never exceeds the honest evidence.
    """
    return min(gate.hostile_count + gate.hostile_share * sums.n, sums.n)
