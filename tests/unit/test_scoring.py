"""The scorer and its normaliser, against a stranger's edit distance, in several scripts."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from device_agent.scoring import WORDS_MAX, mark, normalise, units_of, word_errors

WORDS = (
    "turn on the lights नमस्ते दुनिया कमरे की बत्ती जलाओ விளக்கை அணை ঘরের আলো జలాల్ दुनिया "
    "çalış straße it's on off"
).split()
THAI = "เปิดไฟในห้องนอนปิดประตู"


def damaged(dice: random.Random, words: list[str], noise: float) -> list[str]:
    """What a recogniser of that error rate might hear."""
    heard: list[str] = []
    for word in words:
        kind = dice.choices("=sdi", (1 - noise, noise / 3, noise / 3, noise / 3))[0]
        heard += {"=": [word], "s": [dice.choice(WORDS)], "d": []}.get(
            kind, [word, dice.choice(WORDS)]
        )
    return heard


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.6])
def test_the_total_is_the_one_that_anybody_counts(noise: float) -> None:
    dice = random.Random(f"scoring/{noise}")
    for _ in range(2000):
        said = dice.choices(WORDS, k=dice.randint(0, 12))
        heard = damaged(dice, said, noise)
        found = word_errors(said, heard)
        assert found.total == Levenshtein.distance(said, heard)
        # However it splits, it accounts for every word on both sides.
        assert found.ref_words == len(said)
        assert len(heard) == len(said) - found.deleted + found.inserted


@given(st.text(THAI + " a", max_size=40), st.text(THAI + " a", max_size=40))
def test_characters_are_counted_where_a_script_has_no_spaces(said: str, heard: str) -> None:
    pair = units_of(said, "char"), units_of(heard, "char")
    assert word_errors(*pair).total == Levenshtein.distance(
        said.replace(" ", ""), heard.replace(" ", "")
    )


@pytest.mark.parametrize(
    ("said", "heard", "split"),
    [
        ("a b", "c", (1, 1, 0)),
        ("a", "c d", (1, 0, 1)),
        ("a b c", "b c d", (0, 1, 1)),
        ("", "a", (0, 0, 1)),
        ("a", "", (0, 1, 0)),
    ],
)
def test_a_tie_always_falls_the_same_way(
    said: str, heard: str, split: tuple[int, int, int]
) -> None:
    found = word_errors(said.split(), heard.split())
    assert (found.substituted, found.deleted, found.inserted) == split


def test_a_recogniser_that_never_stops_talking_costs_no_more_than_its_cut() -> None:
    assert word_errors(["on"], ["off"] * 100_000).inserted == WORDS_MAX - 1


@pytest.mark.parametrize(
    ("heard", "plain"),
    [
        ("Turn ON — the lights!", "turn on the lights"),
        ("it\u2019s  5\u00a0o'clock.", "it's 5 o'clock"),
        ("नमस्ते, दुनिया।", "नमस्ते दुनिया"),
        ("STRASSE Straße ﬁne", "strasse strasse fine"),
        ("விளக்கை அணை?", "விளக்கை அணை"),
        ("$ 20 %", "20"),
        (" \t\n", ""),
    ],
)
def test_what_is_heard_is_brought_into_one_form(heard: str, plain: str) -> None:
    assert normalise(heard) == plain


@given(st.lists(st.sampled_from(WORDS), min_size=1))
def test_no_word_falls_apart_at_a_combining_mark(said: list[str]) -> None:
    assert len(normalise(" ".join(said)).split()) == len(said)


@given(st.text(), st.text())
def test_a_mark_tells_transcripts_apart_and_nothing_else(one: str, other: str) -> None:
    assert (mark(one) == mark(other)) == (one == other)
    assert (mark(one) == "") == (one == "")
    assert set(mark(one)) <= set("0123456789abcdef") and len(mark(one)) <= 8
