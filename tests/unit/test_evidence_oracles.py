"""The evidence against two strangers: scipy's special functions, and confseq's C++.

confseq was compiled once by hand; `confseq.json` holds what it said, and where it came from.
"""

import json
import math
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special

from service.core.evidence import log_e, log_e_share, sharpest

CONFSEQ = json.loads(Path(__file__).with_name("confseq.json").read_text())
quick = settings(max_examples=300, deadline=None)


def log_gamma_p(a: float, x: float) -> float:
    """ln P(a, x), by scipy; its P is exact in both tails up to a = 1e5."""
    upper = float(special.gammaincc(a, x))
    return math.log1p(-upper) if upper < 0.5 else math.log(float(special.gammainc(a, x)))


def closed_form(s: float, v: float, rho: float, c: float) -> float:
    """The formula of the paper, with gamma functions."""
    r, a = rho / c**2, (v + rho) / c**2
    x = (c * s + v) / c**2 + r
    norm = r * math.log(r) - math.lgamma(r) - log_gamma_p(r, r)
    return norm + math.lgamma(a) + log_gamma_p(a, x) - a * math.log(x) + (x - r)


@quick
@given(
    st.floats(-3, 2),  # log10 of r = rho / c**2
    st.floats(-4, 5),  # log10 of v / c**2
    st.floats(-6, 60),  # s in standard deviations
    st.floats(0.001, 1.5),
)
def test_scipy_says_the_same(r10: float, v10: float, z: float, c: float) -> None:
    rho, v = 10**r10 * c**2, 10**v10 * c**2
    s = z * math.sqrt(v + rho)
    a, x = (v + rho) / c**2, (c * s + v + rho) / c**2
    assume(x > 0 and special.gammainc(a, x) > 1e-290)
    lost = 1e-14 + 1e-15 * (a + x) * (1 + abs(math.log(x)))  # what the closed form cancels
    assert log_e(s, v, rho, c) == pytest.approx(closed_form(s, v, rho, c), rel=1e-11, abs=5 * lost)


@pytest.mark.parametrize("row", CONFSEQ["rows"], ids=str)
def test_confseq_says_the_same(row: list[float]) -> None:
    v_opt, alpha, c, s, v, told = row
    assert log_e(s, v, sharpest(v_opt, alpha), c) == pytest.approx(told, rel=2e-9, abs=2e-9)


def test_there_are_rows_of_confseq_on_both_sides_of_every_threshold() -> None:
    told = [row[-1] for row in CONFSEQ["rows"]]
    assert len(told) == 123
    assert sum(value > math.log(200) for value in told) > 20 < sum(value < 0 for value in told)


@pytest.mark.parametrize("devices", [10**k for k in range(0, 13, 2)])
@pytest.mark.parametrize("deviations", [-3.0, 0.0, 3.0, 6.0])
def test_a_trillion_devices_lose_no_digit(devices: int, deviations: float) -> None:
    """For many devices the mixture is the normal one: ln Phi and a square, to first order."""
    rho, sigma, c = 0.0062, 0.012, 0.04
    v = devices * sigma**2
    z = deviations * math.sqrt(v) / math.sqrt(v + rho)
    found = log_e(deviations * math.sqrt(v), v, rho, c)
    r = rho / c**2
    norm = r * math.log(r) - r - math.lgamma(r) - log_gamma_p(r, r)
    a = (v + rho) / c**2
    normal = norm + math.log(2 * math.pi / a) / 2 + z * z / 2 + float(special.log_ndtr(z))
    # The next term of the expansion is of the order z**3 / sqrt(a).
    assert abs(found - normal) <= (2 + abs(z) ** 3) / math.sqrt(a)


@pytest.mark.parametrize("c", [1e-4, 0.03, 2.0])
@pytest.mark.parametrize("rho", [1e-12, 1e-3, 1e6])
@pytest.mark.parametrize("v", [0.0, 1e-9, 1.0, 1e9])
@pytest.mark.parametrize("s", [-1e9, -1.0, -1e-9, 0.0, 1e-9, 1.0, 1e9])
def test_no_sums_however_odd_are_no_number(s: float, v: float, rho: float, c: float) -> None:
    found = log_e(s, v, rho, c)
    assert found < math.inf and not math.isnan(found)
    if s <= 0:
        assert found <= 1e-9 * (1 + rho / c**2)  # no evidence where the mean is fine


@pytest.mark.parametrize("rho", [1e-12, 0.0062, 1e6])
@pytest.mark.parametrize("c", [1e-4, 0.04, 2.0])
def test_before_the_first_device_the_evidence_is_one(rho: float, c: float) -> None:
    assert log_e(0.0, 0.0, rho, c) == 0.0


def test_the_sharpest_mixture_is_sharper_than_its_neighbours() -> None:
    """The sum that reaches the threshold at that variance is about the least possible."""
    v, alpha = 0.072, 0.005

    def needed(rho: float) -> float:
        least, most = 0.0, 10.0
        for _ in range(60):
            middle = (least + most) / 2
            enough = log_e(middle, v, rho, 1e-3) >= math.log(1 / alpha)
            least, most = (least, middle) if enough else (middle, most)
        return most

    best = needed(sharpest(v, alpha))
    assert best <= needed(sharpest(v, alpha) * 2) and best <= needed(sharpest(v, alpha) / 2)


@pytest.mark.parametrize(("hits", "of"), [(0, 0), (0, 9), (3, 10), (10, 10)])
def test_a_share_is_judged_by_its_likelihood_ratio(hits: int, of: int) -> None:
    ratio = special.xlogy(hits, 0.08 / 0.02) + special.xlogy(of - hits, 0.92 / 0.98)
    assert log_e_share(hits, of, 0.02, 0.08) == pytest.approx(float(ratio))
