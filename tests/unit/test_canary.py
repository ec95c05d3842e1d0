"""The canary's verdicts: what is counted, when it is enough, and what liars can do."""

import math
import random
from dataclasses import astuple, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.canary import (
    UNIT,
    Evidence,
    Gate,
    Sums,
    contribution,
    decide,
    evidence,
    log_e_failures,
    pairs_missing,
)

GATE = Gate()
quick = settings(max_examples=100, deadline=None)


def pair(rng: random.Random, change: float) -> tuple[int, int]:
    """Return one device's contribution: 500 words, about 50 wrong, changed relatively."""
    words, rate = 500, rng.uniform(0.05, 0.15)
    old = round(words * rate)
    churn = rng.gauss(old * change, 5)
    return contribution(GATE, old, max(0, round(old + churn)), words)


def grown(sums: Sums, d: int, b: int) -> Sums:
    added = (1, d, d * d, b, b * b, d * b)
    return Sums(*(x + y for x, y in zip(astuple(sums), added, strict=True)))


def summed(pairs: list[tuple[int, int]]) -> Sums:
    columns = [(1, d, d * d, b, b * b, d * b) for d, b in pairs]
    return Sums(*map(sum, zip(*columns, strict=True))) if pairs else Sums()


def first_verdict(seed: int, change: float, most: int, every: int) -> tuple[str | None, int]:
    rng, sums = random.Random(seed), Sums()
    while sums.n < most:
        for _ in range(every):
            sums = grown(sums, *pair(rng, change))
        if verdict := decide(GATE, sums):
            return verdict, sums.n
    return None, sums.n


@pytest.mark.parametrize(
    ("change", "verdict"), [(0.0, "promote"), (-0.1, "promote"), (0.2, "halt"), (0.5, "halt")]
)
def test_a_clear_change_gets_its_verdict_whenever_one_looks(change: float, verdict: str) -> None:
    assert [first_verdict(seed, change, 8000, 10)[0] for seed in range(5)] == [verdict] * 5


def test_a_change_at_the_margin_is_hardly_ever_halted_however_often_one_looks() -> None:
    """At most alpha_halt = 0.005 of runs may halt at the margin: none of these forty."""
    assert "halt" not in [first_verdict(seed, 0.02, 1500, 50)[0] for seed in range(40)]


devices = st.tuples(st.integers(0, 900), st.integers(0, 900), st.integers(1, 600))


