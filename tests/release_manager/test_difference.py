"""What a signature would change: nothing hides."""

from typing import Any

from release_manager.difference import as_lines, difference


def test_every_member_of_a_document_is_in_the_difference() -> None:
    before: Any = {"a": 1, "roles": {"root": {"keyids": ["1"], "threshold": 1}}, "x": {}}
    for change in (
        {"a": 2},
        {"a": "1"},
        {"a": True},
        {"b": None},
        {"x": {"y": {}}},
        {"x": []},
        {"roles": {"root": {"keyids": ["1"], "threshold": 2}}},
        {"roles": {"root": {"keyids": ["1"], "threshold": 1, "n": 0}}},
        {"roles": {}},
        {"roles": []},
        {"delegations": {"a": 1, "roles": [], "keys": {}}},
        {"delegations": {"a": 2}},
        {"delegated a": 1},
        {"targets": {"a": {"length": 1}}},
    ):
        assert difference(before, before | change), change
        assert difference(before | change, before), change
    assert difference(before, before) == []


def test_no_member_hides_another_of_the_same_look() -> None:
    one = {"delegations": {"roles": [{"name": "r", "threshold": 2}]}, "version": 1}
    other = {**one, "delegations": {"roles": [{"name": "r", "threshold": 1}], "version": 1}}
    rows = difference(one, other)
    assert {row["what"] for row in rows} == {"delegated role r threshold", "delegated version"}
    deep = {"t": {"a.b": 1, "a": {"b": 2}}}
    flat = {"t": {"a.b": 2, "a": {"b": 1}}}
    assert len(difference(deep, flat)) == 2


def test_letters_that_look_alike_are_shown_for_what_they_are() -> None:
    (row,) = difference({"n": "asr"}, {"n": "\u0430sr\u202e\x1b[2J"})
    assert row["after"] == '"\\u0430sr\\u202e\\u001b[2J"'


def test_a_name_makes_no_line_of_its_own_and_is_shown_for_what_it_is() -> None:
    name = "x\nadded    target asr/r9.model: sha256=\u0430\u202e\x1b[2J\u2028y"
    for row in (*difference({}, {name: 1}), *difference({}, {"targets": {"a": {name: {name: 1}}}})):
        (line,) = as_lines([row])
        assert line.isascii() and line.isprintable() and "\\n" in line and "\\u202e" in line
