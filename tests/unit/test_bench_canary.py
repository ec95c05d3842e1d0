"""The rules and the fleets of the canary's benchmark are what it says that they are."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks import published
from benchmarks.canary import RUNS, cases
from benchmarks.canary_fleet import CHURN, WORDS, Fleet, Pool
from benchmarks.canary_looks import Counts, Outcome, first_said, first_verdict, sums_of
from benchmarks.canary_rows import CLASSES, GATE, failing, failing_exactly, noiseless
from benchmarks.drawn import quantile, share
from benchmarks.laws import generator
from service.core.canary import Gate, Pairs, Sums, contribution, decide, judge


def test_the_drawn_devices_have_the_spread_that_the_figures_are_for() -> None:
    old, new = Fleet(0.0).devices(generator("spread"), 200_000)
    change = (new - old) / WORDS
    assert old.mean() / WORDS == pytest.approx(0.1, rel=0.01)
    assert (old / WORDS).std() / 0.1 == pytest.approx(0.58, abs=0.02)
    assert change.std() == pytest.approx(0.0124, rel=0.03)
    assert abs(change.mean()) < 0.0001


def test_a_change_changes_the_mean_and_liars_lie() -> None:
    old, new = Fleet(0.2).devices(generator("change"), 100_000)
    assert (new - old).mean() / old.mean() == pytest.approx(0.2, abs=0.005)
    for lie, told in (("inflate", (0, WORDS)), ("deflate", (WORDS, 0))):
        old, new = Fleet(0.0, 0.05, lie).devices(generator(lie), 100_000)
        lying = (old == told[0]) & (new == told[1])
        assert lying.mean() == pytest.approx(0.05, abs=0.004)


def test_the_sums_are_the_product_s_contributions() -> None:
    fleet = Fleet(0.1, 0.05)
    old, new = fleet.devices(generator("sums"), 300)
    pairs = [contribution(GATE, int(o), int(n), WORDS) for o, n in zip(old, new, strict=True)]
    added = [(1, d, d * d, b, b * b, d * b) for d, b in pairs]
    total = fleet.draw(GATE, generator("sums"))(300).sum(axis=1)
    assert sums_of(total) == Sums(*map(sum, zip(*added, strict=True)))


def test_a_chain_keeps_fewer_errors_of_its_base_with_every_release() -> None:
    for k, kept in ((1, 0.7), (3, 0.343)):
        fleet = Fleet(0.0, churn=1 - (1 - CHURN) ** k)
        old, new = fleet.devices(generator("chain", k), 200_000)
        assert (new - old).var() / 50 == pytest.approx(2 * (1 - kept) + 0.16, rel=0.1)


def test_devices_of_a_pool_are_as_those_of_a_fleet_until_one_knows_the_shards() -> None:
    def spread(fleet: Fleet | Pool) -> float:
        d = fleet.draw(replace(GATE, clip=1.0), generator("pool"))(50_000)[1]
        return float(d.std()) / 1_000

    apart, alike = Pool(0.0), Pool(0.0, differing=1 / 15, spread=0.0)
    assert spread(replace(apart, known=False)) == pytest.approx(spread(Fleet(0.0)), rel=0.05)
    assert spread(apart) == pytest.approx(0.70, abs=0.03)
    assert spread(alike) == pytest.approx(0.40, abs=0.03)


def test_on_a_pool_of_one_shard_the_luck_of_the_set_never_averages_out() -> None:
    pool = Pool(0.0, shards=1, differing=0.0, spread=0.0, known=False)
    d = pool.draw(GATE, generator("one shard"))(1_000)[1]
    assert set(d.tolist()) == {d[0]}


def at_every_report(gate: Gate, draws: Counts) -> Outcome:
    """Return the same as `first_verdict`, the slow way."""
    totals = np.cumsum(draws, axis=1)
    for look in range(totals.shape[1]):
        if verdict := decide(gate, sums_of(totals[:, look])):
            return verdict, look + 1
    return None, totals.shape[1]


@pytest.mark.parametrize(
    "fleet",
    [Fleet(-0.1), Fleet(0.0), Fleet(0.02), Fleet(0.06), Fleet(0.2, 0.05, "deflate"), Pool(0.1)],
    ids=str,
)
@pytest.mark.parametrize(
    "gate", [GATE, GATE.trusting(), GATE.of_class(CLASSES), GATE.of_chain(CLASSES)]
)
def test_looks_that_are_not_taken_would_have_said_nothing(fleet: Fleet | Pool, gate: Gate) -> None:
    """The first verdict is the product's at the first report at which it speaks at all."""
    draws = fleet.draw(gate, generator("looks"))(800)
    parts = np.split(draws, [128, 512], axis=1)
    found = first_verdict(gate, lambda n: parts.pop(0), 800)
    assert found == at_every_report(gate, draws)


