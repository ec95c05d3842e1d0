"""The canary's several tests and their one verdict: any may halt, all must promote."""

import math
from dataclasses import astuple, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.canary import (
    UNIT,
    Gate,
    Pairs,
    Sums,
    band,
    contribution,
    decide,
    harm,
    judge,
    safe,
)

GATE = Gate()


def devices(n: int, change: int, spread: int = 1_000) -> Sums:
    """n devices at 10 % errors: half of them `change` plus, half minus `spread`, in units."""
    d = [change + spread, change - spread] * (n // 2)
    b = 10_000
    return Sums(n, sum(d), sum(x * x for x in d), n * b, n * b * b, sum(d) * b)


SAME, WORSE, FEW = devices(2_000, 0), devices(2_000, 1_200), devices(10, 0)
GOOD = Pairs(SAME, {"h1": SAME, "h2": SAME}, SAME, devices(200, 0, 0))


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        (GOOD, ("promote", "pooled")),
        (Pairs(SAME), ("promote", "pooled")),
        (Pairs(WORSE), ("halt", "pooled")),
        (Pairs(Sums()), (None, "pooled")),
        (replace(GOOD, pooled=WORSE), ("halt", "pooled")),
        (replace(GOOD, pooled=FEW), (None, "pooled")),
        (replace(GOOD, chain=WORSE), ("halt", "chain")),
        (replace(GOOD, chain=FEW), (None, "chain")),
        (replace(GOOD, chain=Sums()), (None, "chain")),
        (replace(GOOD, classes={"h1": SAME, "h2": WORSE}), ("halt", "class h2")),
        (replace(GOOD, classes={"h1": FEW, "h2": WORSE}), ("halt", "class h2")),
        (replace(GOOD, classes={"h1": SAME, "h2": Sums()}), (None, "class h2")),
        (replace(GOOD, placebo=WORSE), (None, "placebo")),
        (replace(GOOD, placebo=devices(2_000, -1_200)), (None, "placebo")),
        (replace(GOOD, placebo=WORSE, pooled=WORSE), ("halt", "pooled")),
    ],
)
def test_any_test_halts_and_all_must_promote(pairs: Pairs, verdict: tuple[str | None, str]) -> None:
    assert judge(GATE, pairs) == verdict


def test_a_class_may_change_more_than_the_fleet_and_a_chain_more_than_one_release() -> None:
    """+4.5 % of all devices is harm; of a class it is not; of a chain it is too near to 5 %."""
    sums = devices(6_000, 450)
    assert decide(GATE, sums) == "halt"
    assert decide(GATE.of_class(8), sums) == "promote"
    assert decide(GATE.of_chain(8), sums) is None
    assert decide(GATE.of_chain(8), devices(6_000, 300)) == "promote"


@pytest.mark.parametrize("classes", [0, 1, 8, 50])
def test_all_halting_tests_together_halt_wrongly_no_more_often_than_their_alphas(
    classes: int,
) -> None:
    rules = [GATE, GATE.of_chain(classes), *[GATE.of_class(classes)] * classes]
    total = sum(rule.alpha_halt for rule in rules) + GATE.alpha_failures
    assert total == pytest.approx(GATE.alpha_halt + GATE.alpha_parts + GATE.alpha_failures)
    assert total == pytest.approx(0.015)
    assert total + GATE.alpha_signals == pytest.approx(0.02)


def test_a_part_of_a_gate_differs_in_what_the_part_needs_and_in_nothing_else() -> None:
    def changed(rule: Gate) -> set[str]:
        return {f.name for f in fields(Gate) if getattr(rule, f.name) != getattr(GATE, f.name)}

    assert changed(GATE.of_class(8)) == {"margin_rel", "alpha_halt", "pairs_promote_least"}
    assert changed(GATE.of_chain(8)) == {"margin_rel", "alpha_halt"}
    assert changed(GATE.of_placebo()) == {"margin_rel", "alpha_promote", "pairs_promote_least"}
    assert changed(GATE.trusting()) == {"hostile_count", "hostile_share"}