@quick
@given(st.lists(devices, max_size=30), st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_the_order_and_equal_a_recomputation(
    reports: list[tuple[int, int, int]], rng: random.Random
) -> None:
    pairs = [contribution(GATE, *report) for report in reports]
    sums = Sums()
    for d, b in rng.sample(pairs, len(pairs)):
        sums = grown(sums, d, b)
    assert sums == summed(pairs)
    assert evidence(GATE, sums, 0, 0) == evidence(GATE, summed(pairs), 0, 0)


@quick
@given(devices)
def test_one_device_moves_no_more_than_its_clip(report: tuple[int, int, int]) -> None:
    d, b = contribution(GATE, *report)
    old, new, words = report
    assert -3_000 <= d <= 3_000 and 0 <= b <= 50_000
    assert abs(d - max(-3_000, min(3_000, (new - old) * UNIT / words))) < 1
    assert abs(b - min(50_000, old * UNIT / words)) < 1


def test_a_swap_of_old_and_new_turns_the_change_around() -> None:
    for words in (7, 300, 512):
        assert contribution(GATE, 3, 4, words)[0] == -contribution(GATE, 4, 3, words)[0]


def test_verdicts_start_at_their_least_number_of_pairs() -> None:
    worse = [(3_000, 10_000)] * 100
    n = next(n for n in range(101) if decide(GATE, summed(worse[:n])) == "halt")
    assert n >= GATE.pairs_halt_least
    later = replace(GATE, pairs_halt_least=60)
    assert decide(later, summed(worse[:59])) is None
    assert decide(later, summed(worse[:60])) == "halt"
    better = [(-3_000, 10_000)] * 200
    assert decide(GATE, summed(better[:99])) is None
    assert decide(GATE, summed(better[:100])) == "promote"


def test_a_verdict_is_evidence_at_its_threshold() -> None:
    rng = random.Random(7)
    for change in (0.0, 0.3):
        pairs = [pair(rng, change) for _ in range(3000)]
        for n in range(20, 3000, 150):
            sums = summed(pairs[:n])
            found, verdict = evidence(GATE, sums, 0, n), decide(GATE, sums)
            assert (verdict == "halt") == (found.harm >= GATE.threshold_halt)
            safe = found.safe >= GATE.threshold_promote and n >= GATE.pairs_promote_least
            assert (verdict == "promote") == safe


def test_the_thresholds_are_the_logarithms_of_the_chances() -> None:
    assert GATE.threshold_halt == pytest.approx(math.log(200))
    assert GATE.threshold_promote == pytest.approx(math.log(20))
    assert GATE.threshold_failures == pytest.approx(math.log(200))


contributions = st.tuples(st.integers(-3_000, 3_000), st.integers(0, 50_000))


@quick
@given(
    st.lists(contributions, min_size=20, max_size=60),
    st.integers(1, 20),
    st.lists(contributions, max_size=15),
    st.sampled_from([0, 3, 5]),
)
def test_hostile_reports_within_the_budget_flip_no_verdict(
    honest: list[tuple[int, int]], times: int, hostile: list[tuple[int, int]], budget: int
) -> None:
    """What is decided with the lies in is already proved by the honest reports alone."""
    gate = replace(GATE, hostile_count=budget, pairs_halt_least=1, pairs_promote_least=1)
    honest = honest * times
    allowed = int(budget + gate.hostile_share * (len(honest) + budget))
    together = summed(honest + hostile[:allowed])
    alone = replace(gate, hostile_count=0, hostile_share=0.0)
    verdict, proof = decide(gate, together), evidence(alone, summed(honest), 0, 0)
    if verdict == "halt":
        assert proof.harm >= gate.threshold_halt - 1e-6
    if verdict == "promote":
        assert proof.safe >= gate.threshold_promote - 1e-6


def test_a_few_liars_do_not_turn_a_good_release_bad_nor_a_bad_one_good() -> None:
    rng = random.Random(3)
    good, bad = ([pair(rng, change) for _ in range(2500)] for change in (0.0, 0.3))
    liars = int(GATE.hostile_count + GATE.hostile_share * 2500)
    for n in range(100, 2501, 200):
        assert decide(GATE, summed([(3_000, 0)] * liars + good[:n])) != "halt"
        assert decide(GATE, summed([(-3_000, 50_000)] * liars + bad[:n])) != "promote"
    assert decide(GATE, summed([(3_000, 0)] * liars + good)) in ("promote", None)
    assert decide(GATE, summed([(-3_000, 50_000)] * liars + bad)) == "halt"


@quick
@given(st.lists(contributions, min_size=1, max_size=40), st.integers(1, 200))
def test_the_band_contains_the_mean_and_the_mean_is_the_mean(
    pairs: list[tuple[int, int]], times: int
) -> None:
    found = evidence(GATE, summed(pairs * times), 0, 0)
    mean = sum(d for d, _ in pairs) / len(pairs) / UNIT
    assert found.change == pytest.approx(mean, abs=1e-12)
    assert -GATE.clip <= found.lower <= found.change + 1e-9
    assert found.change - 1e-9 <= found.upper <= GATE.clip


def test_the_band_narrows_as_pairs_come() -> None:
    rng = random.Random(5)
    pairs = [pair(rng, 0.0) for _ in range(6000)]
    widths = []
    for n in (50, 500, 6000):
        found = evidence(GATE, summed(pairs[:n]), 0, 0)
        widths.append(found.upper - found.lower)
    assert widths[0] > widths[1] > widths[2]


def test_without_pairs_the_band_is_all_that_is_possible() -> None:
    found = evidence(GATE, Sums(), 0, 0)
    assert astuple(found) == astuple(Evidence(found.harm, found.safe, 0.0, 0.0, -0.03, 0.03))
    assert abs(found.harm) < 1e-9 and abs(found.safe) < 1e-9
    assert decide(GATE, Sums()) is None


@quick
@given(st.lists(contributions, min_size=2, max_size=30), st.integers(1, 20))
def test_the_pairs_missing_are_the_pairs_that_decide(
    pairs: list[tuple[int, int]], times: int
) -> None:
    sums = summed(pairs * times)
    missing = pairs_missing(GATE, sums)
    if missing is None:
        assert decide(GATE, sums) is None
        return
    assert (missing == 0) == (decide(GATE, sums) is not None)
    n = sums.n + missing
    scaled = Sums(n, *(round(s * n / sums.n) for s in astuple(sums)[1:]))
    assert decide(GATE, scaled) is not None


def test_what_can_never_be_decided_has_no_number_missing() -> None:
    assert pairs_missing(GATE, Sums()) is None
    assert pairs_missing(GATE, summed([(0, 0)])) is None
    assert pairs_missing(GATE, summed([(200, 10_000)] * 30)) is None  # exactly at the margin


def test_failures_are_evidence_by_their_likelihood_ratio() -> None:
    assert log_e_failures(GATE, 0, 0) == 0
    assert log_e_failures(GATE, 3, 10) == pytest.approx(
        math.log((0.08**3 * 0.92**7) / (0.02**3 * 0.98**7))
    )
    assert log_e_failures(GATE, 0, 500) < 0 < log_e_failures(GATE, 4, 4)
    p, n = 0.02, 80  # a martingale at the harmless share: its mean is one
    mean = sum(
        math.comb(n, k) * p**k * (1 - p) ** (n - k) * math.exp(log_e_failures(GATE, k, n))
        for k in range(n + 1)
    )
    assert mean == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 100, 10_000, 1_000_000])
@pytest.mark.parametrize("d", [-3_000, -1, 0, 1, 200, 3_000])
@pytest.mark.parametrize("b", [0, 10_000, 50_000])
def test_a_million_equal_devices_are_no_trouble(n: int, d: int, b: int) -> None:
    """Equal devices: the spread around their mean is zero."""
    sums = Sums(n, n * d, n * d * d, n * b, n * b * b, n * d * b)
    found = evidence(GATE, sums, n // 50, n)
    assert not any(math.isnan(value) for value in astuple(found))
    assert found.lower - 1e-9 <= found.change <= found.upper + 1e-9
    margin = GATE.margin_rel * b
    if n >= 10_000 and abs(d - margin) > 1_500:
        assert decide(GATE, sums) == ("halt" if d > margin else "promote")