@pytest.mark.parametrize("change", [0.0, 0.3])
def test_of_classes_too_the_first_verdict_is_that_of_all_tests_together(change: float) -> None:
    rng = generator("classes")
    fleets = [Fleet(change), *[Fleet(0.0)] * 3]
    classes = [np.cumsum(fleet.draw(GATE, rng)(200), axis=1) for fleet in fleets]
    whole = np.sum(classes, axis=0)

    def say(look: int) -> str | None:
        parts = {str(i): sums_of(one[:, look]) for i, one in enumerate(classes)}
        return judge(GATE, Pairs(sums_of(whole[:, look]), parts))[0]

    rule = GATE.of_class(4)
    slow = next((say(look), look) for look in range(200) if say(look))
    assert first_said([(GATE, whole), *((rule, one) for one in classes)], say) == slow
    assert slow[0] == ("halt" if change else "promote")


@pytest.mark.parametrize(("change", "verdict"), [(-0.2, "promote"), (0.3, "halt")])
def test_a_rollout_ends_with_its_first_verdict(change: float, verdict: str) -> None:
    rngs = [generator(i) for i in range(5)]
    found = [first_verdict(GATE, Fleet(change).draw(GATE, rng), 1_000) for rng in rngs]
    assert [kind for kind, _ in found] == [verdict] * 5
    assert all(20 <= n <= 300 for _, n in found)
    held = Fleet(0.02).draw(GATE, generator("held"))
    assert first_verdict(GATE, held, 500) == (None, 500)


@pytest.mark.parametrize(("hits", "of"), [(1, 400), (8, 400), (200, 400), (400, 400)])
def test_a_share_is_at_least_what_would_give_so_many_hits_once_in_a_hundred(
    hits: int, of: int
) -> None:
    row = share("w", "f", hits, of)
    chance = stats.binom.sf(hits - 1, of, row.least / 100)
    assert row.value == 100 * hits / of
    assert chance == pytest.approx(0.01)


def test_what_never_happened_may_be_impossible() -> None:
    assert share("w", "f", 0, 400, goal=0.0).least == 0
    assert share("w", "f", 0, 400, goal=0.0).holds
    assert not share("w", "f", 1, 400, goal=0.0).holds


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_a_quantile_is_at_least_what_luck_alone_exceeds_once_in_a_hundred(q: float) -> None:
    """Of 400 numbers, fewer than `least` are below their true quantile with at most 1 %."""
    row = quantile("w", "f", range(1, 401), q)
    assert stats.binom.cdf(row.least - 1, 400, q) <= 0.01 < stats.binom.cdf(row.least, 400, q)


def test_a_goal_is_missed_only_where_luck_does_not_explain_it() -> None:
    values = range(1, 401)
    assert quantile("w", "f", values, 0.5, goal=178).holds
    assert not quantile("w", "f", values, 0.5, goal=176).holds
    assert quantile("w", "f", values, 0.5).holds


def test_what_is_added_up_over_all_that_can_happen_is_what_is_drawn() -> None:
    drawn = {row.figure: row.value for row in failing("drawn", 0.05, {}, 1_000)}
    exact = {row.figure: row.value for row in failing_exactly("exact", 0.05)}
    assert drawn["halt"] == pytest.approx(exact["halt"], abs=2.5)
    name = "devices to halt, median"
    assert drawn[name] == pytest.approx(exact[name], rel=0.1)


