"""The rules and the fleets of the canary's benchmark are what it says that they are."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks import published
from benchmarks.canary import GATE, first_verdict, looks
from benchmarks.canary_fleet import WORDS, Fleet, columns, sums_of
from benchmarks.laws import generator
from service.core.canary import Sums, contribution


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
    total = columns(GATE, fleet, generator("sums"), 300).sum(axis=1)
    assert sums_of(total) == Sums(*map(sum, zip(*added, strict=True)))


def test_one_looks_after_every_report_and_later_less_often() -> None:
    assert looks(230) == [*range(1, 201), 210, 220, 230]
    assert looks(1_060)[-4:] == [990, 1_000, 1_025, 1_050]
    assert looks(3_250)[-3:] == [3_000, 3_100, 3_200]


@pytest.mark.parametrize(("change", "verdict"), [(-0.2, "promote"), (0.3, "halt")])
def test_a_rollout_ends_with_its_first_verdict(change: float, verdict: str) -> None:
    found = [first_verdict(GATE, Fleet(change), generator(i), 1_000) for i in range(5)]
    assert [kind for kind, _ in found] == [verdict] * 5
    assert all(20 <= n <= 300 for _, n in found)
    assert first_verdict(GATE, Fleet(0.02), generator("held"), 500) == (None, 500)


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