def test_a_placebo_that_hears_the_same_twice_is_still_for_ever() -> None:
    for n in (1, 20, 1_000, 1_000_000):
        still = Sums(n, 0, 0, n * 10_000, n * 10_000**2, 0)
        assert decide(GATE.of_placebo(), still) is None
        assert judge(GATE, replace(GOOD, placebo=still)) == ("promote", "pooled")


@pytest.mark.attack("T13")
def test_a_few_liars_in_the_placebo_arm_block_no_release() -> None:
    lies = Sums(3, 9_000, 27_000_000, 0, 0, 0)
    for n in (20, 200, 2_000):
        still = Sums(n, 0, 0, n * 10_000, n * 10_000**2, 0)
        told = Sums(*(x + y for x, y in zip(astuple(still), astuple(lies), strict=True)))
        assert judge(GATE, replace(GOOD, placebo=told))[0] == "promote"


def test_the_band_without_liars_is_narrower_and_inside() -> None:
    sums = devices(800, 100)
    low, high = band(GATE, sums)
    trusting_low, trusting_high = band(GATE.trusting(), sums)
    assert low < trusting_low < 100 / UNIT < trusting_high < high


@pytest.mark.parametrize("change", [-300, 0, 250, 900])
@pytest.mark.parametrize("n", [20, 300, 5_000])
def test_the_edges_of_the_band_are_where_the_evidence_reaches_its_threshold(
    n: int, change: int
) -> None:
    sums, plain = devices(n, change), replace(GATE, margin_rel=0.0)
    low, high = band(GATE, sums)
    assert -GATE.clip <= low <= high <= GATE.clip
    if low > -GATE.clip:
        assert harm(plain, sums, low) == pytest.approx(GATE.threshold_halt, abs=1e-5)
    if high < GATE.clip:
        assert safe(plain, sums, high) == pytest.approx(GATE.threshold_promote, abs=1e-5)


def test_a_shift_is_a_margin_in_points() -> None:
    """At one old rate for all, 2 % of it and 0.2 points are the same question."""
    sums = devices(500, 350)
    alone = replace(GATE.trusting(), margin_rel=0.0, base_cap=0.1)
    relative = replace(alone, margin_rel=0.02)
    assert harm(alone, sums, 0.002) == pytest.approx(harm(relative, sums), rel=1e-12)
    assert safe(alone, sums, 0.002) == pytest.approx(safe(relative, sums), rel=1e-12)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 600), st.integers(-4_000, 4_000))
def test_what_is_known_of_a_shard_is_taken_out_before_the_clip(
    old: int, new: int, words: int, known: int
) -> None:
    wide = replace(GATE, clip=1.0)
    raw, b = contribution(wide, old, new, words)
    d = max(-3_000, min(3_000, raw - known))
    if abs(new - old) <= words:
        assert contribution(GATE, old, new, words, known) == (d, b)
    assert contribution(GATE, old, new, words, 0) == contribution(GATE, old, new, words)


def test_an_expected_change_that_comes_true_leaves_no_noise() -> None:
    """Every shard does what the maker's run of it said: all devices agree at once."""
    shards = [(40 + 5 * i, 40 + 5 * i + (i % 7) - 3) for i in range(20)]  # (old, new) errors
    words, changes = 500, [(new - old) * UNIT // 500 for old, new in shards]
    pool = round(sum(changes) / len(changes))
    found = {
        contribution(GATE, old, new, words, change - pool)[0]
        for (old, new), change in zip(shards, changes, strict=True)
    }
    assert found == {pool}


def test_thresholds_of_the_parts_follow_from_their_share_of_alpha() -> None:
    assert GATE.of_class(8).threshold_halt == pytest.approx(math.log(9 / 0.005))
    assert GATE.of_chain(0).threshold_halt == pytest.approx(math.log(1 / 0.005))