def test_without_noise_too_it_is_the_product_that_speaks() -> None:
    at = int(noiseless("floor", GATE, 0.0)[0].value)
    same = [Sums(n, 0, 0, n * 10_000, n * 10_000**2, 0) for n in (at - 1, at)]
    assert [decide(GATE, sums) for sums in same] == [None, "promote"]


def test_a_row_has_at_least_400_runs_and_every_goal_is_kept_by_the_same_rule() -> None:
    assert RUNS >= 400
    assert len({(case.func, case.args[0]) for case in cases(1)}) > 40  # type: ignore[attr-defined]


def test_every_row_can_be_measured() -> None:
    for case in cases(1)[::7]:
        rows = case()
        assert rows
        assert all(math.isfinite(row.value) for row in rows)


def test_the_spending_bounds_are_the_published_ones() -> None:
    """Lan & DeMets, five looks, alpha 0.025 on one side."""
    known = [4.8769, 3.3569, 2.6803, 2.2898, 2.0310]
    assert published.spending_bounds(5, 0.025) == pytest.approx(known, abs=0.01)


def test_a_group_sequential_test_halts_at_the_first_look_beyond_its_bound() -> None:
    planned, bounds = np.array([250, 500, 750]), np.array([5.0, 3.5, 2.9])
    assert published.group_sequential(np.array([4.9, 3.6, 9.0]), planned, bounds) == 500
    assert published.group_sequential(np.array([4.9, 3.4, 2.8]), planned, bounds) is None


def test_z_is_the_usual_one() -> None:
    rng = np.random.default_rng(5)
    one, other, planned = rng.normal(0, 1, 400), rng.normal(0.1, 2, 400), np.array([200, 400])
    welch = stats.ttest_ind(other, one, equal_var=False).statistic
    paired = stats.ttest_1samp(other - one, 0).statistic
    assert published.z_unpaired(one, other, planned)[1] == pytest.approx(welch, rel=0.01)
    assert published.z_paired(other - one, planned)[1] == pytest.approx(paired, rel=0.01)


def test_mann_whitney_halts_only_where_scipy_s_test_rejects_and_always_where_it_is_sure() -> None:
    """Its limit is a quarter of the shift and not zero, so it asks for a little more."""
    rng = np.random.default_rng(7)
    seen = set()
    for _ in range(60):
        old = rng.normal(0.1, 0.02, 10 * published.WINDOW)
        new = rng.normal(0.103, 0.02, 10 * published.WINDOW)
        series = [v.reshape(10, published.WINDOW).mean(axis=1) for v in (old, new)]
        p = stats.mannwhitneyu(series[1], series[0], alternative="greater", method="asymptotic")
        halted = published.mann_whitney(old, new) is not None
        assert p.pvalue < 0.012 if halted else p.pvalue > 0.0005
        seen.add(halted)
    assert seen == {True, False}


def test_a_threshold_forgives_four_windows() -> None:
    old = np.full(10 * published.WINDOW, 0.1)
    new = old.copy()
    new[: 4 * published.WINDOW] = 0.2
    assert published.threshold(old, new) is None
    new[8 * published.WINDOW :] = 0.2
    assert published.threshold(old, new) == 9 * published.WINDOW


def test_the_msprt_is_the_mixture_of_its_likelihood_ratios() -> None:
    rng = np.random.default_rng(11)
    change = rng.normal(0.004, 0.0124, 300)
    n = published.mixture_sprt(change, np.arange(50, 301))
    assert n is not None
    for at, beyond in ((n, True), (n - 1, False)):
        x, tau = change[:at], 0.005
        grid = np.linspace(-8, 8, 4001) * tau
        log_ratio = (grid * x.sum() - at * grid**2 / 2) / x.var()
        weight = np.exp(-((grid / tau) ** 2) / 2) / (tau * math.sqrt(2 * math.pi))
        ratio = float((np.exp(log_ratio) * weight).sum() * (grid[1] - grid[0]))
        assert (ratio >= 1 / 0.02) == beyond
