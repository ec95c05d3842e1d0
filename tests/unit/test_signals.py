"""What is told without a reference may halt or warn, and never promotes."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.canary import UNIT, Gate, Sums
from service.core.policy import Observation, decide, recall
from service.core.signals import (
    DIFFER_MOST,
    EMPTY_RISE,
    MAY_HALT,
    Signs,
    devices,
    evidence,
    halting,
    rule,
    said,
    sentence,
    state,
)
from tests.unit.test_policy import QUIET, ROWS

GATE = Gate()
HONEST = GATE.trusting()


def told(worse: int, better: int, neither: int = 0) -> Sums:
    """So many devices that say worse, better or neither."""
    net, either = worse - better, worse + better
    return Sums(either + neither, net * UNIT, either * UNIT**2)


counts = st.integers(0, 5_000)
anything = st.dictionaries(
    st.sampled_from(sorted(MAY_HALT)), st.builds(told, counts, counts, counts)
)
seen = st.sampled_from(ROWS).map(lambda row: replace(QUIET, **row[1]))


@settings(deadline=None)
@given(seen, anything)
def test_no_signal_makes_a_release_look_safe_nor_a_halt_anything_else(
    without: Observation, signals: dict[str, Sums]
) -> None:
    plain, now = decide(without), decide(replace(without, signals=signals))
    assert now.kind in (plain.kind, "halt")
    if plain.kind == "halt" or now.kind != "halt":
        assert now == plain


@pytest.mark.parametrize("change", [row[1] for row in ROWS], ids=[row[0] for row in ROWS])
@pytest.mark.parametrize("name", sorted(MAY_HALT))
def test_what_every_device_says_halts_where_it_may(change: dict[str, Any], name: str) -> None:
    plain = decide(replace(QUIET, **change))
    now = decide(replace(QUIET, **change, signals={name: told(500, 0)}))
    if not MAY_HALT[name] or plain.kind == "halt" or "reasons" in change:  # it is paused
        assert now == plain
    else:
        assert (now.kind, now.reason) == ("halt", "signals")
        assert now.because == f"{name}: worse on 500 of 500 devices, better on 0"


@settings(deadline=None)
@given(seen, anything)
def test_a_verdict_with_signals_follows_from_its_row(
    before: Observation, signals: dict[str, Sums]
) -> None:
    whole = replace(before, signals=signals)
    written = json.loads(json.dumps(asdict(whole)))
    assert recall(written) == whole
    assert decide(recall(written)) == decide(whole)


def test_a_row_from_before_there_were_signals_is_read_without_them() -> None:
    written = json.loads(json.dumps(asdict(QUIET)))
    del written["signals"]
    for name in ("alpha_signals", "signal_share", "latency_ratio"):
        del written["gate"][name]
    assert recall(written) == QUIET


# How much it takes


@pytest.mark.parametrize(
    ("worse", "better", "neither", "expected"),
    [
        (32, 0, 0, "halt"),
        (31, 0, 0, "quiet"),
        (19, 0, 0, "quiet"),
        (0, 5_000, 0, "quiet"),
        (0, 0, 5_000, "quiet"),
        (2_000, 2_000, 0, "quiet"),
        (250, 0, 4_750, "quiet"),
        (500, 300, 200, "halt"),
    ],
)
def test_so_many_devices_are_enough(worse: int, better: int, neither: int, expected: str) -> None:
    sums = told(worse, better, neither)
    assert state(GATE, "empty", sums) == state(GATE, "latency", sums) == expected
    assert state(GATE, "differ", sums) == expected.replace("halt", "warn")
    assert halting(GATE, {"differ": sums}) is None
    assert halting(GATE, {"differ": sums, "latency": sums}) == (
        "latency" if expected == "halt" else None
    )


@pytest.mark.parametrize("n", [20, 50, 300, 2_000, 50_000])
def test_as_many_liars_as_the_budget_has_halt_nothing(n: int) -> None:
    liars = math.floor(GATE.hostile_count + GATE.hostile_share * n)
    share = math.floor(GATE.signal_share * n)
    assert state(GATE, "latency", told(liars + share, 0, n - liars - share)) == "quiet"


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("either", [0.1, 0.5, 1.0])
def test_evidence_has_no_expected_gain_at_the_share_that_is_allowed(
    share: float, either: float
) -> None:
    """E[e] <= 1, summed over all that 40 devices can say."""
    gate, n = replace(HONEST, signal_share=share), 40
    either = max(either, share)
    worse, better = (either + share) / 2, (either - share) / 2
    total = 0.0
    for up in range(n + 1):
        for down in range(n + 1 - up):
            ways = math.comb(n, up) * math.comb(n - up, down)
            chance = ways * worse**up * better**down * (1 - worse - better) ** (n - up - down)
            total += chance * math.exp(evidence(gate, told(up, down, n - up - down)))
    assert 0 < total <= 1 + 1e-9


def test_signals_share_their_chance_to_speak_wrongly() -> None:
    assert len(MAY_HALT) * rule(GATE).alpha_halt == pytest.approx(GATE.alpha_signals)


def test_a_gate_whose_share_is_one_hears_no_signal() -> None:
    assert state(replace(GATE, signal_share=1.0), "empty", told(5_000, 0)) == "quiet"


@given(counts, counts, counts)
def test_sums_tell_how_many_devices_said_what(worse: int, better: int, neither: int) -> None:
    sums = told(worse, better, neither)
    assert devices(sums) == (worse, better)
    assert sentence("empty", sums).startswith(f"empty: worse on {worse} of {sums.n} ")


# What one device says

NO = dict[str, int]()
SIGNS: list[tuple[Signs, dict[str, int]]] = [
    (Signs(20), NO),
    (Signs(20, old_empty=3), NO),
    (Signs(20, new_empty=3), NO),
    (Signs(20, old_ms=100), NO),
    (Signs(20, old_ms=0, new_ms=100), NO),
    (Signs(20, old_ms=100, new_ms=0), NO),
    (Signs(20, differ=0), {"differ": 0}),
    (Signs(20, differ=16), {"differ": 0}),
    (Signs(20, differ=17), {"differ": 1}),
    (Signs(20, old_empty=0, new_empty=1), {"empty": 0}),
    (Signs(20, old_empty=0, new_empty=2), {"empty": 1}),
    (Signs(20, old_empty=2, new_empty=0), {"empty": -1}),
    (Signs(20, old_empty=20, new_empty=20), {"empty": 0}),
    (Signs(20, old_ms=100, new_ms=150), {"latency": 0}),
    (Signs(20, old_ms=100, new_ms=151), {"latency": 1}),
    (Signs(20, old_ms=151, new_ms=100), {"latency": -1}),
    (Signs(20, old_ms=1, new_ms=1 << 53), {"latency": 1}),
    (Signs(20, 20, 0, 20, 1, 2), {"differ": 1, "empty": 1, "latency": 1}),
]


@pytest.mark.parametrize(("signs", "expected"), SIGNS)
def test_a_device_says_of_each_signal_what_it_can(signs: Signs, expected: dict[str, int]) -> None:
    assert (DIFFER_MOST, EMPTY_RISE) == (0.8, 0.05)
    assert said(GATE, signs) == {name: sign * UNIT for name, sign in expected.items()}


def test_how_much_slower_is_slow_is_for_the_gate_to_say() -> None:
    signs = Signs(20, old_ms=100, new_ms=250)
    assert said(replace(GATE, latency_ratio=3.0), signs) == {"latency": 0}
