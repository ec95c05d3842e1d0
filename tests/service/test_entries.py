"""What is kept in memory of devices: bounded, and gone with whatever made it stale."""

import time
from datetime import UTC, datetime

import pytest

from service.db.entries import EVERYTHING, HEARD_S_MAX, Entries, Entry, of_device, of_model

NEVER = datetime.max.replace(tzinfo=UTC)


def entry(model: str = "m") -> Entry:
    return Entry(b"asked", model, None, NEVER, 60)


def filled(*devices: str, most: int = 10) -> Entries:
    entries = Entries(most)
    entries.heard(time.monotonic())
    for device in devices:
        entries.keep(entries.mark(), device, entry())
    return entries


def test_the_least_recently_used_goes_first() -> None:
    entries = filled("a", "b", most=2)
    assert entries.find("a")
    entries.keep(entries.mark(), "c", entry())
    assert [bool(entries.find(device)) for device in "abc"] == [True, False, True]


def test_a_memory_of_nothing_keeps_nothing() -> None:
    assert filled("a", most=0).find("a") is None


@pytest.mark.parametrize(
    ("scope", "left"),
    [(of_device("a"), "bc"), (of_model("m"), "c"), (EVERYTHING, ""), (of_model("none"), "abc")],
)
def test_a_scope_makes_stale_what_depends_on_it(scope: str, left: str) -> None:
    entries = filled("a", "b")
    entries.keep(entries.mark(), "c", entry("other"))
    entries.drop([scope])
    assert "".join(device for device in "abc" if entries.find(device)) == left


def test_an_answer_that_was_looked_up_before_a_change_is_not_kept() -> None:
    entries = filled()
    mark = entries.mark()
    entries.drop([of_device("b")])
    entries.keep(mark, "a", entry())
    assert entries.find("a") is None


def test_nothing_is_kept_and_nothing_stale_is_found_while_a_change_commits() -> None:
    entries = filled("a")
    with entries.changing([of_device("a")]):
        assert entries.find("a") is None
        entries.keep(entries.mark(), "a", entry())
        assert entries.find("a") is None
    mark = entries.mark()
    entries.keep(mark, "a", entry())
    assert entries.find("a")


def test_a_commit_that_fails_makes_stale_too_and_ends() -> None:
    entries = filled("a")
    with pytest.raises(OSError), entries.changing([of_device("a")]):
        raise OSError
    assert entries.find("a") is None
    entries.keep(entries.mark(), "a", entry())
    assert entries.find("a")


def test_nothing_is_found_before_and_too_long_after_others_were_asked() -> None:
    entries = Entries(10)
    entries.keep(entries.mark(), "a", entry())
    assert entries.find("a") is None
    entries.heard(time.monotonic() - HEARD_S_MAX - 1)
    assert entries.find("a") is None
    entries.heard(time.monotonic())
    assert entries.find("a")
