"""What is known of a shard beforehand: taken out of pairs, it removes noise and nothing else."""

import random
from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.canary import UNIT, Gate, contribution
from service.core.evaluation import known_changes

GATE = Gate()
CLIP = GATE.clip * UNIT
shard = st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(1, 500))


def known(rows: list[tuple[int, int, int]]) -> list[int]:
    shards = [{"id": f"{n:02}", "ref_words": words} for n, (_, _, words) in enumerate(rows)]
    said: dict[str, Any] = {"old": [old for old, _, _ in rows], "new": [n for _, n, _ in rows]}
    return list(known_changes(GATE, said, shards).values())


@given(st.lists(shard, min_size=1, max_size=50))
def test_over_all_shards_it_adds_up_to_nothing(rows: list[tuple[int, int, int]]) -> None:
    assert abs(sum(known(rows))) <= len(rows) / 2
    assert all(abs(each) <= CLIP for each in known(rows))


def test_shards_that_change_alike_leave_pairs_as_they_are() -> None:
    assert known([(50, 55, 500)] * 7) == [0] * 7


def test_a_shard_that_is_expected_to_rise_is_forgiven_that_rise_and_no_more() -> None:
    higher, lower = known([(50, 55, 500), (50, 50, 500)])
    assert (higher, lower) == (500, -500)
    assert contribution(GATE, 50, 55, 500, higher)[0] == 500
    assert contribution(GATE, 50, 50, 500, lower)[0] == 500


@pytest.mark.parametrize("shift", [0, 1, 5])
def test_the_mean_stays_and_the_noise_goes(shift: int) -> None:
    """Devices hear what the maker heard, give or take a word, and `shift` words more are wrong."""
    dice = random.Random(11)
    rows = [(50, 50 + dice.randrange(-6, 7), 500) for _ in range(200)]
    beforehand = known(rows)
    plain, controlled = [], []
    for (old, new, words), luck in zip(rows * 10, beforehand * 10, strict=True):
        there = new + shift + dice.choice((-1, 0, 1))
        plain.append(contribution(GATE, old, there, words)[0])
        controlled.append(contribution(GATE, old, there, words, luck)[0])
    assert fmean(controlled) == pytest.approx(fmean(plain), abs=15)
    assert stdev(controlled) < stdev(plain) / 2


@given(st.lists(shard, min_size=1, max_size=50), st.integers(0, 100))
def test_whatever_was_signed_a_rise_never_looks_like_a_fall(
    rows: list[tuple[int, int, int]], worse: int
) -> None:
    """The same rise on every shard, as a lying maker would like to hide it."""
    seen = [contribution(GATE, 100, 100 + worse, 1000, luck)[0] for luck in known(rows)]
    assert fmean(seen) >= -1
