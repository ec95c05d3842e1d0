"""One of something is one, and two of it are several."""

import re
from pathlib import Path

import pytest

from service.core.words import counted
from service.dashboard.words import devices

SERVICE = Path(__file__).parents[2] / "service"
NUMBER_AND_PLURAL = re.compile(r"\{[^{}]+\} (devices|signatures|hours|sums|reports|pairs|times)\b")


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 devices"), (1, "1 device"), (2, "2 devices"), (11, "11 devices")]
)
def test_only_one_of_something_is_no_plural(number: int, words: str) -> None:
    assert counted(number, "device") == devices(number) == words


def test_a_verb_goes_with_its_number() -> None:
    told = [counted(number, "byte is left", "bytes are left") for number in (1, 1000)]
    assert told == ["1 byte is left", "1000 bytes are left"]
    assert devices(1, " keeps", " keep") == "1 device keeps"
    assert devices(1000, " keeps", " keep") == "1\u202f000 devices keep"


def test_no_sentence_of_the_service_puts_a_plural_behind_a_number_by_itself() -> None:
    found = {
        (path.name, match.group())
        for path in SERVICE.rglob("*.py")
        for match in NUMBER_AND_PLURAL.finditer(path.read_text())
    }
    assert found == set()
