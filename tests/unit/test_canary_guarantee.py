"""What the canary promises, computed exactly where that is possible: no simulation, no luck.

Devices that come in few kinds can be summed over all that can happen: the chance that a rule
*ever* speaks, with a look after every report, is then a number, not an estimate.
"""

import itertools
import math
from dataclasses import astuple, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.canary import (
    UNIT,
    Gate,
    Sums,
    band,
    decide,
    harm,
    safe,
)
from service.core.evidence import log_e

Pair = tuple[int, int]
GATE = replace(Gate(), pairs_halt_least=1, pairs_promote_least=1)
HONEST = GATE.trusting()
quick = settings(max_examples=200, deadline=None)


def of_kinds(kinds: tuple[Pair, Pair], often: tuple[int, int]) -> Sums:
    columns = [
        [n * x for x in (1, d, d * d, b, b * b, d * b)]
        for (d, b), n in zip(kinds, often, strict=True)
    ]
    return Sums(*map(sum, zip(*columns, strict=True)))


def chance_ever(gate: Gate, kinds: tuple[Pair, Pair], p: float, kind: str, most: int) -> float:
    """The chance of that verdict at any of `most` looks, where the first kind has chance p."""
    alive, spoken = {0: 1.0}, 0.0
    for n in range(1, most + 1):
        after: dict[int, float] = {}
        for k, mass in alive.items():
            after[k + 1] = after.get(k + 1, 0.0) + mass * p
            after[k] = after.get(k, 0.0) + mass * (1 - p)
        spoken += sum(
            after.pop(k)
            for k in list(after)
            if after[k] > 0 and decide(gate, of_kinds(kinds, (k, n - k))) == kind
        )
        alive = {k: mass for k, mass in after.items() if mass > 1e-15}
    return spoken


B = 10_000  # 10 % of the words, so a margin of 2 % is 200 units
AT_THE_MARGIN = [  # two kinds, and the chance of the first that makes the mean change 200
    (((3_000, B), (-3_000, B)), 3_200 / 6_000),
    (((3_000, B), (0, B)), 200 / 3_000),
    (((1_000, B), (-3_000, B)), 3_200 / 4_000),
    (((220, B), (-3_000, B)), 3_200 / 3_220),
    (((3_000, B), (180, B)), 20 / 2_820),
]


@pytest.mark.parametrize(("kinds", "p"), AT_THE_MARGIN)
@pytest.mark.parametrize("alpha", [0.005, 0.05, 0.3])
def test_looking_after_every_report_halts_no_more_often_than_alpha(
    kinds: tuple[Pair, Pair], p: float, alpha: float
) -> None:
    gate = replace(HONEST, alpha_halt=alpha)
    assert 0 <= chance_ever(gate, kinds, p, "halt", 150) <= alpha


@pytest.mark.parametrize(("kinds", "p"), AT_THE_MARGIN)
@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_looking_after_every_report_promotes_no_more_often_than_alpha(
    kinds: tuple[Pair, Pair], p: float, alpha: float
) -> None:
    gate = replace(HONEST, alpha_promote=alpha)
    assert 0 <= chance_ever(gate, kinds, p, "promote", 150) <= alpha


def test_the_chance_is_not_nil_because_nothing_ever_speaks() -> None:
    gate = replace(HONEST, alpha_halt=0.3, alpha_promote=0.3)
    kinds, p = AT_THE_MARGIN[0]
    assert chance_ever(gate, kinds, p, "halt", 150) > 0.03
    assert chance_ever(gate, kinds, p + 0.2, "halt", 150) > 0.9


@pytest.mark.parametrize(
    "outcomes",
    [
        {-0.04: 0.25, 0.0: 0.5, 0.04: 0.25},
        {-0.04: 0.1, -0.01: 0.2, 0.002: 0.6, 0.048: 0.1},
        {-0.0001: 0.999, 0.0999: 0.001},
        {-0.04: 0.5, -0.03: 0.3, 0.5: 0.0, 0.145: 0.2},
    ],
)
@pytest.mark.parametrize("rho", [1e-6, 0.0062, 10.0])
def test_the_expected_e_value_is_at_most_one(outcomes: dict[float, float], rho: float) -> None:
    """Over every sequence there is, five devices long; means at or below zero."""
    assert sum(z * p for z, p in outcomes.items()) <= 1e-12
    for n in range(6):
        total = 0.0
        for sequence in itertools.product(outcomes.items(), repeat=n):
            chance = math.prod(p for _, p in sequence)
            s, v = sum(z for z, _ in sequence), sum(z * z for z, _ in sequence)
            total += chance * math.exp(log_e(s, v, rho, 0.04)) if chance else 0.0
        assert 0 < total <= 1 + 1e-9


pairs = st.tuples(st.integers(-3_000, 3_000), st.integers(0, 50_000))
worst = st.sampled_from([(3_000, 0), (-3_000, 50_000), (3_000, 50_000), (-3_000, 0), (0, 0)])


def summed(found: list[Pair]) -> Sums:
    columns = [(1, d, d * d, b, b * b, d * b) for d, b in found]
    return Sums(*map(sum, zip(*columns, strict=True))) if found else Sums()


def added(one: Sums, other: Sums) -> Sums:
    return Sums(*(x + y for x, y in zip(astuple(one), astuple(other), strict=True)))


@pytest.mark.attack("T01", "T02")
@quick
@given(
    st.lists(pairs, max_size=30),
    st.integers(1, 60),
    st.lists(st.one_of(pairs, worst), max_size=40),
    st.integers(0, 20),
    st.floats(0, 0.2),
    st.floats(-0.03, 0.03),
)
def test_lies_within_the_budget_never_exceed_the_honest_evidence(
    honest: list[Pair], times: int, lies: list[Pair], count: int, share: float, shift: float
) -> None:
    """Whatever the liars report: harm, safety and every edge of the band stay the honest ones."""
    gate = replace(GATE, hostile_count=count, hostile_share=share)
    truth = summed(honest * times)
    while len(lies) > count + share * (truth.n + len(lies)):
        lies = lies[:-1]
    told = added(truth, summed(lies))
    for by in (0.0, shift):
        for what in (harm, safe):
            computed, true = what(gate, told, by), what(HONEST, truth, by)
            assert computed <= max(true, 0.0) * (1 + 1e-9) + 1e-9  # below zero both are nothing
    (low, high), (honest_low, honest_high) = band(gate, told), band(HONEST, truth)
    assert low <= honest_low + 1e-6 and high >= honest_high - 1e-6


def test_lies_beyond_the_budget_can_exceed_the_honest_evidence() -> None:
    """So the budget is a promise about attackers, not about the statistic alone."""
    gate = replace(GATE, hostile_count=3, hostile_share=0.0)
    truth = summed([(0, 0)] * 50)
    within, beyond = (added(truth, summed([(3_000, 0)] * n)) for n in (3, 40))
    assert harm(gate, within) <= harm(HONEST, truth) + 1e-12
    assert harm(gate, beyond) > gate.threshold_halt > harm(HONEST, truth)


@quick
@given(st.lists(pairs, min_size=1, max_size=30), st.integers(1, 50))
def test_a_larger_change_speaks_more_of_harm_and_less_of_safety(
    found: list[Pair], times: int
) -> None:
    sums = summed(found * times)
    worse = replace(sums, sd=sums.sd + UNIT // 100)
    for more, less in (
        (harm(GATE, worse), harm(GATE, sums)),
        (safe(GATE, sums), safe(GATE, worse)),
    ):
        assert more >= less or more >= less - 1e-9 * abs(less)
