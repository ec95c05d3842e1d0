"""What a rollout does next, for every kind of observation."""

import json
import math
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.canary import Gate, Pairs, Sums
from service.core.policy import (
    BUCKETS,
    GATE_BOUNDS,
    PASSING,
    Observation,
    bucket,
    decide,
    gate_of,
    recall,
    shard_of,
    waits_for,
)

GATE = Gate()
NO_PAIRS = Pairs(Sums())
N = 4000  # without a change, and one point worse, at a rate of 10 %
SAFE = Pairs(Sums(N, 0, N * 1_200**2, N * 10_000, N * 10_000**2, 0))
WORSE = Pairs(Sums(N, N * 1_000, N * 1_600**2, N * 10_000, N * 10_000**2, N * 10_000_000))
FEW = Pairs(Sums(5, 0, 5 * 1_200**2, 5 * 10_000, 5 * 10_000**2, 0))


def beside(**more: Any) -> Pairs:
    """All pairs together are safe, and there is more to see."""
    return replace(SAFE, **more)


STILL = Sums(N, 0, 0, N * 10_000, N * 10_000**2, 0)
DOWN = Sums(N, -N * 1_000, N * 1_600**2, N * 10_000, N * 10_000**2, -N * 10_000_000)
AWFUL = Sums(N, N * 2_000, N * 2_400**2, N * 10_000, N * 10_000**2, N * 20_000_000)
GOOD, BAD_SUMS, LITTLE = SAFE.pooled, WORSE.pooled, FEW.pooled
M = 120
SMALL = Pairs(Sums(M, -M * 2_000, M * 2_000**2, M * 10_000, M * 10_000**2, -M * 20_000_000))
QUIET = Observation(
    gate=GATE,
    pairs=SAFE,
    stage=1,
    stages=3,
    stage_s=100.0,
    soak_s=60,
    finished=N,
    failures=0,
    remaining=0,
)
LATE = float(GATE.undecided_s)
ROWS: list[tuple[str, dict[str, Any], tuple[str, str]]] = [
    ("safe and soaked", {}, ("advance", "safe")),
    ("safe in the last stage", {"stage": 3}, ("finish", "done")),
    ("safe, but some have yet to take it", {"stage": 3, "remaining": 1}, ("hold", "spreading")),
    ("the rest of an early stage may follow", {"remaining": 7}, ("advance", "safe")),
    ("safe, not soaked", {"stage_s": 59.0}, ("hold", "soak")),
    ("safe, soaked to the second", {"stage_s": 60.0}, ("advance", "safe")),
    ("safe after the time limit", {"stage_s": LATE}, ("advance", "safe")),
    ("worse", {"pairs": WORSE}, ("halt", "wer")),
    ("worse, whatever a person said", {"pairs": WORSE, "overridden": True}, ("halt", "wer")),
    ("worse, in the last stage", {"pairs": WORSE, "stage": 3}, ("halt", "wer")),
    ("worse, before the soak", {"pairs": WORSE, "stage_s": 0.0}, ("halt", "wer")),
    ("safe words, failing devices", {"finished": 50, "failures": 25}, ("halt", "failures")),
    ("no pairs, failing devices", {"pairs": NO_PAIRS, "finished": 9, "failures": 9},
     ("halt", "failures")),
    ("failing, whatever a person said", {"finished": 9, "failures": 9, "overridden": True},
     ("halt", "failures")),
    ("one failure of one is no storm", {"finished": 1, "failures": 1}, ("hold", "unproven")),
    ("good words, but nobody showed the new bytes", {"finished": 0}, ("hold", "unproven")),
    ("four fifths showed the new bytes", {"finished": N * 4 // 5}, ("advance", "safe")),
    ("one less than four fifths did", {"finished": N * 4 // 5 - 1}, ("hold", "unproven")),
    ("the harmless share fails", {"failures": N // 50}, ("advance", "safe")),
    ("no data", {"pairs": NO_PAIRS}, ("hold", "more_pairs")),
    ("no data in the last stage", {"pairs": NO_PAIRS, "stage": 3}, ("hold", "more_pairs")),
    ("no data for too long", {"pairs": NO_PAIRS, "stage_s": LATE}, ("pause", "gate_undecided")),
    ("few pairs", {"pairs": FEW}, ("hold", "more_pairs")),
    ("few pairs for too long", {"pairs": FEW, "stage_s": LATE}, ("pause", "gate_undecided")),
    ("a person decided", {"pairs": FEW, "overridden": True}, ("advance", "safe")),
    ("a person decided after the time limit",
     {"pairs": FEW, "overridden": True, "stage_s": LATE}, ("advance", "safe")),
    ("every class is safe", {"pairs": beside(classes={"h1": GOOD, "h2": GOOD})},
     ("advance", "safe")),
    ("one class has too few", {"pairs": beside(classes={"h1": GOOD, "h2": LITTLE})},
     ("hold", "more_pairs")),
    ("one class said nothing", {"pairs": beside(classes={"h1": GOOD, "h2": Sums()})},
     ("hold", "more_pairs")),
    ("one class has too few for too long",
     {"pairs": beside(classes={"h1": GOOD, "h2": LITTLE}), "stage_s": LATE},
     ("pause", "gate_undecided")),
    ("a person decided for a class",
     {"pairs": beside(classes={"h1": GOOD, "h2": LITTLE}), "overridden": True},
     ("advance", "safe")),
    ("one class is worse", {"pairs": beside(classes={"h1": GOOD, "h2": AWFUL})},
     ("halt", "wer")),
    ("one class is worse, whatever a person said",
     {"pairs": beside(classes={"h1": GOOD, "h2": AWFUL}), "overridden": True},
     ("halt", "wer")),
    ("the chain is safe", {"pairs": beside(chain=GOOD)}, ("advance", "safe")),
    ("the chain crept away", {"pairs": beside(chain=BAD_SUMS)}, ("halt", "wer")),
    ("few know the base of the chain", {"pairs": beside(chain=LITTLE)}, ("hold", "more_pairs")),
    ("the placebo is still", {"pairs": beside(placebo=STILL)}, ("advance", "safe")),
    ("the placebo moved up", {"pairs": beside(placebo=BAD_SUMS)}, ("hold", "placebo")),
    ("the placebo moved down", {"pairs": beside(placebo=DOWN)}, ("hold", "placebo")),
    ("the placebo moved for too long", {"pairs": beside(placebo=DOWN), "stage_s": LATE},
     ("pause", "gate_undecided")),
    ("a moved placebo makes nothing worse look good", {"pairs": replace(WORSE, placebo=BAD_SUMS)},
     ("halt", "wer")),
    ("as many failures as may be lies", {"finished": 3, "failures": 3, "pairs": FEW},
     ("hold", "more_pairs")),
    ("a storm of a few more than may lie", {"finished": 7, "failures": 6, "pairs": FEW},
     ("pause", "failure_rate")),
    ("a storm of a few in a small stage", {"finished": M, "failures": 11, "pairs": SMALL},
     ("pause", "failure_rate")),
    ("a storm that a person has seen",
     {"finished": M, "failures": 11, "pairs": SMALL, "finished_before": M, "failures_before": 11},
     ("advance", "safe")),
    ("a storm after one that a person has seen",
     {"finished": M + 9, "failures": 20, "finished_before": M, "failures_before": 11},
     ("halt", "failures")),
    ("nothing since a person looked, and a success is none any more",
     {"finished": M, "failures": 12, "finished_before": M, "failures_before": 11, "pairs": SMALL},
     ("advance", "safe")),
    ("a storm of more than may lie", {"finished": M, "failures": 12, "pairs": SMALL},
     ("halt", "failures")),
    ("some under way are silent", {"finished": 16, "under_way": 9, "silent": 7, "pairs": FEW},
     ("hold", "more_pairs")),
    ("a fifth is silent, and more than may lie",
     {"finished": 16, "under_way": 9, "silent": 8, "pairs": FEW}, ("pause", "silence")),
    ("nobody came back, and they are few", {"finished": 0, "under_way": 3, "silent": 3,
     "pairs": NO_PAIRS}, ("hold", "more_pairs")),
    ("nobody came back", {"finished": 0, "under_way": 4, "silent": 4, "pairs": NO_PAIRS},
     ("pause", "silence")),
    ("what is worse halts, heard of or not",
     {"under_way": N, "silent": N, "pairs": WORSE}, ("halt", "wer")),
    ("the budget is spent", {"pairs": FEW, "bytes_left": 9, "bytes_each": 10},
     ("pause", "budget")),
    ("the budget is enough for one", {"pairs": FEW, "bytes_left": 10, "bytes_each": 10},
     ("hold", "more_pairs")),
    ("the budget is spent by who is under way and may give some back",
     {"pairs": FEW, "bytes_left": 9, "bytes_each": 10, "under_way": 1}, ("hold", "more_pairs")),
    ("the budget is spent, and the stage has what it needs",
     {"bytes_left": 9, "bytes_each": 10}, ("advance", "safe")),
    ("the budget is spent, and the stage soaks",
     {"bytes_left": 9, "bytes_each": 10, "stage_s": 0.0}, ("hold", "soak")),
    ("the budget is spent on all of them",
     {"bytes_left": 9, "bytes_each": 10, "stage": 3}, ("finish", "done")),
    ("a signature runs out", {"pairs": FEW, "signed_s": 0.0}, ("pause", "metadata_expiring")),
    ("a signature holds", {"pairs": FEW, "signed_s": 1.0}, ("hold", "more_pairs")),
    ("a signature runs out when all is done", {"stage": 3, "signed_s": -1.0}, ("finish", "done")),
    ("no stage opens without its patches", {"lacking": "none from r1"},
     ("pause", "patches_missing")),
    ("a way back ended", {"stage": 3, "remaining": 1, "edge_ended": "it"}, ("pause", "edge_ended")),
    ("its way ended when all was done", {"stage": 3, "edge_ended": "none"}, ("finish", "done")),
    ("what went wrong comes before what is missing",
     {"pairs": WORSE, "signed_s": 0.0, "lacking": "none from r1"}, ("halt", "wer")),
    ("paused, and worse", {"reasons": ("operator",), "pairs": WORSE}, ("halt", "wer")),
    ("paused, and failing", {"reasons": ("silence",), "failures": N // 2}, ("halt", "failures")),
    ("sums that are none halt nothing", {"reasons": ("sums_disagree",), "pairs": WORSE},
     ("hold", "paused")),
    ("a person does not shorten the soak",
     {"pairs": FEW, "overridden": True, "stage_s": 0.0}, ("hold", "soak")),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_what_is_seen_decides(change: dict[str, Any], expected: tuple[str, str]) -> None:
    decision = decide(replace(QUIET, **change))
    assert (decision.kind, decision.reason) == expected
    assert decision.because


@pytest.mark.parametrize("change", [r[1] for r in ROWS], ids=[r[0] for r in ROWS])
def test_a_verdict_follows_from_what_was_written_down(change: dict[str, Any]) -> None:
    seen = replace(QUIET, **change)
    written = json.loads(json.dumps(asdict(seen)))
    assert recall(written) == seen
    assert decide(recall(written)) == decide(seen)


REASONS = ("operator", "gate_undecided", "failure_rate", "silence", "sums_disagree", *PASSING)


@given(
    reasons=st.sets(st.sampled_from(REASONS), min_size=1).map(lambda found: tuple(sorted(found))),
    left=st.integers(0, 20),
    signed_s=st.sampled_from((-1.0, 1.0)),
    lacking=st.sampled_from(("", "none from r1")),
    pairs=st.sampled_from((NO_PAIRS, SAFE)),
)
def test_a_pause_ends_only_when_each_of_its_reasons_did(
    reasons: tuple[str, ...], left: int, signed_s: float, lacking: str, pairs: Pairs
) -> None:
    asked = {"bytes_left": left, "bytes_each": 10, "signed_s": signed_s, "lacking": lacking}
    seen = replace(QUIET, reasons=reasons, pairs=pairs, edge_ended=lacking, **asked)
    decision = decide(seen)
    ended = {"budget": left >= 10, "metadata_expiring": signed_s > 0}
    ended |= dict.fromkeys(("patches_missing", "edge_ended"), not lacking)
    holds = {reason for reason in reasons if not ended.get(reason, False)}
    holds |= {"metadata_expiring"} if signed_s <= 0 else set()
    assert {*decision.reasons} == holds
    kind = "hold" if holds == {*reasons} else "pause" if holds else "resume"
    assert decision.kind == kind and decision.because
    assert "a person" not in waits_for(decision.reasons) or holds - {*PASSING}
    assert recall(json.loads(json.dumps(asdict(seen)))) == seen


observations = st.builds(
    Observation,
    gate=st.just(GATE),
    pairs=st.just(NO_PAIRS),
    stage=st.integers(1, 4),
    stages=st.just(4),
    stage_s=st.floats(0, 1e9),
    soak_s=st.integers(0, 1_000_000),
    finished=st.integers(0, 10_000),
    failures=st.just(0),
    remaining=st.integers(0, 10_000),
)


@given(observations)
def test_no_data_is_never_good(seen: Observation) -> None:
    assert decide(seen).kind in ("hold", "pause")


def test_the_sentence_says_how_many_more_are_needed() -> None:
    assert decide(replace(QUIET, pairs=NO_PAIRS)).because.startswith(
        "0 devices reported; no verdict"
    )
    assert " more" in decide(replace(QUIET, pairs=FEW)).because
    assert decide(replace(QUIET, stage_s=20.0)).because.endswith("another 40 s")


# The bucket


def test_a_bucket_is_a_fixed_point_for_ever() -> None:
    """Changing the function would move devices between the stages of a running rollout.

    Pinned by `printf rollout-1/device-0 | b2sum -l 64`, modulo 10,000.
    """
    assert [bucket("rollout-1", f"device-{n}") for n in range(3)] == [1486, 578, 2740]


def test_a_shard_is_a_fixed_point_for_ever() -> None:
    """Changing the function would make every device fetch and hear another shard.

    Pinned by `printf device-0 | openssl dgst -sha256 -hmac salt-1`, its first 8 bytes modulo 20.
    """
    assert [shard_of("salt-1", f"device-{n}", range(20)) for n in range(3)] == [18, 5, 13]


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_bucket_lies_within_bounds_for_any_name(salt: str, device: str) -> None:
    assert 0 <= bucket(salt, device) < BUCKETS


def test_a_larger_share_keeps_every_device_that_was_in() -> None:
    devices = [f"d{n}" for n in range(2000)]
    stages = [{d for d in devices if bucket("r", d) < share} for share in (100, 2500, 9000, 10000)]
    assert all(before < after for before, after in pairwise(stages))
    assert stages[-1] == set(devices)


def test_buckets_are_uniform() -> None:
    """Chi-squared over 20 cells, 20,000 devices: mean 19, standard deviation 6.2."""
    cells = [0] * 20
    for n in range(20_000):
        cells[bucket("salt", f"device-{n}") * 20 // BUCKETS] += 1
    assert sum((cell - 1000) ** 2 / 1000 for cell in cells) < 19 + 4 * 6.2


def test_two_rollouts_choose_independently() -> None:
    """Of 20,000 devices a tenth is early in each, so a hundredth is early in both."""
    devices = [f"device-{n}" for n in range(20_000)]
    early = [{d for d in devices if bucket(salt, d) < 1000} for salt in ("one", "two")]
    both = len(early[0] & early[1])
    assert abs(both - 200) < 4 * math.sqrt(200)


@pytest.mark.parametrize("corner", [0, 1])
@pytest.mark.parametrize("name", sorted(GATE_BOUNDS))
def test_a_gate_at_the_edge_of_its_bounds_still_computes(name: str, corner: int) -> None:
    value: Any = GATE_BOUNDS[name][corner]
    edge = {name: value}
    if name == "failures_fine":
        edge = {"failures_fine": min(value, 0.5), "failures_bad": 0.9}
    gate = gate_of({**edge, "failures_bad": max(value, 0.03)} if name == "failures_bad" else edge)
    for sums in (NO_PAIRS, FEW, SAFE, WORSE):
        found = decide(replace(QUIET, gate=gate, pairs=sums)).evidence
        assert not any(math.isnan(value) for value in vars(found).values())
        assert found.lower <= found.upper
